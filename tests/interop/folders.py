"""Published folders for tests, written from the fixtures that make_interop_fixtures.py made."""

import json
import pathlib

import huggingface_hub
import numpy as np
from safetensors.numpy import save_file

import fmjax

PUBLISHED = pathlib.Path(__file__).parent / "published"
NAMES = sorted(path.stem for path in PUBLISHED.glob("*.npz"))


def read(name: str) -> dict[str, np.ndarray]:
    """A fixture's arrays."""
    with np.load(PUBLISHED / f"{name}.npz") as stored:
        return dict(stored)


def part(fixture, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in fixture.items() if key.startswith(prefix)}


def write(folder: pathlib.Path, weights: dict[str, np.ndarray], config: dict) -> pathlib.Path:
    """A published folder of these tensors and this config.json, written by the `safetensors` library."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def published(folder: pathlib.Path, name: str, **changes) -> pathlib.Path:
    """The folder of a fixture, with keys of its config.json changed."""
    fixture = read(name)
    return write(folder, part(fixture, "weight/"), json.loads(str(fixture["config"])) | changes)


def stand_for_hub_ids(monkeypatch, folder: pathlib.Path) -> None:
    """Any hub id is from here on the tiny LLaMA that is written into this folder."""
    written = published(folder, "llama")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *arguments, **options: str(written))


def read_vision(name: str) -> dict[str, np.ndarray]:
    """A fixture of make_vision_fixtures.py."""
    with np.load(PUBLISHED.parent / "vision" / f"{name}.npz") as stored:
        return dict(stored)


def write_vision(folder: pathlib.Path, fixture, **changes) -> pathlib.Path:
    """The folder of such a fixture, folders of parts in it; `changes` of its config.json's keys (None: left out)."""
    for name, text in part(fixture, "file/").items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = json.loads(str(text)) | (changes if name == "config.json" else {})
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    tensors: dict[pathlib.Path, dict] = {}
    for name, value in part(fixture, "weight/").items():
        within, _, tensor = name.rpartition("/")
        file = folder / within / ("diffusion_pytorch_model.safetensors" if within else "model.safetensors")
        tensors.setdefault(file, {})[tensor] = value
    for file, found in tensors.items():
        save_file(found, file, {"format": "pt"})
    return folder


def loaded_vision(within: pathlib.Path, name: str):
    """(fixture, its folder in `within`, the model in it)."""
    fixture = read_vision(name)
    folder = write_vision(within / name, fixture)
    return fixture, folder, fmjax.load(folder)
