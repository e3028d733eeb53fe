"""Rotated models: an orthogonal matrix turns what goes from block to block, so that no channel is larger than others,
and is undone inside the kernels (QuaRot, Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456, sections 4.1 and 4.2:
what can be computed into kernels; SliceGPT, Ashkboos et al. 2024, https://arxiv.org/abs/2401.15024, theorem 1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.compress.smaller import check_whole, with_model
from fmjax.errors import InputError
from fmjax.inference.model import Model
from fmjax.layers.checks import check_choice
from fmjax.layers.transformer_config import TransformerConfig

READERS = {
    "attention_norm": ("attention/query", "attention/key", "attention/value"), "mlp_norm": ("mlp/gate", "mlp/up"),
}  # fmt: skip
WRITERS = ("attention/out", "mlp/down")
KINDS = ("hadamard", "orthogonal")


def rotation(size: int, kind: str, seed: int) -> np.ndarray:
    """An orthogonal matrix, float64 [size, size].

    Args:
      kind: "hadamard": a Hadamard matrix of the largest power of two in `size`, times a random orthogonal one of the
        odd rest, with the signs of its rows drawn; "orthogonal": any, drawn uniformly.
    """
    drawn = np.random.default_rng(seed)
    if kind == "orthogonal":
        return _uniform(size, drawn)
    power = size & -size
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = drawn.choice([-1.0, 1.0], size)
    return signs[:, None] * np.kron(_uniform(size // power, drawn), hadamard / power**0.5)


def _uniform(size: int, drawn: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(drawn.normal(size=(size, size)))
    return q * np.sign(np.diag(r))


def problem_of(config: TransformerConfig, params: Mapping[str, Any], may_untie: bool) -> str | None:
    """Why a decoder cannot be rotated; None where it can. may_untie: whether it can have a head of its own."""
    if config.norm == "layernorm":
        return "it has LayerNorm, which subtracts a mean over the channels; RMSNorm alone commutes with a rotation"
    if config.placement != "pre":
        return f"its norms are placed {config.placement!r}; their scales can be moved into kernels with 'pre' alone"
    if not may_untie:
        return "its output head is its embedding, and it has no field tie_embeddings that could change that"
    if more := sorted(set(params) - {"token_embedding", "head", "stack"}):
        return f"it has {more[0]!r} besides embedding, stack and head, which would have to be rotated too"
    if "prefix" in params["stack"]["blocks"]["attention"]:
        return "it has a learned prefix, whose values would have to be rotated too"
    return None


def rotated(
    params: Mapping[str, Any], config: TransformerConfig, tied: bool, kind: str = "hadamard", seed: int = 0,
    heads: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The parameters of a decoder with a head of its own that computes the same logits, rotated.

    The scales of norms go into the kernels that read them. The rotation R of the residual stream goes into the
    embedding (E R), the kernels that read the stream (R^T W) and those that write to it (W R); with `heads` another
    turns each head's values and is undone in what reads them. Computed in float32; each array keeps its dtype.

    Args:
      params: of a decoder `problem_of` tells nothing about, with stacked blocks.
      tied: whether the embedding is the output head too, which it cannot be once the last norm's scale is in the head.
      kind, seed: see `rotation`.
    """
    turn = jnp.asarray(rotation(config.hidden_size, kind, seed), jnp.float32)
    embedding = params["token_embedding"]["embedding"]
    head = (embedding.T if tied else params["head"]).astype(jnp.float32)
    offset = 1.0 if config.norm == "rmsnorm_offset" else 0.0
    stack = dict(params["stack"])
    last = jnp.ones(config.hidden_size)
    if "final_norm" in stack:
        scale = stack["final_norm"]["scale"]
        last = scale.astype(jnp.float32) + offset
        stack["final_norm"] = {"scale": jnp.full_like(scale, 1.0 - offset)}
    of_heads = jnp.asarray(rotation(config.head_dim, kind, seed + 1), jnp.float32) if heads else None
    stack["blocks"] = _rotated_blocks(stack["blocks"], turn, of_heads, offset)
    return {
        "token_embedding": {"embedding": _product(embedding, turn).astype(embedding.dtype)},
        "stack": stack,
        "head": _product(turn.T, head * last[:, None]).astype(embedding.dtype if tied else params["head"].dtype),
    }


@jax.jit
def _rotated_blocks(blocks, turn, of_heads, offset):
    """Of stacked blocks, each leaf [layers, ...]."""
    found = {name: dict(part) for name, part in jax.tree.map(lambda x: x.astype(jnp.float32), blocks).items()}

    def layer(path):
        part, name = path.split("/")
        return found[part].get(name)

    def change(path, **new):
        part, name = path.split("/")
        found[part][name] = {**found[part][name], **new}

    for norm, readers in READERS.items():
        scale = found[norm]["scale"] + offset
        for path in readers:
            if (held := layer(path)) is not None:
                change(path, kernel=_product(turn.T, held["kernel"] * scale[..., None]))
        found[norm] = {"scale": jnp.full_like(scale, 1.0 - offset)}
    for path in WRITERS:
        change(path, **{name: _product(x, turn) for name, x in layer(path).items()})  # kernel [L, in, D], bias [L, D]
    if of_heads is not None:
        size = len(of_heads)
        turned = lambda x: _product(x.reshape(*x.shape[:-1], -1, size), of_heads).reshape(x.shape)
        change("attention/value", **{name: turned(x) for name, x in layer("attention/value").items()})
        kernel = layer("attention/out")["kernel"]
        by_head = kernel.reshape(len(kernel), -1, size, kernel.shape[-1])
        change("attention/out", kernel=_product(of_heads.T, by_head).reshape(kernel.shape))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), found, dict(blocks))


def _product(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Rotate:
    """The same model with what goes from block to block turned by an orthogonal matrix, so that no channel is larger
    than others, and with an output head of its own (Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456). A method
    that quantizes comes after it.

    Attributes:
      kind: "hadamard" or "orthogonal" (`rotation`).
      seed: of what is drawn of it.
      heads: the values of each attention head are turned too.
    """

    needs_calibration: ClassVar[bool] = False
    name: ClassVar[str] = "rotate"

    kind: str = "hadamard"
    seed: int = 0
    heads: bool = True

    def __post_init__(self):
        check_choice("kind", self.kind, KINDS)

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """See `fmjax.compress.base.Method`, but for the module, whose head is not its embedding.

        Raises InputError for a model that is no decoder with RMSNorm before each half of a block, saying why.
        """
        check_whole(model)
        config, module = getattr(model.module, "transformer", None), model.module
        if not isinstance(config, TransformerConfig) or "stack" not in model.params:
            raise InputError(f"{model} is no decoder with an embedding, a stack and a head; it cannot be rotated")
        if "blocks" not in model.params["stack"]:
            raise InputError(f"{model} has layers that are not stacked; load it without unrolled=True")
        if problem := problem_of(config, model.params, hasattr(module, "tie_embeddings")):
            raise InputError(f"{model} cannot be rotated: {problem}; take a method that needs no rotation")
        with model.inference():
            params = rotated(model.params, config, module.tie_embeddings, self.kind, self.seed, self.heads)
        told = {"method": self.name, **dataclasses.asdict(self)}
        return with_model(model, params, {"": {"tie_embeddings": False}}, told, "take a method that needs no rotation")
