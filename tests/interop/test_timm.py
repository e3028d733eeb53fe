"""Vision Transformers in timm's layout: the tensors of `transformers`' class renamed and fused as its public conversion
script has it, sizes told by name or by `model_args`."""

import dataclasses
import json

import folders
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.config import build
from fmjax.data.codecs.image import CroppedImageCodec
from fmjax.errors import ConfigError, InputError
from fmjax.interop.family import publish, read_section
from fmjax.interop.timm_vit import TIMM
from fmjax.models import MODELS

RENAMED = {
    "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm", "head": "classifier",
}  # fmt: skip
IN_BLOCKS = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
CONFIG = {
    "architecture": "vit_base_patch16_224", "num_classes": 3, "num_features": 16, "global_pool": "token",
    "model_args": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1.5},
    "pretrained_cfg": {
        "input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": 0.8, "crop_mode": "center",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "classifier": "head", "tag": "augreg",
    },
}  # fmt: skip


def fused(weights):
    """timm's tensors of those of `ViTForImageClassification`."""
    found, layer = {}, "vit.encoder.layer.0"
    for kind in ("weight", "bias"):
        for ours, theirs in RENAMED.items():
            if f"{theirs}.{kind}" in weights:
                found[f"{ours}.{kind}"] = weights[f"{theirs}.{kind}"]
        for ours, theirs in IN_BLOCKS.items():
            found[f"blocks.0.{ours}.{kind}"] = weights[f"{layer}.{theirs}.{kind}"]
        parts = [weights[f"{layer}.attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
        found[f"blocks.0.attn.qkv.{kind}"] = np.concatenate(parts)
    return found | {name: weights[RENAMED[name]] for name in ("cls_token", "pos_embed")}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(tensors, model, images, logits by PyTorch's class, whose epsilon is smaller)."""
    fixture = folders.read_vision("vit_resized")
    weights = fused(folders.part(fixture, "weight/"))
    folder = folders.write(tmp_path_factory.mktemp("timm") / "model", weights, CONFIG)
    return weights, fmjax.load(folder), fixture, folders.loaded_vision(tmp_path_factory.mktemp("hf"), "vit_resized")[2]


def test_logits_are_those_of_the_same_weights_and_come_back(case, tmp_path):
    weights, model, fixture, other = case
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = other.module.clone(norm_eps=1e-6).apply({"params": other.params}, images)
    np.testing.assert_allclose(model.apply(images=images), expected, atol=1e-5)
    codec = CroppedImageCodec(16, 16, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), resample="bicubic", shortest_edge=20)
    assert model.codecs["image"] == codec
    model.save(tmp_path / "saved", format="hf")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    arguments = {"in_chans": 3, "qkv_bias": True}
    assert values["model_args"] == CONFIG["model_args"] | arguments and values["architecture"] == CONFIG["architecture"]
    again = fmjax.load(tmp_path / "saved")
    assert again.module == model.module and again.codecs == model.codecs


def test_names_say_sizes_and_others_are_refused(case, tmp_path):
    weights, model, _, other = case
    named = {"vit_small_patch32_384": (384, 12, 6, 32, 384), "vit_large_patch16_224": (1024, 24, 16, 16, 224)}
    for name, sizes in named.items():
        section = read_section(TIMM, {"architecture": name, "num_classes": 7}, (), "config.json")
        found = [section[key] for key in ("hidden_size", "num_layers", "num_heads", "patch_size", "image_size")]
        assert tuple(found) == sizes and section["intermediate_size"] == 4 * sizes[0] and section["num_classes"] == 7
        assert publish(build(section, MODELS), name)[1]["architecture"] == name
    with pytest.raises(ConfigError, match="global_pool = 'avg' is not supported"):
        read_section(TIMM, CONFIG | {"global_pool": "avg"}, (), "config.json")
    with pytest.raises(InputError, match="'vit_base_patch16_224_miil' is not supported. Supported: .*vit_tiny"):
        fmjax.load(folders.write(tmp_path / "other", weights, CONFIG | {"architecture": "vit_base_patch16_224_miil"}))
    plain = dataclasses.replace(other, module=other.module.clone(norm_eps=1e-6))
    plain.save(tmp_path / "timm", format="hf", architecture="vit_base_patch16_224")
    written = load_file(tmp_path / "timm" / "model.safetensors")
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
