"""Fine-tuning that keeps zeros: what recovers a pruned model (`fmjax.compress.pruning`)."""

import dataclasses
import logging
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.adapt.kernels import is_box, is_kernel, matching
from fmjax.errors import ConfigError
from fmjax.layers.weights import MaskedWeight
from fmjax.parallel.sharding import path_name

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Kernels become `MaskedWeight`s: where a kernel that training begins with is zero (`train.init_from`, a pruned
    model), it is zero after any step of any optimizer, and everything trains but that.

    Attributes:
      patterns: a kernel's zeros stay if one of these regular expressions is found in its name, such as
        "stack/blocks/mlp/up/kernel".
    """

    trainable: ClassVar[tuple[str, ...]] = ()

    patterns: tuple[str, ...] = ("blocks.*kernel$",)

    def __post_init__(self):
        if not self.patterns:
            raise ConfigError("weights.patterns is empty: no zeros would stay; ('kernel$',) keeps those of all kernels")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"weights.patterns: {pattern!r} is not a regular expression ({error})") from None

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`. Raises ConfigError for a pattern that matches nothing, or something that is
        no kernel of a dense layer."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
        names = [path_name(path) for path, _ in leaves]
        kernels = {name for name, (_, leaf) in zip(names, leaves) if is_kernel(name, leaf)}
        chosen = matching("weights.patterns", self.patterns, names, kernels, "kept sparse")
        return structure.unflatten([_masked(x) if name in chosen else x for name, (_, x) in zip(names, leaves)])

    def check_begun(self, params: Any) -> None:
        """See `fmjax.adapt.base.Weights`. Raises ConfigError for a pattern whose kernels have no zeros to keep."""
        prune = (
            "prune a model first (python -m fmjax.compress --model=MODEL --method=wanda --calibration=TEXTS "
            "--output=runs/pruned) and begin with that (train.init_from = runs/pruned)"
        )
        if params is None:
            raise ConfigError(f"weights = sparse keeps zeros, and without train.init_from there are none; {prune}")
        leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]
        for pattern in self.patterns:
            kernels = [leaf for name, leaf in leaves if re.search(pattern, name)]
            zeros = sum(float(share) * leaf.size for share, leaf in zip(_shares_of_zeros(kernels), kernels))
            if zeros == 0:
                raise ConfigError(
                    f"weights.patterns: {pattern!r} matches {len(kernels)} kernels of train.init_from, none of which "
                    f"has a zero to keep; {prune}, or leave weights out"
                )
            share = zeros / sum(leaf.size for leaf in kernels)
            log.info("of the kernels that %r matches %.1f%% are zeros, and stay so", pattern, 100 * share)


@jax.jit
def _shares_of_zeros(kernels):
    return [jnp.mean(kernel == 0) for kernel in kernels]


def _masked(leaf) -> MaskedWeight:
    """A kernel and where it is not zero, boxed with axis names where it is."""
    kept = nn.unbox(leaf) != 0
    return MaskedWeight(leaf, leaf.replace(value=kept) if is_box(leaf) else kept)
