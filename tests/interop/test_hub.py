"""Hub ids: what is one, what is asked for, and every way in which it can fail."""

import folders
import huggingface_hub
import jax
import pytest
from huggingface_hub import errors

import fmjax
from fmjax import hub
from fmjax.data.tokenizers.loading import load_tokenizer
from fmjax.errors import InputError


def test_what_is_a_hub_id():
    for text in ("org/name", "meta-llama/Llama-3.1-8B", "org/name@main", "org/name@refs/pr/1", "a.b/c_d-e@0f3"):
        assert hub.is_hub_id(text)
    for text in (
        "name",
        "/org/name",
        "./org/name",
        "../name",
        "org/name/more",
        "org/",
        "~/name",
        "org/name@",
        "org name/x",
        "org/.gguf",
    ):
        assert not hub.is_hub_id(text)
    for text in ("org/name/x-Q4_0.gguf", "org/name@refs/pr/1/x.gguf"):
        assert hub.is_hub_id(text)


def test_a_gguf_file_is_downloaded_by_its_name_behind_the_id(tmp_path, monkeypatch):
    asked = []

    def hf_hub_download(name, file, *, revision):
        asked.append((name, file, revision))
        if file == "y.gguf":
            raise errors.RemoteEntryNotFoundError("x", response=Response())
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    files = ["README.md", "x-Q4_0.gguf", "x-Q8_0.gguf", "a/b.gguf"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: files)
    assert hub.download("org/name/x-Q4_0.gguf") == tmp_path / "x-Q4_0.gguf"
    assert hub.download("org/name@refs/pr/1/x.gguf") == tmp_path / "x.gguf"
    assert asked == [("org/name", "x-Q4_0.gguf", None), ("org/name", "x.gguf", "refs/pr/1")]
    with pytest.raises(InputError, match=r"has no file 'y.gguf' \(there are: x-Q4_0.gguf, x-Q8_0.gguf\)"):
        load_tokenizer("org/name/y.gguf")
    # The id alone is answered with the names.
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(InputError, match="'org/name' has its weights in GGUF files; name one, as org/name/x-Q4_0.gguf"):
        fmjax.load("org/name")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail_offline)
    assert hub.download("org/name") == tmp_path


def fail_offline(*_, **__):
    raise errors.OfflineModeIsEnabled("offline mode")


def test_a_hub_id_is_downloaded_and_loaded(tmp_path, monkeypatch):
    folder = folders.published(tmp_path / "cache", "gpt2")
    asked = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fmjax.load("openai-community/gpt2@v1").module == fmjax.load(folder).module
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("openai-community/gpt2", "v1")
    assert "*.json" in patterns and not any(p.endswith((".bin", ".pt", "*")) for p in patterns if p != "tokenizer*")


def test_a_local_folder_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    folders.published(tmp_path / "org" / "name", "gpt2")
    monkeypatch.chdir(tmp_path)
    assert jax.tree.leaves(fmjax.load("org/name").params)


def test_a_well_known_name_alone_is_answered_with_its_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, full in (
        ("gpt2", "openai-community/gpt2"),
        ("bert-base-uncased@main", "google-bert/bert-base-uncased@main"),
        ("roberta-base", "FacebookAI/roberta-base"),
    ):
        with pytest.raises(InputError, match=f"'{name}' does not exist.*hub id, 'org/name'.*did you mean '{full}'"):
            fmjax.load(name)
    with pytest.raises(InputError) as error:
        fmjax.load("gpt5")
    assert "did you mean" not in str(error.value)


class Response:
    """Enough of an answer for the errors of `huggingface_hub`."""

    headers: dict = {}
    status_code = 404
    request = None


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (errors.RepositoryNotFoundError("x", response=Response()), "'org/name' is not a local folder.*or is private"),
        (errors.GatedRepoError("x", response=Response()), "is gated: accept its terms at huggingface.co/org/name"),
        (errors.RevisionNotFoundError("x", response=Response()), "has no revision"),
        (errors.LocalEntryNotFoundError("offline"), "could not be downloaded .*offline.*check the network"),
        (OSError("Name or service not known"), "could not be downloaded .*Name or service"),
        (errors.OfflineModeIsEnabled("offline mode"), "could not be downloaded .*offline mode"),
    ],
)  # fmt: skip
def test_failures_are_one_message_naming_the_id(error, match, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=match):
        fmjax.load("org/name")
