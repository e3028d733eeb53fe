"""Low-rank adapters beside the kernels of a module (Hu et al. 2021, https://arxiv.org/abs/2106.09685), which may be
kept in few bits (QLoRA: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

import dataclasses
import re
from collections.abc import Container, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.adapt.packed import boxed
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive
from fmjax.layers.codes import BITS
from fmjax.layers.quantized import Quantization
from fmjax.layers.weights import DoRAWeight, LoRAWeight, column_lengths, value_of
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

    def __post_init__(self):
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

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`.

        Raises ConfigError for a pattern that matches nothing, or something that is not the kernel of a dense layer (an
        embedding table, an output head, a convolution), where `rank` is not below both sides of a kernel, and for a
        kernel that does not divide into blocks.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_box)
        names = [path_name(path) for path, _ in leaves]
        kernels = {name for name, (_, leaf) in zip(names, leaves) if _is_kernel(name, leaf)}
        adapted = _matching("weights.patterns", self.patterns, names, kernels)
        kept = set() if self.base == "float" else _matching("weights.base_patterns", self.base_patterns, names, kernels)
        found = []
        for index, (name, (_, leaf)) in enumerate(zip(names, leaves)):
            leaf = self._kept(name, leaf) if name in kept else leaf
            found.append(self._beside(name, leaf, jax.random.fold_in(key, index)) if name in adapted else leaf)
        return structure.unflatten(found)

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
        boxes = [x for x in jax.tree.leaves(leaf, is_leaf=_is_box) if _is_box(x)]
        box = lambda value, names: boxes[0].replace(value=value, names=names) if boxes else value
        *stacked, axis_in, axis_out = boxes[0].names if boxes else [None] * (len(stack) + 2)
        parts = leaf, box(a, (*stacked, axis_in, "rank")), box(b, (*stacked, "rank", axis_out))
        if not self.dora:
            return LoRAWeight(*parts, self.scale)
        magnitude = column_lengths(value_of(base))
        return DoRAWeight(*parts, box(magnitude, (*stacked, axis_out)), self.scale)


def _is_box(x) -> bool:
    return isinstance(x, nn.Partitioned)


def _matching(field: str, patterns: Sequence[str], names: Sequence[str], kernels: Container[str]) -> set[str]:
    """The names in which a pattern is found. Raises ConfigError for one that is found in none, or in that of something
    else than one of the kernels."""
    chosen = set()
    for pattern in patterns:
        found = [name for name in names if re.search(pattern, name)]
        if not found:
            listed = ", ".join(name for name in names if name in kernels) or "none"
            raise ConfigError(f"{field}: {pattern!r} matches no parameter; kernels are: {listed}")
        for name in found:
            if name not in kernels:
                called = name.rpartition("/")[2] == "kernel"
                what = "is the kernel of a convolution" if called else "is no kernel of a dense layer"
                how = "leaves it out" if called else "ends with kernel$"
                raise ConfigError(
                    f"{field}: {pattern!r} matches {name!r}, which {what}; only kernels of dense layers can be "
                    f"{'adapted' if field == 'weights.patterns' else 'quantized'}: give a pattern that {how}"
                )
        chosen.update(found)
    return chosen


def _is_kernel(name: str, leaf) -> bool:
    """Whether a parameter is by its name and its axes the kernel of a `fmjax.layers.dense.Linear`, or a stack of such:
    those of convolutions have more."""
    rank = len(nn.unbox(leaf).shape)
    stacked = rank == 3 and (not _is_box(leaf) or leaf.names[0] == "layers")
    return name.rpartition("/")[2] == "kernel" and (rank == 2 or stacked)
