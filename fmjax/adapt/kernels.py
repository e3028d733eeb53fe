"""Which parameters are kernels of dense layers, and which of them a config means."""

import re
from collections.abc import Container, Sequence

import flax.linen as nn

from fmjax.errors import ConfigError
from fmjax.layers.quantized import QTensor


def is_box(x) -> bool:
    """Whether x is a parameter with logical axis names."""
    return isinstance(x, nn.Partitioned)


def matching(
    field: str, patterns: Sequence[str], names: Sequence[str], kernels: Container[str], what_for: str
) -> set[str]:
    """The names in which a pattern of the config's field is found. Raises ConfigError for one that is found in none, or
    in that of something else than one of the kernels, which alone can be `what_for` ("adapted")."""
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
                    f"{what_for}: give a pattern that {how}"
                )
        chosen.update(found)
    return chosen


def is_kernel(name: str, leaf) -> bool:
    """Whether a parameter is by its name and its axes the kernel of a `fmjax.layers.dense.Linear`, or a stack of such:
    those of convolutions have more."""
    rank = len(nn.unbox(leaf).shape)
    box = leaf.codes if isinstance(leaf, QTensor) else leaf
    stacked = rank == 3 and (not is_box(box) or box.names[0] == "layers")
    return name.rpartition("/")[2] == "kernel" and (rank == 2 or stacked)
