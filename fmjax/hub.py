"""Where models are: by their hub id, "organisation/name" or "organisation/name@revision", of a GGUF file with its name
behind it, "organisation/name/FILE.gguf"; or a checkpoint of a run."""

import pathlib
import re

from fmjax.errors import InputError

_HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+?))?(/(?P<file>[\w.-]+\.gguf))?"
)
# Well-known models that once went by a name alone, which the hub still redirects.
ORGANISATIONS = {
    "openai-community": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt"),
    "google-bert": (
        *(f"bert-{size}-{case}" for size in ("base", "large") for case in ("cased", "uncased")),
        "bert-base-multilingual-cased", "bert-base-multilingual-uncased", "bert-base-chinese", "bert-base-german-cased",
    ),
    "FacebookAI": ("roberta-base", "roberta-large"),
}  # fmt: skip
# Configs, safetensors and tokenizers, in folders of parts too; no pickles, and no weights in other layouts.
PATTERNS = (
    "*.json", "model*.safetensors", "adapter_model.safetensors", "*/model.safetensors", "*/model-*-of-*.safetensors",
    "*diffusion_pytorch_model.safetensors", "*diffusion_pytorch_model-*-of-*.safetensors", "tokenizer*",
    "*.model", "*.spm", "vocab.txt", "merges.txt", "*.jinja",
)  # fmt: skip
IGNORED = ("checkpoint-*/*", "*.fp16.safetensors")  # states of a training, and weights that are there in float32 too


def is_hub_id(path: str | pathlib.Path) -> bool:
    """Whether a text that is no local folder can be the id of a model on the hub."""
    return isinstance(path, str) and _HUB_ID.fullmatch(path) is not None


def full_id(name: str) -> str | None:
    """The hub id of a well-known model called by its name alone, with its revision; None for any other text."""
    bare = name.partition("@")[0]
    return next((f"{organisation}/{name}" for organisation, names in ORGANISATIONS.items() if bare in names), None)


def download(hub_id: str) -> pathlib.Path:
    """The folder or GGUF file of a model on the hub, downloaded into `huggingface_hub`'s cache unless it is there.

    Raises InputError naming the id when there is no such model, revision or file, it has GGUF files alone and none is
    named, access is not granted, or nothing answers.
    """
    import huggingface_hub
    from huggingface_hub import errors

    match = _HUB_ID.fullmatch(hub_id)
    name, revision, file = match["id"], match["revision"], match["file"]
    found = f"{hub_id!r} is not a local folder, and as a hub id it"
    try:
        if file is not None:
            return pathlib.Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
        patterns = dict(allow_patterns=list(PATTERNS), ignore_patterns=list(IGNORED))
        folder = huggingface_hub.snapshot_download(name, revision=revision, **patterns)
    except errors.GatedRepoError:
        raise InputError(
            f"{found} is gated: accept its terms at huggingface.co/{name} and log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{found} has no revision {revision!r}") from None
    except errors.RemoteEntryNotFoundError:
        raise InputError(f"{found} has no file {file!r}{_listed(_gguf_files(name, revision))}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{found} does not exist, or is private (then log in with `hf auth login`)") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise InputError(
            f"{found} could not be downloaded ({type(error).__name__}: {reason}); check the network, or give a local "
            "folder"
        ) from None
    folder = pathlib.Path(folder)
    if not any(folder.glob("*.safetensors")) and (files := _gguf_files(name, revision)):
        raise InputError(f"{hub_id!r} has its weights in GGUF files; name one, as {hub_id}/{files[0]}{_listed(files)}")
    return folder


def _gguf_files(name: str, revision: str | None) -> list[str]:
    """The GGUF files of a model on the hub, those in its folders left out; none where it does not answer."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(name, revision=revision)
        return [file for file in files if file.endswith(".gguf") and "/" not in file]
    except (huggingface_hub.errors.HfHubHTTPError, OSError):
        return []


def _listed(files: list[str]) -> str:
    return f" (there are: {', '.join(files[:8])}{', ...' if len(files) > 8 else ''})" if files else ""


def checkpoint_step(folder: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """(run's folder, step) of `WORKDIR/checkpoints/STEP`; any other folder is given back with None."""
    if folder.is_dir() and folder.parent.name == "checkpoints" and folder.name.isdigit():
        return folder.parent.parent, int(folder.name)
    return folder, None
