"""Parameters of few bits as a compressed model has them (`fmjax.compress`): which, and of what structure."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from fmjax.errors import ConfigError
from fmjax.layers.quantized import QTensor, Quantization, quantization_of
from fmjax.layers.scales import PowerScales, QuantizedScales, SuperScales
from fmjax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True)
class Packed:
    """Kernels and tables of few bits, which do not train. `Model.save` writes this section into the config.json of a
    compressed model.

    Attributes:
      kernels: by the parameter's name, "stack/blocks/mlp/up/kernel": how it is quantized.
    """

    trainable: ClassVar[tuple[str, ...]] = ()

    kernels: dict[str, Quantization]

    def __post_init__(self):
        # Sections become what they describe, in an order and a form that have a hash.
        given = dict(self.kernels)
        made = {k: v if isinstance(v, Quantization) else Quantization(**v) for k, v in given.items()}
        object.__setattr__(self, "kernels", _Frozen(made))

    def attach(self, params: Any, key: jax.Array) -> Any:
        """See `fmjax.adapt.base.Weights`. Raises ConfigError for a name that is no parameter."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_leaf)
        names = [path_name(path) for path, _ in leaves]
        if lost := sorted(self.kernels.keys() - set(names)):
            raise ConfigError(f"weights.kernels: {lost[0]!r} is no parameter; there are: {', '.join(names[:6])}, ...")
        found = [
            boxed(leaf, self.kernels[name]) if name in self.kernels and not isinstance(leaf, QTensor) else leaf
            for name, (_, leaf) in zip(names, leaves)
        ]
        return structure.unflatten(found)

    @staticmethod
    def served(params: Any) -> Any:
        """What a model that is loaded computes with: the parameters as they are saved."""
        return params


def packed_section(params: Any) -> dict[str, Any] | None:
    """The section `weights` of a config.json for parameters; None where no leaf is of few bits."""
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, QTensor))[0]
    kernels = {
        path_name(path): dataclasses.asdict(quantization_of(leaf)) for path, leaf in leaves if isinstance(leaf, QTensor)
    }
    return {"name": "packed", "kernels": kernels} if kernels else None


def by_layer(kernel: jax.Array, quantization: Quantization) -> QTensor:
    """A kernel [..., in, out] in few bits, made a layer at a time, as no more of them are at work at once."""
    quantize = quantization.quantize
    return quantize(kernel) if kernel.ndim == 2 else jax.lax.map(quantize, kernel)


def boxed(leaf: Any, quantization: Quantization) -> QTensor:
    """A kernel [..., in, out] in few bits, its parts boxed with logical axis names where it is."""
    weight = by_layer(nn.unbox(leaf), quantization)
    if not isinstance(leaf, nn.Partitioned):
        return weight
    *stack, axis_in, axis_out = leaf.names
    if weight.is_table:
        axis_in, axis_out = axis_out, axis_in
    whole = (*stack, axis_in, axis_out)
    box = lambda value, names=whole: None if value is None else leaf.replace(value=value, names=tuple(names))
    # A scale for each block of inputs: of 576 by 64 there are 9, which two devices cannot share.
    by_block = (*stack, axis_in and f"{axis_in}?", axis_out if weight.tile == 1 else axis_out and f"{axis_out}?")

    def boxed_scales(scales):
        if isinstance(scales, QuantizedScales):
            codes, second = box(scales.codes, by_block), box(scales.second, (*stack, None))
            return QuantizedScales(codes, second, box(scales.mean, stack))
        if isinstance(scales, SuperScales):
            return SuperScales(box(scales.codes, by_block), box(scales.second, by_block))
        if isinstance(scales, PowerScales):
            return scales.replace(exponents=box(scales.exponents, by_block))
        return box(scales, by_block)

    return weight.replace(
        codes=box(weight.codes), scales=boxed_scales(weight.scales), offsets=boxed_scales(weight.offsets),
        input_scale=box(weight.input_scale, stack),
    )  # fmt: skip


def _is_leaf(x) -> bool:
    return isinstance(x, nn.Partitioned | QTensor)


class _Frozen(Mapping):
    """A mapping with a hash."""

    def __init__(self, items: Mapping):
        self._items = dict(items)

    def __getitem__(self, key):
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)

    def __hash__(self):
        return hash(frozenset(self._items.items()))

    def __eq__(self, other):
        return isinstance(other, Mapping) and self._items == dict(other)
