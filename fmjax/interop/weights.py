"""Tables of published weights: which parameter lies under which name, and how it is laid out there.

A family has one table, a line a weight. The same lines drive reading and writing, because a layout is a view: it takes
the published array and gives, without copying where numpy can, the same numbers arranged as the parameter. Reading
copies out of that view, writing copies into it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.errors import ConfigError, InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter is arranged in its published array.

    Attributes:
      shape: the published shape from the parameter's, both without axes of layers.
      view: the published array in the parameter's shape: a view of it, or, where numpy has none, a copy.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    view: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda shape: shape, lambda x: x)
LINEAR = Layout(lambda shape: shape[::-1], lambda x: x.T)  # PyTorch's Linear stores [out, in]
ROW = Layout(lambda shape: (1, *shape), lambda x: x[0])
# PyTorch's convolutions store [out, in / groups, ...], of one axis or several; here it is [..., in / groups, out]. A
# depthwise one has as many groups as channels.
CONV = Layout(lambda shape: (*shape[:-3:-1], *shape[:-2]), lambda x: x.transpose(*range(2, x.ndim), 1, 0))


def part(index: int, count: int) -> Layout:
    """Part number `index` of `count` arrays of one size that lie side by side along the last axis of one tensor."""

    def view(x):
        width = x.shape[-1] // count
        return x[..., index * width : (index + 1) * width]

    return Layout(lambda shape: (*shape[:-1], count * shape[-1]), view)


def packed_linear(index: int, count: int) -> Layout:
    """Kernel number `index` of `count` of one size that PyTorch stores below each other, [count * out, in]."""

    def view(x):
        rows = x.shape[0] // count
        return x[index * rows : (index + 1) * rows].T

    return Layout(lambda shape: (count * shape[1], shape[0]), view)


def patches(size: int, axes: int = 2) -> Layout:
    """A product over patches, [p * ... * p * C, out] as `fmjax.layers.patchify` lays pixels out, that is stored as the
    convolution [out, C, p, ..., p] whose stride is its size.

    Args:
      size: p, the side of a patch.
      axes: of an image; 1 for audio, 3 for video.
    """

    def shape(kernel):
        rows, out = kernel
        if rows % size**axes:
            raise ConfigError(
                f"a product over patches has {rows} inputs, no multiple of {size**axes} (patch_size={size})"
            )
        return (out, rows // size**axes, *(size,) * axes)

    return Layout(shape, lambda x: CONV.view(x).reshape(-1, x.shape[0]))


@dataclasses.dataclass(frozen=True)
class Weight:
    """One line of a family's table.

    Names have named indices: `{stage}`, where path and name have it, counts parameters, `stages_{stage}/norm/scale`;
    one that only the name has counts tensors along the parameter's leading axes, in the name's order. Below `blocks`
    that is `{layer}`, whether the blocks are stacked or lie side by side as `blocks_0`, `blocks_1`, ...

    Attributes:
      path: of the parameter, `stack/blocks/mlp/up/kernel`.
      name: of the published tensor.
      layout: see `Layout`; or a function of the module that gives it, where it depends on a size such as its patches'.
      repeats: names under which files may hold the same tensor once more, such as a tied output head.
      copies: tensors of this name that files hold, all the same: `{copy}` counts them. Or a function of the module.
    """

    path: str
    name: str
    layout: Layout | Callable[[Any], Layout] = SAME
    repeats: tuple[str, ...] = ()
    copies: int | Callable[[Any], int] = 1

    def __post_init__(self):
        if lost := set(_indices(self.path)) - set(_indices(self.name)):
            raise InputError(f"the published name {self.name!r} of {self.path!r} lacks the indices {sorted(lost)}")

    def of(self, module, path: str = "", prefix: str = "") -> "Weight":
        """The line for a module that lies at `path` of a larger one, whose tensors' names have `prefix` in front."""
        layout, copies = (x(module) if callable(x) else x for x in (self.layout, self.copies))
        repeats = tuple(prefix + name for name in self.repeats)
        return Weight(f"{path}/{self.path}" if path else self.path, prefix + self.name, layout, repeats, copies)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A tensor that files hold and that follows from the module: its name, and its numbers as a function of that; None
    where files of such a module do not hold it."""

    name: str
    make: Callable[[Any], np.ndarray | None]


def linear(path: str, name: str, layout: Layout = LINEAR, **options) -> tuple[Weight, Weight]:
    """Kernel and bias of a product; `options` as in `Weight`."""
    bias = SAME if layout is LINEAR else layout
    kernel = Weight(f"{path}/kernel", f"{name}.weight", layout, **options)
    return kernel, Weight(f"{path}/bias", f"{name}.bias", bias, **options)


def conv(path: str, name: str, layout: Layout | Callable[[Any], Layout] = CONV) -> tuple[Weight, Weight]:
    """Kernel and bias of a convolution."""
    return Weight(f"{path}/kernel", f"{name}.weight", layout), Weight(f"{path}/bias", f"{name}.bias")


def norm(path: str, name: str) -> tuple[Weight, Weight]:
    """Scale and bias of a normalisation."""
    return Weight(f"{path}/scale", f"{name}.weight"), Weight(f"{path}/bias", f"{name}.bias")


def batch_norm(path: str, name: str) -> tuple[Weight, ...]:
    """Scale, bias and running statistics of a batch normalisation; these are state (`fmjax.models.state`)."""
    state = f"batch_stats/{path}"
    running = Weight(f"{state}/mean", f"{name}.running_mean"), Weight(f"{state}/var", f"{name}.running_var")
    return *norm(path, name), *running


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where in the parameters a published tensor, or a part of one, belongs.

    Attributes:
      path: of the parameter.
      place: indices along the parameter's leading axes; none for the whole parameter.
      name: of the published tensor.
      shape: of the published tensor.
      view: as in `Layout`.
      repeats: as in `Weight`.
      copies: names of further tensors that are the same one.
    """

    path: str
    place: tuple[int, ...]
    name: str
    shape: tuple[int, ...]
    view: Callable[[np.ndarray], np.ndarray]
    repeats: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    def write(self, published: np.ndarray, index: tuple, numbers: np.ndarray) -> None:
        """Puts numbers, the parameter's at `index`, where they belong in the published array, a contiguous one."""
        target = self.view(published)
        if np.may_share_memory(target, published):
            target[index] = numbers
        else:  # a copy: the same arrangement of the numbers' places says where they go
            places = self.view(np.arange(published.size).reshape(published.shape))
            published.reshape(-1)[places[index]] = numbers


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
      table: its lines as the module has them (`Weight.of`).
      shapes: of the parameters, by path; stacked (`blocks` [layers, ...]) or one by one (`blocks_0`, ...).

    Raises InputError for a parameter that the table does not have.
    """
    found = [
        Slot(path, place, name, weight.layout.shape(shape), weight.layout.view, weight.repeats, copies)
        for weight in table
        for path, place, name, copies, shape in _instances(weight, shapes)
    ]
    named = {slot.path for slot in found}
    for path in shapes:
        if path not in named:
            raise InputError(f"parameter {path!r} has no published name in this family's table")
    own = {slot.name for slot in found}
    return [
        dataclasses.replace(slot, repeats=tuple(name for name in slot.repeats if name not in own)) for slot in found
    ]


def _indices(name: str) -> list[str]:
    """The named indices of a path or a tensor's name."""
    return list(dict.fromkeys(re.findall(r"\{(\w+)\}", name)))


