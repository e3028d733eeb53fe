"""Writes qwix.npz: a kernel [in, out] in few bits by `qwix`.

    pip install qwix && python tests/oracles/make_qwix_fixture.py

Of each case the whole numbers or floats (`CASE/numbers`, float32), their scales (`CASE/scale`) and what they stand for
(`CASE/value`). Of `dot` a product with int8 activations, each row by its own largest value.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import qwix

CASES = {
    "int8": (jnp.int8, {"channelwise_axes": [1]}),
    "int4": (jnp.int4, {"channelwise_axes": [1], "tiled_axes": {0: 16}}),
    "int4_tile": (jnp.int4, {"tiled_axes": {0: 16, 1: 4}}),
    "fp8": (jnp.float8_e4m3fn, {"channelwise_axes": [1]}),
    "nf4": ("nf4", {"channelwise_axes": [1], "tiled_axes": {0: 16}}),
    "mxfp4": ("mxfp4", {"channelwise_axes": [1], "tiled_axes": {0: 32}}),
}

rng = np.random.default_rng(0)
kernel = (rng.normal(size=(64, 12)) * np.linspace(0.1, 2, 12)).astype(np.float32)
x = rng.normal(size=(5, 64)).astype(np.float32)
found = {"kernel": kernel, "x": x}
for name, (qtype, options) in CASES.items():
    quantized = qwix.quantize(jnp.asarray(kernel), qtype, **options)
    found[f"{name}/numbers"] = np.asarray(quantized.qvalue.astype(jnp.float32))
    found[f"{name}/scale"] = np.asarray(quantized.scale.astype(jnp.float32))
    found[f"{name}/value"] = np.asarray(qwix.dequantize(quantized).astype(jnp.float32))
rows = qwix.quantize(jnp.asarray(x), jnp.int8, channelwise_axes=[0])
weight = qwix.quantize(jnp.asarray(kernel), jnp.int8, channelwise_axes=[1])
found["dot"] = np.asarray(qwix.dot_general(rows, weight, (((1,), (0,)), ((), ()))))
np.savez_compressed(pathlib.Path(__file__).with_name("qwix.npz"), **found)
