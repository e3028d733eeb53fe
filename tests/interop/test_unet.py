"""Published U-Nets and autoencoders of diffusers: what they compute, their gradients, and folders written back.

make_unet_fixtures.py wrote the fixtures, and check_vision_exports.py has the PyTorch classes load what is saved here.
"""

import json

import folders
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_parity import published_names

import fmjax
from fmjax.errors import ConfigError, InputError
from fmjax.interop.family import publish
from fmjax.models.unet import UNet

CASES = ("unet_ddpm", "unet_adm", "unet_text")
# Keys that are another spelling of the same, or say nothing.
NOT_WRITTEN = ("attention_head_dim", "transformer_layers_per_block")


def channels_last(x):
    return x.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(fixture, folder, model) of a U-Net."""
    return write(tmp_path_factory.mktemp("published"), request.param)


def write(within, name):
    """(fixture, folder, model) of a fixture, written under the file name of diffusers."""
    fixture = folders.read_vision(name)
    inside = {f"weight/unet/{key}": value for key, value in folders.part(fixture, "weight/").items()}
    folders.write_vision(within, inside | {"file/unet/config.json": fixture["file/config.json"]})
    return fixture, within / "unet", fmjax.load(within / "unet")


def inputs_of(fixture):
    found = {"inputs": channels_last(fixture["inputs"]), "times": np.float32(fixture["times"] / 1000)}
    names = {"labels": "labels", "memory": "memory", "mask": "memory_mask"}
    return found | {ours: fixture[name] for name, ours in names.items() if name in fixture}


def test_output_and_gradients_are_those_of_diffusers(case):
    fixture, _, model = case
    target = channels_last(fixture.get("target", np.zeros_like(fixture["out"])))

    @jax.jit
    def both(params):
        out = model.module.apply({"params": params}, **inputs_of(fixture))
        return (out * target).sum(), out

    if "target" not in fixture:
        out = both(model.params)[1]
        np.testing.assert_allclose(out, channels_last(fixture["out"]), atol=1e-4 * np.abs(fixture["out"]).max())
        return
    gradients, out = jax.grad(both, has_aux=True)(model.params)
    np.testing.assert_allclose(out, channels_last(fixture["out"]), atol=1e-4 * np.abs(fixture["out"]).max())
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(named[name], value, atol=1e-4 * max(np.abs(value).max(), 1), err_msg=name)


def test_saving_gives_the_published_folder_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    written, weights = load_file(tmp_path / "saved" / "diffusion_pytorch_model.safetensors"), {}
    weights = folders.part(fixture, "weight/")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "saved", folder))
    differ = {key for key, value in ours.items() if theirs.get(key, value) != value}
    assert differ == set() and fmjax.load(tmp_path / "saved").module == model.module
