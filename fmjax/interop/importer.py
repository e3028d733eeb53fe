"""Published weights into parameters, each tensor straight into the shards it belongs to."""

import math
import pathlib
import re
from collections.abc import Mapping, Set
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.errors import CheckpointError
from fmjax.interop.family import Family, family_of, read_section
from fmjax.interop.safetensors_files import DTYPES, read_folder
from fmjax.interop.weights import Slot, flatten, slots, tensors, unflatten
from fmjax.layers.weights import Turned
from fmjax.small_files import read_json


class Tensor(Protocol):
    """A tensor in a file; its numbers are read when they are asked for.

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
        self.tensors = _canonical(found, self.family)
        self.section = read_section(self.family, values, self.tensors, source)

    @property
    def dtype(self) -> str:
        """The dtype of most of the weights: "float32", "bfloat16" or "float16"."""
        names = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        sizes = dict.fromkeys(names.values(), 0)
        for tensor in self.tensors.values():
            if tensor.dtype in names:
                sizes[names[tensor.dtype]] += math.prod(tensor.shape)
        return max(sizes, key=sizes.__getitem__)

    def params(self, shapes, shardings, dtype: str = "float32", progress: bool = False, turned: Set[str] = frozenset()):
        """The parameters of a module.

        Args:
          shapes: tree of arrays or `jax.ShapeDtypeStruct`: the module's parameters.
          shardings: the same tree of shardings. Each process reads what its own devices keep.
          dtype: of the result.
          progress: show a progress bar.
          turned: paths of kernels that come as `Turned`; each lies whole on one device.

        Raises CheckpointError naming a tensor that is missing, unexpected, of another shape, or that should equal
        another and does not.
        """
        flat = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
        found = slots(self.family.table, flat)
        self._check(found)
        by_path: dict[str, list[Slot]] = {}
        for slot in found:
            by_path.setdefault(slot.path, []).append(slot)
        places = flatten(shardings)
        total = sum(math.prod(shape) for shape in flat.values())
        leaves = {}
        with tqdm(total=total, unit="", unit_scale=True, desc="loading", disable=not progress) as bar:
            for path, shape in flat.items():
                if path in turned:
                    leaves[path] = self._turned(by_path[path], shape, places[path], jnp.dtype(dtype))
                else:
                    leaves[path] = self._leaf(by_path[path], shape, places[path], jnp.dtype(dtype))
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
                if slot.layer is None:
                    _copy(whole[_slices(bound)], buffer)
                elif bound[0][0] <= slot.layer < bound[0][1]:
                    _copy(whole[_slices(bound[1:])], buffer[slot.layer - bound[0][0]])
            del whole
        # On a CPU, device_put takes an aligned buffer as it is: what was just filled is the shard.
        arrays = [jax.device_put(buffers[bound], device) for device, bound in bounds.items()]
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(shape, sharding, arrays))

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
                if self.family.prefix and not name.startswith(self.family.prefix):
                    self._refuse(
                        f"the folder has no output head, which gives a model's logits: {what}. A bare model is "
                        "supported only where its head is its embedding alone (tie_word_embeddings in config.json)"
                    )
                self._refuse(f"{what}; {_some(self.tensors)}")
            for one in present:
                self._check_tensor(self.tensors[one], one, parts[0].shape)
            for one in present[1:]:
                if not _equal(self.tensors[one], self.tensors[present[0]]):
                    self._refuse(
                        f"tensor {one!r} should repeat {present[0]!r}, which it is tied to, but is different; is "
                        "tie_word_embeddings in config.json right?"
                    )
            expected.update(present)
        for name, tensor in self.tensors.items():
            if name not in expected and not any(re.search(rf"(^|\.){p}$", name) for p in self.family.ignored):
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


def open_folder(folder: pathlib.Path) -> Published:
    """A folder as Hugging Face publishes it: config.json and safetensors.

    Raises InputError subclasses for an architecture or option that is not supported, and for damaged files.
    """
    source, generation = folder / "config.json", folder / "generation_config.json"
    values = read_json(source)
    family = family_of(values, str(source))
    kept = read_json(generation) if generation.is_file() else None
    return Published(folder, str(source), values, family, read_folder(folder), kept)


def _some(names) -> str:
    some = sorted(names)[:3]
    return f"the files have {len(names)} tensors, such as {', '.join(map(repr, some))}"


def _canonical(found: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors under the names of today's complete model: old endings renamed, the prefix put where it is missing."""
    renamed = {}
    for name, tensor in found.items():
        for old, new in family.renamed:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        renamed[name] = tensor
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
