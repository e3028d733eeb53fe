"""Formats of few bits, how codes lie in bytes, scales of several kinds: against ml_dtypes, numpy and bounds."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers import codes, scales
from fmjax.layers.codes import FORMATS, PLANES
from fmjax.layers.dense import dense
from fmjax.layers.embed import Embedding
from fmjax.layers.quantized import Quantization, quantization_of


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", PLANES)
def test_packed_codes_come_back_and_take_their_bits(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, size=(2, 16, 3)).astype(np.uint8)
    packed = codes.pack(values, bits)
    assert packed.shape == (2, 2 * bits, 3) and packed.dtype == np.uint8
    np.testing.assert_array_equal(codes.unpack(packed, bits), values)
    np.testing.assert_array_equal(codes.pack(jnp.asarray(values), bits), packed)
    np.testing.assert_array_equal(codes.unpack(jnp.asarray(packed), bits), values)
    if bits == 4:
        np.testing.assert_array_equal(packed, values[:, ::2] * 16 + values[:, 1::2])


def test_floats_of_four_and_eight_bits_round_as_ml_dtypes():
    for format, dtype in (("fp4", ml_dtypes.float4_e2m1fn), ("fp8", ml_dtypes.float8_e4m3fn)):
        known = np.arange(2 ** FORMATS[format].bits, dtype=np.uint8).view(dtype).astype(np.float32)
        if format == "fp4":
            np.testing.assert_array_equal(np.asarray(codes.E2M1, np.float32), known)
        known = np.unique(known[np.isfinite(known)])
        ties = (known[1:] + known[:-1]) / 2
        x = np.concatenate([known, ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf), drawn(200)])
        x = np.resize(x, (len(x) // 2 * 2, 1)).astype(np.float32)
        found = codes.to_levels(codes.to_codes(jnp.asarray(x), format), format)
        np.testing.assert_array_equal(found, x.astype(dtype).astype(np.float32))


@pytest.fixture(scope="module")
def qwix():
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / "qwix.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize(
    "name, quantization",
    [
        ("int8", Quantization("int8", 0, half=True)), ("int4", Quantization("int4", 16, half=True)),
        ("int4_tile", Quantization("int4", 16, tile=4, half=True)), ("fp8", Quantization("fp8", 0)),
        ("nf4", Quantization("nf4", 16)), ("mxfp4", Quantization("fp4", 32, scales="power", rounding="rceil")),
    ],
)  # fmt: skip
def test_scales_and_levels_are_those_of_qwix(name, quantization, qwix):
    weight = quantization.quantize(jnp.asarray(qwix["kernel"]))
    np.testing.assert_allclose(scale_of(weight), qwix[f"{name}/scale"], rtol=1e-6)
    found, expected = np.asarray(codes.to_levels(weight.codes, weight.format)), qwix[f"{name}/numbers"]
    # The largest of a block lies between two levels, and which is nearer hangs on the last bit.
    cut = np.abs(qwix["kernel"]).reshape(64 // weight.block, weight.block, 12 // weight.tile, weight.tile)
    inside = (cut < cut.max((1, 3), keepdims=True)).reshape(64, 12) | (not quantization.half)
    if name == "nf4":  # places among the levels there
        expected = qwix[f"{name}/value"] / np.repeat(qwix[f"{name}/scale"], 16, 0)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-6)
    np.testing.assert_allclose(np.asarray(weight.value())[inside], qwix[f"{name}/value"][inside], rtol=1e-5, atol=1e-6)


def test_a_product_of_whole_numbers_is_near_that_of_qwix(qwix):
    """Which divides activations by the largest over 127.5, and not over 127."""
    weight = Quantization("int8", 0, half=True, activations="int8").quantize(jnp.asarray(qwix["kernel"]))
    exact = qwix["x"] @ qwix["kernel"]
    ours, theirs = (np.abs(x - exact).max(0) / np.abs(exact).max(0) for x in (dense(qwix["x"], weight), qwix["dot"]))
    assert np.max(ours) < 0.03 and np.max(theirs) < 0.03


ERRORS = {"int8": 127, "int4": 7, "int6": 31, "int3": 3, "uint4": 15, "uint8": 255}


@pytest.mark.parametrize("format", ERRORS)
def test_whole_numbers_are_within_half_a_step(format):
    kernel = drawn(2, 32, 8)
    for block, tile in ((16, 1), (0, 1), (16, 4), (0, 0)):
        weight = Quantization(format, block, tile=tile).quantize(jnp.asarray(kernel))
        block, tile = block or 32, tile or 8
        assert weight.shape == kernel.shape and weight.scales.shape == (2, 32 // block, 8 // tile)
        cut = kernel.reshape(2, 32 // block, block, 8 // tile, tile)
        high, low = cut.max((2, 4)), cut.min((2, 4))
        span = np.maximum(high, 0) - np.minimum(low, 0) if format[0] == "u" else np.maximum(high, -low)
        step = span / ERRORS[format]
        np.testing.assert_allclose(weight.scales, step, rtol=1e-6)
        error = np.abs(np.asarray(weight.value()) - kernel).reshape(cut.shape).max((2, 4))
        # Of unsigned ones the level that stands for 0 is rounded to a whole one, and the ends with it.
        assert np.all(error <= step * (1.0 if format[0] == "u" else 0.5) + 1e-6)


def test_the_half_step_uses_the_least_level_as_compressed_tensors_does():
    kernel = drawn(16, 4)
    weight = Quantization("int4", 16, half=True).quantize(jnp.asarray(kernel))
    scale = np.abs(kernel).max(0) / 7.5
    expected = np.clip(np.round(kernel / scale), -8, 7) * scale
    inside = np.abs(kernel) < np.abs(kernel).max(0)  # the largest is as near to -7 as to -8
    np.testing.assert_allclose(np.asarray(weight.value())[inside], expected[inside], atol=1e-6)
    assert np.max(np.abs(weight.value() - kernel) / scale) < 0.5 + 1e-5


@pytest.mark.parametrize("rounding", scales.ROUNDINGS)
def test_powers_of_two_by_their_definitions(rounding):
    """Against the words of OCP MX 1.0 and of the modes, in exact arithmetic."""
    largest = np.abs(drawn(400)) * np.exp2(np.random.default_rng(1).integers(-20, 20, 400)).astype(np.float32)
    largest = np.concatenate([largest, np.float32([1, 2, 3, 3.5, 4, 6, 7, 7.5, 0.75])])
    logs = np.log2(largest.astype(np.float64))
    down = FORMATS["fp4"].exponent
    mantissa = largest / np.exp2(np.floor(logs))
    expected = {
        "floor": np.floor(logs) - down,
        "ceil": np.ceil(logs) - down,
        "even": np.floor(logs) + (mantissa >= 1.75) - down,
        "rceil": np.ceil(np.log2(largest.astype(np.float64) / 6.0)),
    }[rounding]
    found = scales.power_scales(jnp.asarray(largest), FORMATS["fp4"], rounding)
    np.testing.assert_array_equal(found.value(), np.exp2(expected))
    assert found.rounding == rounding
    if rounding == "rceil":
        assert np.all(largest / np.asarray(found.value()) <= 6) and np.all(largest / np.asarray(found.value()) > 3)


def test_mxfp4_is_the_nearest_level_and_says_how_its_scales_were_rounded():
    kernel = drawn(64, 3)
    quantization = Quantization("fp4", 32, scales="power", rounding="even")
    weight = quantization.quantize(jnp.asarray(kernel))
    scale = np.repeat(np.asarray(weight.scales.value()), 32, axis=0)
    expected = (kernel / scale).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
    np.testing.assert_array_equal(weight.value(), expected)
    assert quantization_of(weight) == quantization
    assert sum(x.nbytes for x in jax.tree.leaves(weight)) == 64 * 3 // 2 + 2 * 3


def test_scales_of_fewer_bits_and_what_they_lose():
    kernel = drawn(512, 3)
    plain = Quantization("int4", 32).quantize(jnp.asarray(kernel))
    for kept, loss in (("bfloat16", 2**-8), ("float16", 2**-11), ("super", 1 / 127)):
        weight = Quantization("int4", 32, scales=kept).quantize(jnp.asarray(kernel))
        found = quantization_of(weight)
        assert found.scales == kept and found.block == 32
        np.testing.assert_allclose(np.asarray(weight.value()), np.asarray(plain.value()), atol=4 / 7 * 1.2)
        np.testing.assert_allclose(scale_of(weight), scale_of(plain), rtol=2 * loss, atol=loss * scale_of(plain).max())


def scale_of(weight):
    return np.asarray(scales.scale_values(weight.scales))


@pytest.mark.parametrize("format, block, tile", [("int8", 0, 1), ("int4", 8, 1), ("uint4", 16, 4), ("fp8", 0, 1)])
def test_rows_of_a_table_are_those_of_its_value(format, block, tile):
    quantization = Quantization(format, block, tile=tile, is_table=True)
    table = quantization.quantize(jnp.asarray(drawn(12, 16)))
    assert table.shape == (12, 16) and table.scales.shape == (16 // (block or 16), 12 // tile)
    turned = Quantization(format, block, tile=tile).quantize(jnp.asarray(drawn(12, 16).T))
    np.testing.assert_array_equal(table.value(), turned.value().T)
    assert dataclasses.replace(quantization, block=table.block) == quantization_of(table)
    x = drawn(3, 16)
    np.testing.assert_allclose(dense(x, table, transpose=True), x @ table.value().T, atol=1e-5)
    index = jnp.asarray([[0, 5, 11], [3, 3, 1]])
    np.testing.assert_allclose(table.rows(index), table.value()[index], atol=1e-6)
    module = Embedding(12, 16)
    found = module.apply({"params": {"embedding": table}}, jnp.asarray([2, -1, 12]))
    np.testing.assert_allclose(found[0], table.value()[2], atol=1e-6)
    assert np.isnan(np.asarray(found[1:])).all()


@pytest.mark.parametrize("format, block, tile", [("int8", 0, 1), ("int4", 16, 1), ("uint4", 16, 4), ("int8", 0, 0)])
@pytest.mark.parametrize("transpose", [False, True])
def test_products_of_whole_numbers_against_numpy(format, block, tile, transpose):
    kernel, x = drawn(32, 8), drawn(3, 5, 8 if transpose else 32, seed=1)
    weight = Quantization(format, block, tile=tile, activations="int8").quantize(jnp.asarray(kernel))
    value = np.asarray(weight.value(), np.float64)
    value = value.T if transpose else value
    for weight in (weight, weight.replace(input_scale=jnp.float32(0.02))):
        step = np.abs(x).max(-1, keepdims=True) / np.float32(127) if weight.input_scale is None else np.float32(0.02)
        rounded = np.clip(np.round(x / step), -127, 127).astype(np.float64) * step
        out, back = jax.vjp(lambda x: dense(x, weight, transpose=transpose), jnp.asarray(x))
        np.testing.assert_allclose(out, rounded @ value, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(back(out)[0], np.asarray(out) @ value.T, rtol=1e-4, atol=1e-4)
    assert "i32[" in str(jax.make_jaxpr(lambda x: dense(x, weight, transpose=transpose))(x))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(format="int5x"), "format='int5x' is not known; did you mean 'int5'"),
        (dict(format="int4", block=9), "block = 9 must be even"),
        (dict(format="int3", block=12), "block = 12 must be a multiple of 8"),
        (dict(format="int8", scales="power"), "powers? .* formats of floats|'power' is for formats of floats"),
        (dict(format="nf4", activations="int8"), "activations of whole numbers need kernels of whole numbers"),
        (dict(format="uint4", half=True), "half = True is for symmetric"),
        (dict(format="int8", static=True), "static = True is of activations"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Quantization(**options)


def test_kernels_that_do_not_divide_are_refused_with_what_would():
    with pytest.raises(ConfigError, match=r"\[96, 8\] cannot be cut into blocks of 64 .* such as 48 or 96"):
        Quantization("int8", 64).cut((96, 8))
    with pytest.raises(ConfigError, match=r"tiles of 3 along its last axis; take a tile that divides 8"):
        Quantization("int8", 0, tile=3).cut((96, 8))
    with pytest.raises(ConfigError, match=r"\[9, 8\] has no whole bytes of int4"):
        Quantization("int4", 0).cut((9, 8))
