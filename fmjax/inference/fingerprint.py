"""A short name for what a model computes: its weights, architecture and tokenizer."""

import dataclasses
import hashlib
import importlib.metadata

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fmjax
from fmjax.code_digest import code_digest, describe, own_digest
from fmjax.data.codecs.base import fingerprint
from fmjax.layers.weights import is_weight
from fmjax.parallel.placement import whole

LANES = 4
SMALL = 2**20
"""Bytes of an array up to which it is hashed on the host."""
LIBRARIES = (
    "jax", "jaxlib", "flax", "numpy", "sentencepiece", "tokenizers", "pillow", "scipy", "scikit-learn",
)  # fmt: skip
"""Whose versions count: they compute the answers, make tokens of texts, and read, scale and change images."""


def model_fingerprint(model) -> str:
    """32 hexadecimal digits that change with any weight, option of the architecture, the tokenizer, its chat templates,
    the codecs, what the objective carries, the other models that values are made with, the precision of matrix
    products, and the code: fmjax's own that computes answers, that of modules, functions and kinds of models from
    elsewhere, and the versions of libraries.

    The weights are hashed where they lie, the same on one device as split over many.

    Args:
      model: a `fmjax.load.Model`.
    """
    functions = {name: getattr(f, "func", f) for name, f in sorted(model.functions.items())}
    parts = [
        fmjax.__version__,
        own_digest(),
        *(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES),
        code_digest([type(model), *_classes(model.module), *functions.values(), *map(type, model.codecs.values())]),
        describe(model.module),
        describe(functions),
        str(getattr(model.tokenizer, "fingerprint", None)),
        repr((model.add_bos, model.context_length, model.eos_ids)),
        *map(repr, sorted(getattr(model.tokenizer, "chat_templates", {}).items())),
        *(f"{modality} {fingerprint(codec)}" for modality, codec in sorted(model.codecs.items())),
        repr((jax.config.jax_default_matmul_precision, jax.config.jax_enable_x64)),
    ]
    parts += _weights(model.params)
    with model.inference():
        parts += array_fingerprints((model.params, model.functions, model.carry))
        for name in getattr(model.objective, "OPENED", ()):
            if getattr(model.objective, name) is not None:
                other = model.opened(name)
                parts += [name, describe(other.module), *array_fingerprints((other.params, other.state, other.carry))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _classes(module) -> list:
    """The classes of a module and of the modules among its fields, and the functions there."""
    found = [type(module)]
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name != "parent" and isinstance(value, nn.Module):
            found += _classes(value)
        elif hasattr(value, "__qualname__") and isinstance(value.__module__, str):
            found.append(value)
    return found


def _weights(params) -> list[str]:
    """What parameters say in no array, such as the scale of an adapter, where some are more than arrays."""
    has_weights = any(is_weight(x) for x in jax.tree.leaves(params, is_leaf=is_weight))
    return [str(jax.tree.structure(params))] if has_weights else []


def content_fingerprint(other) -> str:
    """Of a model in the step, a `fmjax.objectives.base.OtherModel`: its module, and the content of its arrays."""
    arrays = (other.params, other.state, *([other.carry] if other.carry else []))
    parts = [describe(other.module), *_weights(other.params), *array_fingerprints(arrays)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def array_fingerprints(tree) -> list[str]:
    """Path, shape, dtype and a digest of the content of every array of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    leaves = [(path, jnp.asarray(leaf)) for path, leaf in leaves]
    # All are on their way before the first is read. A program for each shape takes longer to compile than small arrays
    # take on the host.
    small = [leaf.nbytes <= SMALL and leaf.is_fully_addressable for _, leaf in leaves]
    digests = [leaf if is_small else _digest(leaf) for is_small, (_, leaf) in zip(small, leaves)]
    digests = [_digest_on_host(x) if is_small else x for is_small, x in zip(small, jax.device_get(digests))]
    return [
        f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {np.asarray(digest).tobytes().hex()}"
        for (path, leaf), digest in zip(leaves, digests)
    ]


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """uint32 [LANES]: sums, modulo 2**32, of each element's bits mixed with its place; exact in any order."""
    size = x.dtype.itemsize
    if x.dtype == jnp.bool_:
        x, size = x.astype(jnp.uint8), 1
    # Of eight bytes two numbers of four, along a further axis.
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[size])
    bits = bits.astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, length in enumerate(bits.shape):
        place = place * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = [_mix(_mix(place + np.uint32(0x9E3779B9 * (lane + 1) % 2**32)) ^ bits) for lane in range(LANES)]
    return whole(jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in mixed]))


def _digest_on_host(x: np.ndarray) -> np.ndarray:
    """As `_digest`, in numpy."""
    bits = np.ascontiguousarray(x).reshape(-1)
    bits = bits.view({1: np.uint8, 2: np.uint16}.get(bits.itemsize, np.uint32)).astype(np.uint32)
    place = np.arange(bits.size, dtype=np.uint32)
    mixed = [_mix(_mix(place + np.uint32(0x9E3779B9 * (lane + 1) % 2**32)) ^ bits) for lane in range(LANES)]
    return np.stack([np.sum(lane, dtype=np.uint32) for lane in mixed])


def _mix(x):
    """The 32-bit finalizer of MurmurHash3 (Appleby): every bit of the input changes every bit of the output."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
