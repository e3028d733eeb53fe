"""Stable Diffusion 3's Transformer: what diffusers' class computes, its gradients, and folders written back.

make_mmdit_fixtures.py wrote the fixtures, and check_vision_exports.py has the PyTorch class load what is saved here.
"""

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity import published_names
from test_unet import channels_last, check_written, write

import fmjax
from fmjax.errors import ConfigError
from fmjax.interop.family import publish
from fmjax.models.mmdit import MMDiT
from tests.quick_keys import quick_key

CASES = ("mmdit", "mmdit_normed")
UNREAD = ("attn.add_q_proj.weight", "attn.add_q_proj.bias", "attn.norm_added_q.weight")
"""Of the last block: the queries of its text."""


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(fixture, folder, model)."""
    fixture, folder, _ = write(tmp_path_factory.mktemp("published"), request.param)
    # As it was saved: what is null there is not what the class does without the key.
    (folder / "config.json").write_text(str(fixture["file/part/config.json"]))
    return fixture, folder, fmjax.load(folder)


def inputs_of(fixture):
    found = {"inputs": channels_last(fixture["inputs"]), "times": np.float32(fixture["times"] / 1000)}
    return found | {name: fixture[name] for name in ("memory", "vector")}


def test_output_and_gradients_are_those_of_diffusers(case):
    fixture, _, model = case
    target = channels_last(fixture.get("target", np.ones_like(fixture["out"])))

    @jax.jit
    def both(params):
        out = model.module.apply({"params": params}, **inputs_of(fixture))
        return (out * target).sum(), out

    expected = channels_last(fixture["out"])
    if "target" not in fixture:
        np.testing.assert_allclose(both(model.params)[1], expected, atol=1e-4 * np.abs(expected).max())
        return
    gradients, out = jax.grad(both, has_aux=True)(model.params)
    np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(expected).max())
    named, expected = published_names(model, gradients), folders.part(fixture, "gradient/")
    assert set(named) == set(expected)
    for name in UNREAD:
        assert not named[f"transformer_blocks.1.{name}"].any()
    for name, value in expected.items():
        np.testing.assert_allclose(named[name], value, atol=1e-4 * max(np.abs(value).max(), 1), err_msg=name)


def test_saving_gives_the_published_folder_back(case, tmp_path):
    fixture, folder, model = case
    check_written(fixture, folder, model, tmp_path / "saved")


def test_padding_of_a_text_is_not_attended(case):
    _, _, model = case
    rng = np.random.default_rng(0)
    inputs = {"inputs": rng.normal(size=(1, 8, 8, 3)).astype(np.float32), "times": np.float32([0.3])}
    inputs["vector"] = rng.normal(size=(1, 5)).astype(np.float32)
    memory = rng.normal(size=(1, 5, 6)).astype(np.float32)
    apply = jax.jit(lambda **more: model.module.apply(model.variables, **inputs, **more))
    short, mask = apply(memory=memory[:, :3]), np.array([[1, 1, 1, 0, 0]], np.int32)
    np.testing.assert_allclose(apply(memory=memory, memory_mask=mask), short, atol=1e-5)
    assert np.abs(apply(memory=memory) - short).max() > 1e-3


def test_the_size_of_stable_diffusion_3_medium_is_the_published_one():
    """Its model card says 2B; the class with the published config has 2,028,328,000 without the buffer of positions."""
    module = MMDiT(image_size=128, num_channels=16, position_grid=192)
    shapes = jax.eval_shape(module.init, jax.random.key(0), **module.example())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_028_328_000


def test_what_no_published_class_has_is_refused():
    small = dict(image_size=8, num_channels=3, num_layers=2, hidden_size=8, num_heads=2, memory_size=6)
    family, values = publish(MMDiT(**small, vector_size=5, qk_norm=True))
    assert family.architectures == ("SD3Transformer2DModel",) and values["qk_norm"] == "rms_norm"
    with pytest.raises(Exception, match="no model without a vector of the text"):
        publish(MMDiT(**small, vector_size=0))
    with pytest.raises(ConfigError, match="images have 4 patches a side"):
        MMDiT(**small, position_grid=3)
    module = MMDiT(**small, vector_size=0)
    with pytest.raises(ConfigError, match="memory_size = 6 is the width of `memory`, but there is none"):
        module.init(quick_key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
