"""Tables of published weights: which parameter lies under which name, and how it is laid out there.

A family has one table, a line a weight. The same lines drive reading and writing, because a layout is a view: it takes
the published array and gives, without copying, the same numbers arranged as the parameter. Reading copies out of that
view, writing copies into it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter is arranged in its published array.

    Attributes:
      shape: the published shape from the parameter's, both without the axis of layers.
      view: the published array to a view of it that has the parameter's shape.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    view: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda shape: shape, lambda x: x)
LINEAR = Layout(lambda shape: shape[::-1], lambda x: x.T)  # PyTorch's Linear stores [out, in]
ROW = Layout(lambda shape: (1, *shape), lambda x: x[0])


def part(index: int, count: int) -> Layout:
    """Part number `index` of `count` arrays of one size that lie side by side along the last axis of one tensor."""

    def view(x):
        width = x.shape[-1] // count
        return x[..., index * width : (index + 1) * width]

    return Layout(lambda shape: (*shape[:-1], count * shape[-1]), view)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One line of a family's table.

    Attributes:
      path: of the parameter, `stack/blocks/mlp/up/kernel`. Below `blocks` the leading axis is the layer.
      name: of the published tensor, with `{layer}` where there is one tensor a layer.
      layout: see `Layout`.
      repeats: names under which files may hold the same tensor once more, such as a tied output head.
    """

    path: str
    name: str
    layout: Layout = SAME
    repeats: tuple[str, ...] = ()


def linear(path: str, name: str, layout: Layout = LINEAR) -> tuple[Weight, Weight]:
    """Kernel and bias of a product."""
    bias = SAME if layout is LINEAR else layout
    return Weight(f"{path}/kernel", f"{name}.weight", layout), Weight(f"{path}/bias", f"{name}.bias", bias)


def norm(path: str, name: str) -> tuple[Weight, Weight]:
    """Scale and bias of a normalisation."""
    return Weight(f"{path}/scale", f"{name}.weight"), Weight(f"{path}/bias", f"{name}.bias")


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where in the parameters a published tensor, or a part of one, belongs.

    Attributes:
      path: of the parameter.
      layer: index along the parameter's leading axis, or None for the whole parameter.
      name: of the published tensor.
      shape: of the published tensor.
      view: as in `Layout`.
      repeats: as in `Weight`.
    """

    path: str
    layer: int | None
    name: str
    shape: tuple[int, ...]
    view: Callable[[np.ndarray], np.ndarray]
    repeats: tuple[str, ...] = ()


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """Leaves of nested dicts under their paths, `stack/blocks/mlp/up/kernel`."""
    found = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return found


def unflatten(leaves: Mapping[str, object]) -> dict:
    """The nested dicts of `flatten`."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def slots(table: Sequence[Weight], shapes: Mapping[str, tuple[int, ...]]) -> list[Slot]:
    """The table applied to a module's parameters: its lines for parameters that the module lacks are left out.

    Args:
      shapes: of the parameters, by path; stacked (`blocks` [layers, ...]) or one by one (`blocks_0`, ...).

    Raises InputError for a parameter that the table does not have.
    """
    found: list[Slot] = []
    for weight in table:
        for path, layer, name, shape in _instances(weight, shapes):
            found.append(Slot(path, layer, name, weight.layout.shape(shape), weight.layout.view, weight.repeats))
    named = {slot.path for slot in found}
    for path in shapes:
        if path not in named:
            raise InputError(f"parameter {path!r} has no published name in this family's table")
    own = {slot.name for slot in found}
    return [
        dataclasses.replace(slot, repeats=tuple(name for name in slot.repeats if name not in own)) for slot in found
    ]


def _instances(weight: Weight, shapes):
    """(path, layer, published name, shape without layers) of a line's tensors in a module."""
    if "{layer}" not in weight.name:
        if weight.path in shapes:
            yield weight.path, None, weight.name, shapes[weight.path]
    elif weight.path in shapes:
        count, *shape = shapes[weight.path]
        for layer in range(count):
            yield weight.path, layer, weight.name.format(layer=layer), tuple(shape)
    else:
        layer = 0
        while (path := weight.path.replace("/blocks/", f"/blocks_{layer}/")) in shapes:
            yield path, None, weight.name.format(layer=layer), shapes[path]
            layer += 1


def tensors(found: Iterable[Slot]) -> dict[str, list[Slot]]:
    """Slots by the published tensor that they share, in the table's order."""
    grouped: dict[str, list[Slot]] = {}
    for slot in found:
        grouped.setdefault(slot.name, []).append(slot)
    return grouped