def _instances(weight: Weight, shapes):
    """(path, place, name of the tensor, names of its copies, shape without stacked axes) of a line's tensors."""
    names = [name for name in _indices(weight.name) if name != "copy"]
    side_by_side = re.sub(r"(^|/)blocks/", r"\1blocks_{layer}/", weight.path) if "layer" in names else weight.path
    for path in dict.fromkeys((weight.path, side_by_side)):
        inside = _indices(path)
        stacked = [name for name in names if name not in inside]
        pattern = re.compile("".join(rf"(?P<{p[1:-1]}>\d+)" if p[0] == "{" else re.escape(p) for p in _split(path)))
        matches = [match for match in map(pattern.fullmatch, shapes) if match]
        for match in sorted(matches, key=lambda match: [int(match[name]) for name in inside]):
            counts, shape = shapes[match[0]][: len(stacked)], shapes[match[0]][len(stacked) :]
            for place in np.ndindex(*counts):
                known = match.groupdict() | dict(zip(stacked, place))
                name, *copies = (weight.name.format(**known, copy=copy) for copy in range(weight.copies))
                yield match[0], place, name, tuple(copies), tuple(shape)


def _split(path: str) -> list[str]:
    """A path cut before and after its indices."""
    return [part for part in re.split(r"(\{\w+\})", path) if part]


def tensors(found: Iterable[Slot]) -> dict[str, list[Slot]]:
    """Slots by the published tensor that they share, in the table's order."""
    grouped: dict[str, list[Slot]] = {}
    for slot in found:
        grouped.setdefault(slot.name, []).append(slot)
    return grouped
