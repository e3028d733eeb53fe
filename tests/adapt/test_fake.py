"""Kernels that are rounded in every step: gradients past the rounding, a run, and the same logits in few bits."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.adapt.fake import FakeQuantization
from fmjax.assemble import build_weights
from fmjax.checkpoint_files import load_params
from fmjax.compress import METHODS
from fmjax.errors import ConfigError
from fmjax.layers.dense import dense
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.interop.loading import placed
from fmjax.layers.scales import ROUNDINGS
from fmjax.layers.weights import FakeQuantized, as_computed, is_weight, value_of
from fmjax.training.loop import train

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "qat_tiny.py"


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_products_are_of_rounded_kernels_and_gradients_go_past_that(activations, transpose):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(3, 8 if transpose else 32)), jnp.float32)
    quantization = Quantization("int4", 16, activations=activations)
    out, back = jax.vjp(lambda x, w: dense(x, FakeQuantized(w, quantization), transpose=transpose), x, kernel)
    np.testing.assert_allclose(out, dense(x, quantization.quantize(kernel), transpose=transpose), atol=1e-5)
    d_x, d_kernel = back(out)
    value = value_of(quantization.quantize(kernel))
    np.testing.assert_allclose(d_x, out @ (value if transpose else value.T), rtol=1e-4, atol=1e-4)
    rows = x if activations == "float" else np.round(x / (np.abs(x).max(-1, keepdims=True) / 127)) * (
        np.abs(x).max(-1, keepdims=True) / 127
    )
    expected = rows.T @ out
    np.testing.assert_allclose(d_kernel, expected.T if transpose else expected, rtol=1e-4, atol=1e-4)


def test_a_run_and_the_same_model_in_few_bits(tmp_path):
    (tmp_path / "text.txt").write_text("A rose is a rose is a rose.\n" * 200)
    overrides = {
        "train.steps": "4", "train.batch_size": "8", "train.checkpoint_every": "4", "train.eval_every": "-1",
        "train.sample_every": "-1", "data.source": str(tmp_path / "text.txt"), "data.sequence_length": "16",
        "model.hidden_size": "32", "model.intermediate_size": "64", "mesh.fsdp": "2",
    }  # fmt: skip
    config = configs.resolve(configs.apply_overrides(configs.load_config_file(str(CONFIG)), overrides))
    train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    model = fmjax.load(tmp_path / "run")
    kernel = model.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
    assert isinstance(kernel, jax.Array)
    assert all(len(np.unique(np.round(block, 6))) <= 15 for block in np.asarray(kernel)[0].T)
    few = METHODS.get("int4")(block=32).compress(model)
    assert isinstance(few.params["stack"]["blocks"]["mlp"]["up"]["kernel"], QTensor)
    tokens = np.arange(24).reshape(2, 12)
    np.testing.assert_allclose(few.apply(tokens), model.apply(tokens), atol=1e-5)
    # Samples of the run are drawn with kernels that are rounded once.
    saved = load_params(tmp_path / "run", shardings=placed(model.module, None, build_weights(config))[1])[0]
    assert any(isinstance(x, FakeQuantized) for x in jax.tree.leaves(saved, is_leaf=is_weight))
    for found, expected in zip(*map(jax.tree.leaves, (as_computed(saved), model.params))):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "int8", "block": 0}, {"format": "int4", "tile": 0}, {"format": "int4", "scales": "bfloat16"},
        {"format": "int3", "scales": "float16"}, {"format": "uint4"}, {"format": "nf4"}, {"format": "fp8", "block": 0},
        *({"format": "fp4", "scales": "power", "rounding": one} for one in ROUNDINGS),
    ],
)  # fmt: skip
def test_what_is_rounded_stays_as_it_is_when_it_is_rounded_again(options):
    quantization = FakeQuantization(**options).quantization
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(128, 48)) * np.exp(np.arange(48) / 8), jnp.float32)
    once = quantization.quantize(kernel).value()
    twice = quantization.quantize(once).value()
    np.testing.assert_allclose(twice, once, rtol=1e-5)


def test_what_cannot_be_rounded_is_refused():
    for scales in ("super", "float8"):
        with pytest.raises(ConfigError, match=f"scales='{scales}'|scales = '{scales}'"):
            FakeQuantization(scales=scales)
    for options in ({"format": "uint4", "scales": "bfloat16"}, {"half": True}):
        with pytest.raises(ConfigError, match="rounded twice would change again"):
            FakeQuantization(**options)
    assert FakeQuantization(half=False) == FakeQuantization()
    params = {"blocks": {"up": {"kernel": jnp.ones((2, 12, 8))}}, "norm": jnp.ones(3)}
    with pytest.raises(ConfigError, match="weights.block = 8: 'blocks/up/kernel': .* such as 6 or 12"):
        FakeQuantization(block=8).attach(params, None)
    with pytest.raises(ConfigError, match="weights.keep: 'down' matches no parameter"):
        FakeQuantization(block=4, keep=("down",)).attach(params, None)
    with pytest.raises(ConfigError, match="matches 'norm', which is no kernel .* can be quantized"):
        FakeQuantization(block=4, patterns=("norm",)).attach(params, None)
    kept = FakeQuantization(block=4, patterns=("kernel",), keep=("up",)).attach(params, None)
    assert isinstance(kept["blocks"]["up"]["kernel"], jax.Array)
