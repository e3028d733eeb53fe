"""Low-rank adapters beside the kernels of a module (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import dataclasses
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.weights import LoRAWeight
from fmjax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Kernels [..., in, out] become kernel + alpha / rank * a @ b; the adapters a and b train,
    and nothing else unless `train.trainable` says so.

    a is drawn, normal with standard deviation 1 / sqrt(in), and b is zero: the module begins as the function that it is
    without adapters. Each layer of a stack has its own.

    Attributes:
      rank: of the adapters.
      alpha: their scale times `rank`, so that another rank needs no other learning rate.
      patterns: a kernel is adapted if one of these regular expressions is found in its name, such as
        "stack/blocks/attention/query/kernel". As in the paper: queries and values.
    """

    trainable: ClassVar[tuple[str, ...]] = ("kernel/[ab]$",)

    rank: int = 8
    alpha: float = 16.0
    patterns: tuple[str, ...] = ("attention/(query|value)/kernel$",)

    def __post_init__(self):
        check_positive(rank=self.rank)
        if not self.alpha > 0:
            raise ConfigError(f"weights.alpha = {self.alpha} must be positive")
        if not self.patterns:
            raise ConfigError("weights.patterns is empty: no kernel would be adapted; ('kernel$',) adapts all")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"weights.patterns: {pattern!r} is not a regular expression ({error})") from None

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`.

        Raises ConfigError for a pattern that matches nothing, or something that is not the kernel of a dense layer (an
        embedding table, an output head), and where `rank` is not below both sides of a kernel.
        """
        is_box = lambda x: isinstance(x, nn.Partitioned)
        leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
        names = [path_name(path) for path, _ in leaves]
        for pattern in self.patterns:
            found = [name for name in names if re.search(pattern, name)]
            if not found:
                listed = ", ".join(name for name in names if _is_kernel(name)) or "none"
                raise ConfigError(f"weights.patterns: {pattern!r} matches no parameter; kernels are: {listed}")
            for name in found:
                if not _is_kernel(name):
                    raise ConfigError(
                        f"weights.patterns: {pattern!r} matches {name!r}, which is no kernel of a dense layer; only "
                        "those can be adapted: end the pattern with kernel$"
                    )
        adapted = []
        for index, (name, (_, leaf)) in enumerate(zip(names, leaves)):
            chosen = any(re.search(pattern, name) for pattern in self.patterns)
            adapted.append(self._beside(name, leaf, jax.random.fold_in(key, index)) if chosen else leaf)
        return structure.unflatten(adapted)

    def _beside(self, name: str, leaf, key) -> LoRAWeight:
        """A kernel and its adapters, boxed with axis names where it is."""
        *stack, fan_in, fan_out = nn.unbox(leaf).shape
        if self.rank >= min(fan_in, fan_out):
            raise ConfigError(
                f"weights.rank = {self.rank} is not below both sides of {name!r} [{fan_in}, {fan_out}]; take a smaller "
                "one, or patterns without it"
            )
        a = jax.random.normal(key, (*stack, fan_in, self.rank), jnp.float32) * fan_in**-0.5
        b = jnp.zeros((*stack, self.rank, fan_out), jnp.float32)
        if isinstance(leaf, nn.Partitioned):
            *stacked, axis_in, axis_out = leaf.names
            a = leaf.replace(value=a, names=(*stacked, axis_in, "rank"))
            b = leaf.replace(value=b, names=(*stacked, "rank", axis_out))
        return LoRAWeight(leaf, a, b, self.alpha / self.rank)


def _is_kernel(name: str) -> bool:
    """Whether a parameter is by its name the kernel of a `fmjax.layers.dense.Linear`."""
    return name.rpartition("/")[2] == "kernel"
