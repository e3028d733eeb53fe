"""Scales that are moved between channels and kernels leave the function as it is; AWQ's and SmoothQuant's are those
that their papers define."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.compress.awq import STEPS, best_scales, clipped
from fmjax.compress.calibrate import restacked, unstacked
from fmjax.compress.folding import Channels, channels_of, scaled
from fmjax.compress.smoothquant import smoothed
from fmjax.layers.quantized import Quantization
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from tests.quick_keys import quick_key
from tests.small_models import applied, random_model, stirred

SIZES = {"num_layers": 2, "hidden_size": 16, "num_heads": 4, "vocab_size": 32, "max_length": 16}
SECTIONS = {
    "gpt": {"name": "gpt", **SIZES},
    "llama": {"name": "llama", **SIZES, "intermediate_size": 24, "num_kv_heads": 2},
    "gemma": {"name": "gemma3", **SIZES, "intermediate_size": 24, "head_dim": 4, "num_kv_heads": 2},
    "magneto": {"name": "magneto", **SIZES},
    "bert": {"name": "bert", **SIZES},
}
SCALED = {
    "gpt": {"attention_norm", "mlp_norm", "attention/value"},
    "llama": {"attention_norm", "mlp_norm", "attention/value", "mlp/up"},
    "gemma": {"attention_norm", "mlp_norm", "attention/value", "mlp/up"},
    "magneto": {"attention_norm", "mlp_norm", "attention/inner_norm", "mlp/inner_norm"},
    "bert": {"attention/value"},
}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 9), np.int32)


CONFIGS = {
    "normed": (dict(placement="normed", norm="layernorm"), {"mlp_norm", "attention/value", "mlp/up"}),
    "cross": (
        dict(placement="pre", norm="rmsnorm", cross_attention=True),
        {"attention_norm", "cross_norm", "mlp_norm", "attention/value", "cross_attention/value", "mlp/up"},
    ),
    "cross_sub": (
        dict(placement="sub", norm="layernorm", cross_attention=True),
        {
            "attention_norm", "cross_norm", "mlp_norm", "attention/inner_norm", "cross_attention/inner_norm",
            "mlp/inner_norm",
        },
    ),
}  # fmt: skip


def blocks_changed(model, change):
    """The model's parameters with `change(config, block)` of each block."""
    config, stack = model.module.transformer, model.params["stack"]
    blocks = [change(config, block) for block in unstacked(stack, config.num_layers)]
    return {**model.params, "stack": restacked(stack, blocks)}


@pytest.mark.parametrize("family", SECTIONS)
def test_scaled_channels_leave_the_function_as_it_is(family):
    model = random_model(SECTIONS[family])
    model = type(model)(model.module, stirred(model.params), model.config)
    params = blocks_changed(model, lambda config, block: all_scaled(config, block, SCALED[family]))
    before, after = (applied(model.module, {"params": p}, TOKENS) for p in (model.params, params))
    np.testing.assert_allclose(after, before, atol=2e-4, rtol=1e-4)
    kernels = lambda p: p["stack"]["blocks"]["attention"]["out"]["kernel"]  # noqa: E731
    assert np.abs(np.asarray(kernels(params)) - np.asarray(kernels(model.params))).max() > 0.01


def all_scaled(config, block, makers):
    """The block with every channel that can be scaled, which are those of these makers, scaled by drawn numbers."""
    found, drawn = channels_of(config, block), np.random.default_rng(1)
    assert {channels.maker for channels in found} == makers
    for channels in found:
        size = channels.shared(jnp.ones(len(reader(block, channels)))).shape[0]
        block = scaled(block, config, channels, jnp.asarray(np.exp(drawn.normal(size=size)), jnp.float32))
    return block


@pytest.mark.parametrize("case", CONFIGS)
def test_stacks_with_a_memory_or_normalised_sums_compute_what_they_did(case):
    fields, makers = CONFIGS[case]
    config = TransformerConfig(1, 16, 24, 4, 2, 4, qkv_bias=True, **fields)
    drawn = np.random.default_rng(2)
    x, memory = (jnp.asarray(drawn.normal(size=(2, n, 16)), jnp.float32) for n in (5, 3))
    told = {"memory": (memory, None)} if config.cross_attention else {}
    module = Transformer(config)
    params = stirred(nn.unbox(jax.jit(module.init)(quick_key(0), x, **told)["params"]))
    blocks = [all_scaled(config, block, makers) for block in unstacked(params, 1)]
    before, after = (applied(module, {"params": p}, x, **told)[0] for p in (params, restacked(params, blocks)))
    np.testing.assert_allclose(after, before, atol=2e-4, rtol=1e-4)
    out = "cross_attention" if config.cross_attention else "attention"
    assert np.abs(blocks[0][out]["out"]["kernel"] - params["blocks"][out]["out"]["kernel"][0]).max() > 0.01


