"""A family of several parts from outside fmjax: one folder with nested configs, read and written whole or by part."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop import family

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "interop"))
import folders  # noqa: E402


@pytest.fixture
def towers(monkeypatch, tmp_path):
    """(weights, config.json, folder) of the two fixtures as parts of one model."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setattr(family, "_REGISTERED", [])
    from my_lab.towers import TOWERS

    family.register(TOWERS)
    vision, text = folders.read_vision("vit_headless"), folders.read("gpt2")
    weights = {f"vision_model.{name}": value for name, value in folders.part(vision, "weight/").items()}
    weights |= {f"text_model.{name}": value for name, value in folders.part(text, "weight/").items()}
    weights["logit_scale"] = np.array(0.7, np.float32)
    config = {"architectures": ["LabTowers"], "model_type": "lab_towers"}
    config |= {
        "vision_config": json.loads(str(vision["file/config.json"])),
        "text_config": json.loads(str(text["config"])),
    }
    return weights, config, folders.write(tmp_path / "towers", weights, config)


def test_the_whole_is_composed_of_its_parts_and_written_back(towers, tmp_path):
    weights, config, folder = towers
    model, vision, text = fmjax.load(folder), *(fmjax.load(folder, part=name) for name in ("vision", "text"))
    images, tokens = (
        folders.read_vision("vit_headless")["pixels"].transpose(0, 2, 3, 1),
        folders.read("gpt2")["tokens"][:1],
    )
    ends = text.module.apply({"params": text.params}, tokens, method="hidden")[:, -1]
    expected = np.exp(0.7) * vision.apply(images=images) @ ends.T
    np.testing.assert_allclose(model.apply(tokens, images=images), expected, rtol=1e-4)
    for name, part in {"vision": vision, "text": text}.items():
        jax.tree.map(np.testing.assert_array_equal, part.params, model.params[name])
    model.save(tmp_path / "saved", format="hf")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    again = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert again["architectures"] == ["LabTowers"] and again["text_config"]["n_embd"] == config["text_config"]["n_embd"]
    assert fmjax.load(tmp_path / "saved").module == model.module
    model.save(tmp_path / "ours")
    assert fmjax.load(tmp_path / "ours").module == model.module


def test_every_part_computes_in_the_dtype_that_is_asked_for(towers):
    model = fmjax.load(towers[2], dtype="bfloat16")
    assert (model.module.vision.dtype, model.module.text.dtype) == ("bfloat16", "bfloat16")


def test_what_is_wrong_with_a_part_is_named(towers, tmp_path):
    weights, config, folder = towers
    with pytest.raises(
        InputError, match=r"\(LabTowers\) has no part 'visoin'; did you mean 'vision'\?; it has the parts vis"
    ):
        fmjax.load(folder, part="visoin")
    without = folders.write(tmp_path / "without", weights, {k: v for k, v in config.items() if k != "text_config"})
    with pytest.raises(ConfigError, match="has no 'text_config'"):
        fmjax.load(without)
    missing = folders.write(tmp_path / "missing", {k: v for k, v in weights.items() if "text" in k}, config)
    with pytest.raises(CheckpointError, match="'logit_scale' of shape .. is missing"):
        fmjax.load(missing)
    with pytest.raises(CheckpointError, match="'embeddings.cls_token' of shape .1, 1, 16. is missing"):
        fmjax.load(missing, part="vision")
    refused = folders.write(tmp_path / "refused", weights, config | {"vision_config": {"hidden_act": "quick_gelu"}})
    with pytest.raises(ConfigError, match="config.json: vision_config: hidden_act = 'quick_gelu'"):
        fmjax.load(refused)
