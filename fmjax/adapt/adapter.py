"""Low-rank adapters alone: read from where they were trained or published, and put beside the kernels of a model."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.errors import InputError
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.layers.weights import ADAPTED, DoRAWeight, LoRAWeight, Turned, is_weight, scaled
from fmjax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """Adapters of some kernels of a model, which is not among them.

    Attributes:
      weights: by the kernel's path, stacked over layers ("stack/blocks/attention/query/kernel"): a `LoRAWeight` or
        `DoRAWeight` without a base.
      source: where they come from, for messages.
      base: what they say they were trained beside; "" where they do not say.
      digests: of the kernels they were trained beside, by path (`fmjax.interop.adapters`); none where not known.
      quantization: how those kernels were kept; None as floats.
      rslora: whether their scale is one of alpha / sqrt(rank), which matters where they are written.
    """

    weights: Mapping[str, LoRAWeight | DoRAWeight]
    source: str
    base: str = ""
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    quantization: Quantization | None = None
    rslora: bool = False


def taken(params: Any) -> dict[str, LoRAWeight | DoRAWeight]:
    """The adapters in a tree of parameters by their kernels' paths, without the kernels."""
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, ADAPTED))[0]
    return {path_name(path): leaf.replace(base=None) for path, leaf in leaves if isinstance(leaf, ADAPTED)}


def stacked_name(name: str) -> tuple[str, int | None]:
    """(path of the stacked kernel, layer) of one by itself: "stack/blocks_3/up" is layer 3 of "stack/blocks/up"."""
    found = re.search(r"(^|/)blocks_(\d+)/", name)
    if found is None:
        return name, None
    return f"{name[: found.start()]}{found[1]}blocks/{name[found.end() :]}", int(found[2])


def attached(params: Any, adapter: Adapter) -> Any:
    """The tree with an adapter beside its kernels, which are not copied: stacked ones, or layer by layer.

    Raises InputError, naming the kernel, where there is none for an adapter or it has another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_leaf)
    found, used = [], set()
    for path, leaf in leaves:
        name, layer = stacked_name(path_name(path))
        part = adapter.weights.get(name)
        if part is None:
            name, layer = path_name(path), None
            part = adapter.weights.get(name)
        if part is not None:
            used.add(name)
            leaf = _beside(name, leaf, part if layer is None else jax.tree.map(lambda x: x[layer], part), adapter)
        found.append(leaf)
    if lost := sorted(adapter.weights.keys() - used):
        raise InputError(
            f"the adapter {adapter.source!r} adapts {lost[0]!r}, which this model does not have"
            f"{f'; it was trained beside {adapter.base!r}' if adapter.base else ''}"
        )
    return structure.unflatten(found)


def _is_leaf(x) -> bool:
    return is_weight(x) or isinstance(x, Turned)


def _beside(name: str, kernel, part: LoRAWeight | DoRAWeight, adapter: Adapter):
    array = kernel.weight if isinstance(kernel, Turned) else kernel.codes if isinstance(kernel, QTensor) else kernel
    shape = (*array.shape[:-2], *array.shape[:-3:-1]) if isinstance(kernel, Turned) else kernel.shape
    theirs = (*part.a.shape[:-1], part.b.shape[-1])
    if tuple(shape) != theirs:
        raise InputError(
            f"the adapter {adapter.source!r} is for a kernel {name!r} of shape {theirs}, and that of this model has "
            f"{tuple(shape)}{f'; it was trained beside {adapter.base!r}' if adapter.base else ''}"
        )
    place = array.sharding
    if isinstance(place, NamedSharding):
        *stack, rows, columns = (*place.spec, *[None] * (array.ndim - len(place.spec)))
        lie = lambda *names: NamedSharding(place.mesh, PartitionSpec(*stack, *names))
    else:
        rows = columns = None
        lie = lambda *names: place
    a, b = jax.device_put(part.a, lie(rows, None)), jax.device_put(part.b, lie(None, columns))
    if not isinstance(part, DoRAWeight):
        return LoRAWeight(kernel, a, b, part.scale)
    return scaled(DoRAWeight(kernel, a, b, jax.device_put(part.magnitude, lie(columns)), part.scale))