def reader(block, channels):
    part, name = channels.readers[0].split("/")
    return block[part][name]["kernel"]


def test_awq_searches_the_scales_under_which_least_of_the_product_is_lost():
    """Its search in numpy on the inputs themselves (auto_scale.py of the authors' code)."""
    drawn = np.random.default_rng(2)
    x = drawn.normal(size=(200, 32)) * np.exp(drawn.normal(size=32) * 1.5)
    kernels = [drawn.normal(size=(32, n)).astype(np.float32) for n in (8, 12)]
    kind = Quantization("int4", 16)
    rounded = lambda w: np.asarray(kind.quantize(jnp.asarray(w, jnp.float32)).value())  # noqa: E731
    size, losses = np.abs(x).mean(0), []
    for ratio in np.arange(STEPS) / STEPS:
        scales = np.maximum(size**ratio, 1e-4)
        scales /= np.sqrt(scales.max() * scales.min())
        losses.append(sum(((x @ w - (x / scales) @ rounded(w * scales[:, None])) ** 2).sum() for w in kernels))
    best = np.maximum(size ** (np.argmin(losses) / STEPS), 1e-4)
    channels = Channels(("mlp/gate", "mlp/up"), "mlp_norm")
    told = jnp.asarray(x.T @ x, jnp.float32), jnp.asarray(size, jnp.float32)
    found, tried = best_scales(tuple(map(jnp.asarray, kernels)), *told, channels, kind)
    np.testing.assert_allclose(tried, losses, rtol=2e-2)
    np.testing.assert_allclose(found, best / np.sqrt(best.max() * best.min()), rtol=1e-3)
    assert tried.min() < 0.8 * tried[0]


@pytest.mark.parametrize("quantization", [Quantization("int3", 8), Quantization("uint4", 16, tile=4)])
def test_clipping_loses_no_more_of_any_output_and_less_of_most(quantization):
    drawn = np.random.default_rng(4)
    x = drawn.normal(size=(100, 32)) @ drawn.normal(size=(32, 32)) * np.exp(drawn.normal(size=32))
    kernel = jnp.asarray(drawn.standard_t(4, size=(32, 24)), jnp.float32)
    made = clipped(kernel, jnp.asarray(x.T @ x, jnp.float32), quantization)
    value = lambda w: np.asarray(quantization.quantize(w).value(), np.float64)  # noqa: E731
    lost = lambda w: ((x @ (value(w) - np.asarray(kernel))) ** 2).sum(0).reshape(-1, quantization.tile).sum(1)  # noqa: E731
    before, after = lost(kernel), lost(made)
    assert np.all(after <= before * (1 + 1e-4)) and np.mean(after < 0.99 * before) > 0.5
    share = np.abs(made).max(0) / np.abs(kernel).max(0)
    assert np.all((share >= 0.55 - 1e-6) & (share <= 1))


def test_scales_of_values_are_shared_by_the_heads_that_read_them():
    channels = Channels(("attention/out",), "attention/value", is_norm=False, repeats=2, head_dim=3)
    read = jnp.arange(12.0)  # four heads of queries, two of values
    made = channels.shared(read)
    np.testing.assert_array_equal(made, [1.5, 2.5, 3.5, 7.5, 8.5, 9.5])
    np.testing.assert_array_equal(channels.spread(made), [*[1.5, 2.5, 3.5] * 2, *[7.5, 8.5, 9.5] * 2])


def test_smoothing_by_a_half_makes_activations_and_kernels_equally_large():
    model = random_model(SECTIONS["llama"])
    drawn = np.random.default_rng(3)
    sums = {"channels": {"largest": jnp.asarray(np.exp(drawn.normal(size=16)), jnp.float32)}}
    told = {f"{part}/{name}": sums for part, name in (("attention", "query"), ("mlp", "gate"))}

    def change(config, block):
        smooth = smoothed(block, config, told)
        for part, names in (("attention", ("query", "key", "value")), ("mlp", ("gate", "up"))):
            scales = block[f"{part}_norm"]["scale"] / smooth[f"{part}_norm"]["scale"]
            largest = jnp.stack([jnp.abs(smooth[part][name]["kernel"]).max(1) for name in names]).max(0)
            np.testing.assert_allclose(sums["channels"]["largest"] / scales, largest, rtol=1e-4)
        return smooth

    params = blocks_changed(model, change)
    before, after = (applied(model.module, {"params": p}, TOKENS) for p in (model.params, params))
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert jax.tree.structure(params) == jax.tree.structure(model.params)
