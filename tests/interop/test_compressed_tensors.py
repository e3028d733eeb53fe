"""Folders of few bits as `compressed-tensors` writes them (make_compressed_tensors_fixture.py), read and written."""

import json
import pathlib

import folders
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax.compress import METHODS
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.interop import compressed_tensors as ct
from fmjax.layers.codes import to_levels
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.layers.weights import merged

FIXTURE = pathlib.Path(__file__).parents[1] / "oracles" / "compressed_tensors.npz"
CASES = {
    "int4_group": ("int4", 8), "int4_zero_point": ("uint4", 8), "int8_channel": ("int8", 0),
    "fp8_channel": ("fp8", 0), "int8_activations": ("int8", 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    with np.load(FIXTURE) as stored:
        return dict(stored)


def theirs(oracle, name) -> dict[str, np.ndarray]:
    floats = folders.part(oracle, f"{name}/fp8/")
    return folders.part(oracle, f"{name}/weight/") | {k: v.view(ml_dtypes.float8_e4m3fn) for k, v in floats.items()}


def write(folder, oracle, name, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = theirs(oracle, name)
    plain = {key: x.view(np.uint8) if x.dtype == ml_dtypes.float8_e4m3fn else x for key, x in arrays.items()}
    save_file(plain, folder / "model.safetensors")
    if "fp8" in name:  # the library's numpy has no such type
        raw = (folder / "model.safetensors").read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + size].replace(b'"U8"', b'"F8_E4M3"')
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    config = json.loads(str(oracle[f"{name}/config"]))
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_their_folder_is_the_model_and_ours_is_theirs(name, oracle, tmp_path):
    folder = write(tmp_path / "theirs", oracle, name)
    model, whole = fmjax.load(folder, quantized=True), fmjax.load(folder)
    kernel = model.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
    format, block = CASES[name]
    assert (kernel.format, kernel.block) == (format, block or 16)
    assert kernel.activations == ("int8" if name == "int8_activations" else "float")
    jax.tree.map(np.testing.assert_array_equal, merged(model.params), whole.params)
    tokens = folders.read("llama")["tokens"]
    # Activations are divided there by the largest over 127.5.
    np.testing.assert_allclose(
        model.apply(tokens)[0], oracle[f"{name}/logits"][0], atol=0.15 if name == "int8_activations" else 1e-4
    )
    model.save(tmp_path / "ours", format="hf")
    expected = theirs(oracle, name)
    with safe_open(tmp_path / "ours" / "model.safetensors", "np") as stored:
        assert set(stored.keys()) == set(expected)
        for key in stored.keys():
            if expected[key].dtype != ml_dtypes.float8_e4m3fn:
                np.testing.assert_array_equal(stored.get_tensor(key).reshape(expected[key].shape), expected[key], key)
    ours = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    config = json.loads(str(oracle[f"{name}/config"]))["quantization_config"]
    for key in ("quant_method", "format", "ignore"):
        assert ours[key] == config[key]
    told, group = ours["config_groups"]["group_0"], config["config_groups"]["group_0"]
    assert told["targets"] == group["targets"]
    for key in ("num_bits", "type", "symmetric", "strategy", "group_size"):
        assert told["weights"][key] == group["weights"][key]
    again = fmjax.load(tmp_path / "ours", quantized=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_what_is_compressed_here_with_their_half_step_is_what_they_write(oracle, tmp_path):
    """Scales and whole numbers of our own rounding, but where a number lies half way between two: a group's largest is
    7.5 times its scale, which was rounded, and may go to either."""
    model = fmjax.load(folders.published(tmp_path / "whole", "llama"))
    expected = fmjax.load(write(tmp_path / "theirs", oracle, "int4_group"), quantized=True)
    is_packed = lambda x: isinstance(x, QTensor)
    flat, structure = jax.tree.flatten(expected.params, is_leaf=is_packed)
    for kernel, found in zip(structure.flatten_up_to(model.params), flat):
        if is_packed(found):
            ours = Quantization("int4", 8, half=True).quantize(kernel)
            np.testing.assert_allclose(ours.scales, found.scales, rtol=1e-6)
            a, b = (np.asarray(to_levels(x.codes, "int4")) for x in (ours, found))
            steps = np.asarray(kernel) / np.repeat(np.asarray(found.scales), 8, -2)
            is_tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-5
            assert np.all((a == b) | is_tie) and np.max(np.abs(a - b)) <= 1
            # Beside those no number of the fixture is half way.
            assert np.all(np.abs(steps[is_tie]) > 7) and np.any(is_tie)


def test_several_formats_get_a_group_each_and_floats_are_written_when_asked(tmp_path):
    model = fmjax.load(folders.published(tmp_path / "whole", "llama"))
    made = METHODS.get("int4")(block=8, patterns=("mlp",)).compress(model)
    made = METHODS.get("int8")(patterns=("attention",)).compress(made)
    made.save(tmp_path / "mixed", format="hf")
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized" and sorted(map(len, (
        group["targets"] for group in config["config_groups"].values()
    ))) == [9, 12]  # fmt: skip
    again = fmjax.load(tmp_path / "mixed", quantized=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
    made.save(tmp_path / "floats", format="hf", dequantized=True)
    assert "quantization_config" not in json.loads((tmp_path / "floats" / "config.json").read_text())
    assert not any("packed" in name for name in load_file(tmp_path / "floats" / "model.safetensors"))
    with pytest.raises(InputError, match="is nf4 in blocks of 8, which compressed-tensors has no words for"):
        METHODS.get("nf4")(block=8).compress(model).save(tmp_path / "nf4", format="hf")
    assert not (tmp_path / "nf4").exists()


def test_what_is_not_supported_is_named(oracle, tmp_path):
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8}}
    changed = lambda **weights: {"group_0": {**group, "weights": {**group["weights"], **weights}}}
    for changes, message in (
        (dict(quant_method="gptq"), "quant_method = 'gptq' is not supported; supported: 'compressed-tensors'"),
        (dict(config_groups={"a": {**group, "format": "nvfp4"}}), "format = 'nvfp4'; supported: pack-quantized"),
        (dict(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (dict(config_groups=changed(num_bits=3)), "3 bits of type 'int'; supported: int of 4 and 8"),
        (dict(config_groups=changed(strategy="block")), "strategy = 'block'; supported: group, channel, tensor"),
        (dict(config_groups=changed(group_size=4)), r"weight_scale of shape \(16, 3\)|expected .* numbers \(group\)"),
        (dict(transform_config={"a": 1}), "transform_config is not supported"),
        (dict(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config is not supported"),
        (dict(config_groups=changed(symmetric=False)), "symmetric = False, and there is no weight_zero_point"),
        (dict(config_groups={"a": {**group, "output_activations": {"num_bits": 8}}}), "output_activations are not"),
        (dict(config_groups={}), "config_groups has none for 'model.layers.0"),
        (dict(config_groups={"a": {**group, "input_activations": {"num_bits": 8}}}), "input_activations"),
    ):
        folder = write(tmp_path / "x", oracle, "int4_group", **changes)
        with pytest.raises((ConfigError, CheckpointError), match=message):
            fmjax.load(folder)


def test_numbers_in_int32_come_back():
    numbers = np.random.default_rng(0).integers(0, 16, (3, 13)).astype(np.uint8)
    for bits in (4, 8):
        packed = ct.to_int32(numbers, bits)
        assert packed.shape == (3, -(-13 * bits // 32)) and packed.dtype == np.int32
        np.testing.assert_array_equal(ct.from_int32(packed, bits, 13), numbers)
    assert ct.to_int32(np.uint8([[1, 2, 0, 0, 0, 0, 0, 8]]), 4)[0, 0] == np.int32(0x21 - 2**31)
