"""BriVL's head and patches against PyTorch's layers: values and gradients. make_brivl_fixture.py wrote the fixture."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers.patch_pooling import multiscale_patches
from fmjax.models.bert import Roberta
from fmjax.models.brivl import BriVL, FusionHead
from fmjax.models.conv_encoder import ConvEncoder

with np.load(pathlib.Path(__file__).parent / "brivl_head.npz") as stored:
    FIXTURE = dict(stored)
LAYERS = 2


def convert(kind):
    """PyTorch's tensors as parameters of the head."""
    weights = {key.removeprefix(kind): value for key, value in FIXTURE.items() if key.startswith(kind)}
    layers = lambda name: np.stack([weights[f"block.layers.{i}.{name}"] for i in range(LAYERS)])
    norm = lambda name: {"scale": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}
    product = lambda name: {"kernel": layers(f"{name}.weight").swapaxes(1, 2), "bias": layers(f"{name}.bias")}
    inputs = zip(np.split(layers("self_attn.in_proj_weight"), 3, 1), np.split(layers("self_attn.in_proj_bias"), 3, 1))
    attention = {n: {"kernel": w.swapaxes(1, 2), "bias": b} for n, (w, b) in zip(("query", "key", "value"), inputs)}
    blocks = {
        "attention": attention | {"out": product("self_attn.out_proj")}, "attention_norm": norm("norm1"),
        "mlp": {"up": product("linear1"), "down": product("linear2")}, "mlp_norm": norm("norm2"),
    }  # fmt: skip
    ends = {"inner": 0, "outer": 2}
    last = {n: {"kernel": weights[f"mlp.{i}.weight"].T, "bias": weights[f"mlp.{i}.bias"]} for n, i in ends.items()}
    return {"block": {"blocks": blocks}, **last}


def test_the_head_is_pytorchs_layers_with_normalised_inputs():
    towers = dict(
        vision=ConvEncoder(hidden_size=8, image_size=8, num_channels=3), text=Roberta(hidden_size=8, num_heads=2)
    )
    model = BriVL(**towers, num_layers=LAYERS, num_heads=2, intermediate_size=12, dropout=0.0)
    head = FusionHead(model.block(model.vision), 6)

    def product(params, x):
        out = head.apply({"params": params}, x, FIXTURE["keep"])
        return (out * FIXTURE["target"]).sum(), out

    grads, out = jax.jit(jax.grad(product, (0, 1), has_aux=True))(convert("weight/"), jnp.asarray(FIXTURE["x"]))
    np.testing.assert_allclose(out, FIXTURE["out"], atol=2e-5)
    expected = (convert("gradient/"), FIXTURE["x_gradient"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * abs(b).max() + 2e-5), grads, expected)


def test_patches_are_adaptive_means_of_every_grid_in_turn():
    grids = (1, 2, 3, 5)
    found = multiscale_patches(jnp.asarray(FIXTURE["places"]), grids)
    expected = np.concatenate([FIXTURE[f"pooled/{grid}"] for grid in grids], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(
        ConfigError, match="grid of 6x6 patches does not fit a feature map of 5x7 places; take at most 5"
    ):
        multiscale_patches(jnp.zeros((1, 5, 7, 2)), (1, 6))
