"""Low-rank adapters beside the kernels of a module (Hu et al. 2021, https://arxiv.org/abs/2106.09685), which may be
kept in few bits (QLoRA: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.adapt import WEIGHTS
from fmjax.adapt.kernels import is_box, is_kernel, matching
from fmjax.adapt.packed import boxed
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive
from fmjax.layers.codes import BITS
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.layers.weights import DoRAWeight, LoRAWeight, column_lengths, settled, value_of
from fmjax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Kernels [..., in, out] become kernel + alpha / rank * a @ b; the adapters a and b train,
    and nothing else unless `train.trainable` says so.

    a is drawn, normal with standard deviation 1 / sqrt(in), and b is zero: the module begins as the function that it is
    without adapters, up to what `base` loses. Each layer of a stack has its own.

    Attributes:
      rank: of the adapters.
      alpha: their scale times `rank`, so that another rank needs no other learning rate.
      patterns: a kernel is adapted if one of these regular expressions is found in its name, such as
        "stack/blocks/attention/query/kernel". As in the paper: queries and values.
      rslora: the scale is alpha / sqrt(rank), under which high ranks learn too (Kalajdzievski 2023,
        https://arxiv.org/abs/2312.03732).
      dora: the columns of the sum get lengths of their own, which train too (Liu et al. 2024,
        https://arxiv.org/abs/2402.09353).
      base: how kernels are kept that do not train: "float" as they are, or "int8", "int4", "nf4" or another format of
        `fmjax.layers.codes.FORMATS`.
      base_block: numbers along a kernel's inputs that share a scale.
      base_double: scales are kept in eight bits too.
      base_patterns: regular expressions of the kernels that are kept so, adapted or not.
      beneath: what becomes of parameters first, in place of `base`: of a model that begins as one of few bits is, the
        section that `fmjax.interop.initial.packed_section_of` gives.
    """

    trainable: ClassVar[tuple[str, ...]] = ("kernel/(a|b|magnitude)$",)

    rank: int = 8
    alpha: float = 16.0
    patterns: tuple[str, ...] = ("attention/(query|value)/kernel$",)
    rslora: bool = False
    dora: bool = False
    base: str = "float"
    base_block: int = 64
    base_double: bool = True
    base_patterns: tuple[str, ...] = ("blocks/.*kernel$",)
    beneath: Annotated[dict, WEIGHTS] | None = None

    def __post_init__(self):
        if self.beneath is not None and self.base != "float":
            raise ConfigError(f"weights.base = {self.base!r}, and weights.beneath says how kernels are kept; give one")
        check_positive(rank=self.rank)
        if not self.alpha > 0:
            raise ConfigError(f"weights.alpha = {self.alpha} must be positive")
        if not self.patterns:
            raise ConfigError("weights.patterns is empty: no kernel would be adapted; ('kernel$',) adapts all")
        check_choice("weights.base", self.base, ("float", *BITS))
        for field in ("patterns", "base_patterns"):
            for pattern in getattr(self, field):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(f"weights.{field}: {pattern!r} is not a regular expression ({error})") from None
        self.quantization  # checks the block

    @property
    def scale(self) -> float:
        """What a @ b is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def quantization(self) -> Quantization | None:
        """How kernels that do not train are kept; None as they are."""
        return None if self.base == "float" else Quantization(self.base, self.base_block, self.base_double)

    def stored(self, shapes: Any) -> dict[str, Callable[[jax.Array], QTensor]]:
        """See `fmjax.adapt.base.Weights`: the kernels of `base`. Raises ConfigError as `attach`."""
        return {name: functools.partial(self._kept, name) for name in self._chosen(shapes)[1]}

    @staticmethod
    def served(params: Any) -> Any:
        """What a model that is loaded computes with: kernels of few bits stay so, their adapters beside them."""
        return settled(params)

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`.

        Raises ConfigError for a pattern that matches nothing, or something that is not the kernel of a dense layer (an
        embedding table, an output head, a convolution), where `rank` is not below both sides of a kernel, and for a
        kernel that does not divide into blocks.
        """
        params = params if self.beneath is None else self.beneath.attach(params, key)
        leaves, structure = _flat(params)
        adapted, kept = self._chosen(params)
        found = []
        for index, (path, leaf) in enumerate(leaves):
            name = path_name(path)
            leaf = self._kept(name, leaf) if name in kept and not isinstance(leaf, QTensor) else leaf
            found.append(self._beside(name, leaf, jax.random.fold_in(key, index)) if name in adapted else leaf)
        return structure.unflatten(found)

    def _chosen(self, params) -> tuple[set[str], set[str]]:
        """(names of the kernels that are adapted, of those that `base` is of)."""
        leaves = {path_name(path): leaf for path, leaf in _flat(params)[0]}
        kernels = {name for name, leaf in leaves.items() if is_kernel(name, leaf)}
        adapted = matching("weights.patterns", self.patterns, list(leaves), kernels, "adapted")
        if self.base == "float":
            return adapted, set()
        return adapted, matching("weights.base_patterns", self.base_patterns, list(leaves), kernels, "quantized")

    def _kept(self, name: str, leaf):
        """A kernel in few bits, its parts boxed with axis names where it is."""
        try:
            return boxed(leaf, self.quantization)
        except ConfigError as error:
            raise ConfigError(f"weights.base_block = {self.base_block}: {name!r}: {error}") from None

    def _beside(self, name: str, leaf, key) -> LoRAWeight | DoRAWeight:
        """A kernel and its adapters, boxed with axis names where it is."""
        base = nn.unbox(leaf)
        *stack, fan_in, fan_out = base.shape
        if self.rank >= min(fan_in, fan_out):
            raise ConfigError(
                f"weights.rank = {self.rank} is not below both sides of {name!r} [{fan_in}, {fan_out}]; take a smaller "
                "one, or patterns without it"
            )
        a = jax.random.normal(key, (*stack, fan_in, self.rank), jnp.float32) * fan_in**-0.5
        b = jnp.zeros((*stack, self.rank, fan_out), jnp.float32)
        boxes = [x for x in jax.tree.leaves(leaf, is_leaf=is_box) if is_box(x)]
        box = lambda value, names: boxes[0].replace(value=value, names=names) if boxes else value
        *stacked, axis_in, axis_out = boxes[0].names if boxes else [None] * (len(stack) + 2)
        parts = leaf, box(a, (*stacked, axis_in, "rank")), box(b, (*stacked, "rank", axis_out))
        if not self.dora:
            return LoRAWeight(*parts, self.scale)
        magnitude = column_lengths(value_of(base))
        return DoRAWeight(*parts, box(magnitude, (*stacked, axis_out)), self.scale)


def _flat(params):
    """(leaves with their paths, structure), boxes and kernels that are of few bits already being leaves."""
    return jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: is_box(x) or isinstance(x, QTensor))
