"""A family of a package outside fmjax: read and written like ours, once an entry point or a call names it."""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.errors import InputError
from fmjax.interop import family

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "interop"))
import folders  # noqa: E402


@pytest.fixture
def lab(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    return importlib.metadata.EntryPoint("lab", "my_lab.families:LAB", "fmjax.families")


def test_a_family_of_a_fork_is_read_and_written(lab, monkeypatch, tmp_path):
    ours = folders.published(tmp_path / "llama", "llama")
    weights = load_file(ours / "model.safetensors")
    theirs = {name.replace("model.layers", "lab.blocks"): value for name, value in weights.items()}
    config = json.loads((ours / "config.json").read_text())
    folder = folders.write(
        tmp_path / "lab", theirs, config | {"architectures": ["LabForCausalLM"], "model_type": "lab"}
    )
    with pytest.raises(InputError, match="'LabForCausalLM' is not supported"):
        fmjax.load(folder)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [lab] if group == lab.group else [])
    model, tokens = fmjax.load(folder), np.arange(8)[None]
    np.testing.assert_array_equal(model.apply(tokens), fmjax.load(ours).apply(tokens))
    model.save(tmp_path / "saved", format="hf")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(written[name], value)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == ["LabForCausalLM"]


def test_a_family_is_registered_once(lab, monkeypatch):
    monkeypatch.setattr(family, "_REGISTERED", [])
    family.register(lab.load())
    assert lab.load() in family.families()
    with pytest.raises(InputError, match="two families have the architecture 'LabForCausalLM'"):
        family.register(lab.load())
    wrong = importlib.metadata.EntryPoint("lab", "my_lab.models:Bilinear", lab.group)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [wrong])
    with pytest.raises(InputError, match="'my_lab.models:Bilinear' is a .*, expected a fmjax.interop.family.Family"):
        family.families()
