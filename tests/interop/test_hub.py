"""Hub ids: what is one, what is asked for, and every way in which it can fail."""

import folders
import huggingface_hub
import jax
import pytest
from huggingface_hub import errors

import fmjax
from fmjax import hub
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
    ):
        assert not hub.is_hub_id(text)


def test_a_hub_id_is_downloaded_and_loaded(tmp_path, monkeypatch):
    folder = folders.published(tmp_path / "cache", "gpt2")
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
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
