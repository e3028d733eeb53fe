"""Published weights into parameters, each tensor straight into the shards it belongs to."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Set
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.config import build
from fmjax.errors import CheckpointError
from fmjax.interop.family import Family, fixed_of, read_section, table_of
from fmjax.interop.safetensors_files import DTYPES
from fmjax.interop.weights import LINEAR, SAME, Slot, flatten, slots, tensors, unflatten
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.layers.weights import Turned
from fmjax.models import MODELS
from fmjax.models.state import state_shapes

FIXED_WITHIN = 1e-5
"""How far the numbers of a tensor may be from those that follow from the module: libraries differ in their sines."""


class Tensor(Protocol):
    """A tensor in a file; its numbers are read when they are asked for.

    One of few bits, whose published array is [out, in], has `quantization`, how the kernel [in, out] is quantized, and
    `few_bits() -> QTensor`, that kernel in NumPy's arrays.

    Attributes:
      file: where it lies.
      shape: of it.
      dtype: of what `map` gives, in the words of safetensors ("BF16").
    """

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str

    def map(self) -> np.ndarray:
        """The numbers, read-only; what they take is let go with the array."""


class Published:
    """A published model: what it is, and where its weights lie. Opening it checks it, and reads no weights.

    Args:
      path: its folder or file.
      source: of its config, for messages.
      values: config.json.
      family: see `Family`.
      found: tensors as its files name them.
      generation: generation_config.json; None where there is none.

    Attributes:
      tensors: under the names of the family's table.
      section: the section `model` of an fmjax config.

    Raises ConfigError for an option that is not supported.
    """

    def __init__(
        self,
        path: pathlib.Path,
        source: str,
        values: Mapping[str, Any],
        family: Family,
        found: Mapping[str, Tensor],
        generation: Mapping[str, Any] | None = None,
    ):
        self.path, self.source, self.values, self.family, self.generation = path, source, values, family, generation
        self.tensors = canonical(found, self.family)
        self.section = read_section(self.family, values, self.tensors, source)

    @functools.cached_property
    def module(self):
        """The module of `section`."""
        return build(self.section, MODELS)

    @property
    def dtype(self) -> str:
        """The dtype of most of the weights: "float32", "bfloat16" or "float16"."""
        names = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        sizes = dict.fromkeys(names.values(), 0)
        for tensor in self.tensors.values():
            if tensor.dtype in names:
                sizes[names[tensor.dtype]] += math.prod(tensor.shape)
        return max(sizes, key=sizes.__getitem__)

    def params(
        self, shapes, shardings, dtype: str = "float32", progress: bool = False, turned: Set[str] = frozenset(),
        stored: Mapping[str, Callable[[jax.Array], Any]] | None = None,
    ):  # fmt: skip
        """The parameters of a module.

        Args:
          shapes: tree of arrays or `jax.ShapeDtypeStruct`: the module's parameters.
          shardings: the same tree of shardings. Each process reads what its own devices keep.
          dtype: of the result.
          progress: show a progress bar.
          turned: paths of kernels that come as `Turned`; each lies whole on one device.
          stored: by path, what makes of a parameter what is kept, before the next is read
            (`fmjax.adapt.base.Weights`).

        Raises CheckpointError naming a tensor that is missing, unexpected, of another shape, or that should equal
        another and does not.
        """
        leaves = flatten(shapes)
        flat = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
        packed = {path for path, leaf in leaves.items() if isinstance(leaf, QTensor)}
        state = {path: tuple(leaf.shape) for path, leaf in flatten(state_shapes(self.module)).items()}
        table = table_of(self.family, self.module)
        self._check(slots(table, flat | state))
        return self._read(slots(table, flat), flat, shardings, dtype, progress, turned, packed, stored)

    def quantizations(self, shapes) -> dict[str, Quantization] | None:
        """How the parameters of a module that lie in the files in few bits do so, by path; None where the layers of one
        that is stacked differ in it. Those that are parts of a tensor, or whose tensors are arranged otherwise than a
        kernel's or a table's, are left out: they are read as floats."""
        flat = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
        found: dict[str, Quantization | None] = {}
        for slot in slots(table_of(self.family, self.module), flat):
            is_table = slot.view is SAME.view
            kind = getattr(self.tensors[self._name(slot)], "quantization", None)
            if kind is not None:
                kind = dataclasses.replace(kind, is_table=is_table) if is_table or slot.view is LINEAR.view else None
            if found.setdefault(slot.path, kind) != kind:
                return None
        return {path: kind for path, kind in found.items() if kind is not None}

    def state(self, shardings) -> dict[str, Any]:
        """The state of the module (`fmjax.models.state`), float32, in the shardings of a tree like it; {} without any.
        The files are those that `params` has checked."""
        flat = {path: tuple(leaf.shape) for path, leaf in flatten(state_shapes(self.module)).items()}
        return self._read(slots(table_of(self.family, self.module), flat), flat, shardings)

    def _read(
        self, found: list[Slot], flat, shardings, dtype="float32", progress=False, turned=frozenset(),
        packed=frozenset(), stored=None,
    ):  # fmt: skip
        """The arrays of shapes by path, each from its slots; arguments as in `params`."""
        by_path: dict[str, list[Slot]] = {}
        for slot in found:
            by_path.setdefault(slot.path, []).append(slot)
        places = flatten(shardings)
        total = sum(math.prod(shape) for shape in flat.values())
        leaves = {}
        with tqdm(total=total, unit="", unit_scale=True, desc="loading", disable=not progress) as bar:
            for path, shape in flat.items():
                if path in packed:
                    leaves[path] = self._few_bits(by_path[path], shape, places[path])
                elif path in turned:
                    leaves[path] = self._turned(by_path[path], shape, places[path], jnp.dtype(dtype))
                else:
                    leaves[path] = self._leaf(by_path[path], shape, places[path], jnp.dtype(dtype))
                if stored and path in stored:
                    leaves[path] = jax.block_until_ready(stored[path](leaves[path]))
                bar.update(math.prod(shape))
        return unflatten(leaves)

    def _leaf(self, parts: list[Slot], shape, sharding, dtype) -> jax.Array:
        """One parameter, filled layer by layer, a shard at a time."""
        devices = sharding.addressable_devices_indices_map(shape)
        bounds = {d: tuple(s.indices(n)[:2] for s, n in zip(index, shape)) for d, index in devices.items()}
        buffers = {b: _aligned_empty([stop - start for start, stop in b], dtype) for b in set(bounds.values())}
        for slot in parts:
            whole = slot.view(self.tensors[self._name(slot)].map())
            for bound, buffer in buffers.items():
                depth = len(slot.place)
                if all(start <= at < stop for at, (start, stop) in zip(slot.place, bound)):
                    at = (at - start for at, (start, _) in zip(slot.place, bound))
                    _copy(whole[_slices(bound[depth:])], buffer[(*at, ...)])  # an array, be it of no axes
            del whole
        # On a CPU, device_put takes an aligned buffer as it is: what was just filled is the shard.
        arrays = [jax.device_put(buffers[bound], device) for device, bound in bounds.items()]
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(shape, sharding, arrays))

    def _few_bits(self, parts: list[Slot], shape, shardings) -> QTensor:
        """A parameter of few bits, as its tensors are."""
        weights = [self.tensors[self._name(slot)].few_bits() for slot in sorted(parts, key=lambda slot: slot.place)]
        if not parts[0].place:
            (weight,) = weights
        else:
            stack = shape[: len(parts[0].place)]
            weight = jax.tree.map(lambda *x: np.stack(x).reshape(*stack, *x[0].shape), *weights)
        return jax.device_put(weight.replace(is_table=shardings.is_table), shardings)

    def _turned(self, parts: list[Slot], shape, sharding, dtype) -> Turned:
        """A kernel [in, out] as [out, in]."""
        (slot,) = parts
        buffer = _aligned_empty(shape[::-1], dtype)
        _copy(slot.view(self.tensors[self._name(slot)].map()).T, buffer)
        return Turned(jax.device_put(buffer, sharding))

    def _name(self, slot: Slot) -> str:
        """The name under which a slot's tensor is in the files."""
        return next(name for name in (slot.name, *slot.repeats) if name in self.tensors)

    def _check(self, found: list[Slot]) -> None:
        """Raises CheckpointError unless the files hold exactly the tensors of these slots, and buffers."""
        expected = set()
        for name, parts in tensors(found).items():
            present = [n for n in (name, *parts[0].repeats) if n in self.tensors]
            if not present:
                what = f"tensor {name!r} of shape {parts[0].shape} is missing"
                if self.family.prefix and not self.family.is_bare and not name.startswith(self.family.prefix):
                    self._refuse(
                        f"the folder has no output head, which gives a model's logits: {what}. A bare model is "
                        "supported where its head is its embedding alone (tie_word_embeddings in config.json), or "
                        "where config.json names a class without a head"
                    )
                self._refuse(f"{what}; {_some(self.tensors)}")
            for one in (*present, *parts[0].copies):
                if one not in self.tensors:
                    self._refuse(f"tensor {one!r}, which repeats {present[0]!r}, is missing; {_some(self.tensors)}")
                self._check_tensor(self.tensors[one], one, parts[0].shape)
            for one in (*present[1:], *parts[0].copies):
                if not _equal(self.tensors[one], self.tensors[present[0]]):
                    tied = "" if one in parts[0].copies else "; is tie_word_embeddings in config.json right?"
                    self._refuse(
                        f"tensor {one!r} should repeat {present[0]!r}, which it is tied to, but is different{tied}"
                    )
            expected.update(present, parts[0].copies)
        for name, make in fixed_of(self.family, self.module).items():
            numbers = make()
            if numbers is not None:
                expected.add(name)
            if numbers is not None and name in self.tensors:
                self._check_tensor(self.tensors[name], name, numbers.shape)
                if not np.allclose(self.tensors[name].map().astype(np.float32), numbers, atol=FIXED_WITHIN):
                    self._refuse(f"tensor {name!r} has other numbers than those that the config says")
        for name, tensor in self.tensors.items():
            if name not in expected and not any(re.search(rf"(^|\.){p}$", name) for p in self.family.passed_over):
                self._refuse(
                    f"tensor {name!r} of shape {tensor.shape} in {tensor.file.name} belongs to no parameter of this "
                    "model; does config.json describe it?"
                )

    def _check_tensor(self, tensor: Tensor, name: str, shape) -> None:
        where = f"tensor {name!r} in {tensor.file.name}"
        if tensor.shape != shape:
            self._refuse(f"{where} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            self._refuse(f"{where} has dtype {tensor.dtype}; known: {known} (quantized weights are not supported)")

    def _refuse(self, why: str):
        raise CheckpointError(f"{str(self.path)!r} ({self.family.architectures[0]}): {why}")


def _some(names) -> str:
    some = sorted(names)[:3]
    return f"the files have {len(names)} tensors, such as {', '.join(map(repr, some))}"


def canonical(found: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors under the names of today's model: old endings renamed, the prefix put where it is missing in a complete
    model's, and left out where a bare model's have it."""
    for part in family.parts:
        inside = canonical(part.inside(found), part.family)
        outside = {name: tensor for name, tensor in found.items() if not name.startswith(part.prefix)}
        found = outside | {part.prefix + name: tensor for name, tensor in inside.items()}
    renamed = {}
    for name, tensor in found.items():
        for other, part in family.respelt:
            name = name.replace(other, part)
        for old, new in family.renamed:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        renamed[name] = tensor
    if family.is_bare:
        return {name.removeprefix(family.prefix): tensor for name, tensor in renamed.items()}
    if not family.prefix or any(name.startswith(family.prefix) for name in renamed):
        return renamed
    heads = {w.name for w in family.table if not w.name.startswith(family.prefix)} | {
        name for w in family.table for name in w.repeats
    }
    return {name if name in heads else family.prefix + name: tensor for name, tensor in renamed.items()}


def _slices(bound) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bound)


def _aligned_empty(shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at an address that JAX's CPU backend can use without copying."""
    alignment = 64
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """source into target, of any layout and dtype, in blocks that a cache holds while one side is read across."""
    if source.ndim < 2 or source.flags.c_contiguous:
        np.copyto(target, source, casting="unsafe")
        return
    block = 128
    for row in range(0, source.shape[0], block):
        for column in range(0, source.shape[1], block):
            at = slice(row, row + block), slice(column, column + block)
            np.copyto(target[at], source[at], casting="unsafe")


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype:
        return False
    step = 1 << 20
    first, second = a.map().reshape(-1), b.map().reshape(-1)
    return all(
        np.array_equal(first[i : i + step].view(np.uint8), second[i : i + step].view(np.uint8))
        for i in range(0, len(first), step)
    )
