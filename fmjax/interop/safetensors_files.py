"""Safetensors files, a tensor at a time: https://huggingface.co/docs/safetensors, section "Format".

The `safetensors` library maps a whole file for as long as it is open, and writes from a dict that holds everything.
Here a tensor is mapped while it is read and let go, and written as it is made, so that memory is bounded by one tensor.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

from fmjax.errors import CheckpointError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
STORED = DTYPES | {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    **{f"I{8 * size}": np.dtype(f"int{8 * size}") for size in (1, 2, 4, 8)},
    "U8": np.dtype(np.uint8),
}
"""Of what files may hold beside numbers of weights: codes of weights of few bits, and sizes."""
STEM = "model"
"""Of the files' names in folders that `transformers` writes; `diffusers` has another."""
DIFFUSERS_STEM = "diffusion_pytorch_model"
_LONGEST_HEADER = 100_000_000


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: where it lies, its shape, and its dtype in the format's words ("BF16")."""

    file: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def map(self) -> np.ndarray:
        """The tensor, of a dtype in STORED, mapped from its file, read-only; its pages are let go with the array."""
        dtype = STORED[self.dtype]
        if not self.size:
            return np.zeros(self.shape, dtype)
        return np.memmap(self.file, dtype, "r", self.start, self.shape)


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises CheckpointError when the header is damaged, or the file is not as long as the header says.
    """
    length = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if length < 8 or size > min(length - 8, _LONGEST_HEADER):
            raise CheckpointError(
                f"{str(file)!r} is not a safetensors file, or its header is damaged: {length} bytes, of which the "
                f"first 8 announce a header of {size}; get the file again"
            )
        raw = stream.read(size)
    try:
        entries = json.loads(raw)
        tensors = {
            name: _tensor(file, name, entry, 8 + size) for name, entry in entries.items() if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{str(file)!r} has a damaged safetensors header ({type(error).__name__}: {error}); get the file again"
        ) from None
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=8 + size)
    if length != end:
        what = "truncated" if length < end else "too long"
        raise CheckpointError(
            f"{str(file)!r} is {what}: {length} bytes, but its header describes {end}; get the file again"
        )
    return tensors


def _tensor(file, name, entry, base) -> Tensor:
    start, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    dtype = STORED.get(entry["dtype"])
    if not 0 <= start <= end or (dtype is not None and end - start != math.prod(shape) * dtype.itemsize):
        raise ValueError(f"tensor {name!r} of shape {shape} and dtype {entry['dtype']} lies at {start} to {end}")
    return Tensor(file, name, entry["dtype"], shape, base + start, end - start)


def read_folder(folder: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` lists; in diffusers'
    folders both have another stem.

    Raises CheckpointError where there is neither, a listed file or tensor is missing, or a file is damaged.
    """
    for stem in (STEM, DIFFUSERS_STEM):
        if (folder / _index(stem)).is_file():
            return _read_indexed(folder / _index(stem))
        if (folder / f"{stem}.safetensors").is_file():
            return read_header(folder / f"{stem}.safetensors")
    present = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".h5"))
    advice = ""
    if any(name.endswith((".bin", ".pt", ".pth")) for name in present):
        advice = (
            "; PyTorch's pickles are not read, since opening one can run any code: convert it once where you trust it, "
            "with transformers' save_pretrained, which writes safetensors"
        )
    found = ", ".join(present[:8]) or "no weights"
    names = f"{STEM}.safetensors, {_index(STEM)} or {DIFFUSERS_STEM}.safetensors"
    raise CheckpointError(f"{str(folder)!r} has none of {names} (found: {found}){advice}")


def _index(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def _read_indexed(path: pathlib.Path) -> dict[str, Tensor]:
    folder = path.parent
    try:
        listed: Mapping[str, str] = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({type(error).__name__}: {error})") from None
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(listed.values()):
        if pathlib.PurePath(str(file)).name != file or not (folder / file).is_file():
            raise CheckpointError(f"{str(path)!r} lists the file {file!r}, which is not in its folder; get it too")
        tensors |= read_header(folder / file)
    for name, file in listed.items():
        if name not in tensors:
            raise CheckpointError(f"{str(path)!r} says that tensor {name!r} is in {file!r}, but it is not")
    return tensors


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: `make()` gives its numbers when their turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
    folder: pathlib.Path, tensors: Iterable[Outgoing], max_shard_size: int, progress=None, stem: str = STEM
) -> None:
    """Writes `model.safetensors`, or, beyond `max_shard_size` bytes, several files and their index.

    Args:
      stem: of the files' names.
      progress: called with the number of bytes after each tensor.
    """
    shards: list[list[Outgoing]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > max_shard_size:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_file(folder / f"{stem}.safetensors", shards[0], progress)
        return
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        write_file(folder / file, shard, progress)
    weight_map = {tensor.name: file for file, shard in zip(files, shards) for tensor in shard}
    total = sum(tensor.size for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _index(stem)).write_text(json.dumps(index, indent=2) + "\n")


def write_file(
    path: pathlib.Path, tensors: list[Outgoing], progress=None, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one file; `metadata` are texts that its header has beside the tensors."""
    codes = {dtype: code for code, dtype in STORED.items()}
    told = {"format": "pt"}  # the word by which transformers knows PyTorch's names
    header: dict = {"__metadata__": told | dict(metadata or {})}
    offset = 0
    for tensor in tensors:
        entry = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape)}
        header[tensor.name] = entry | {"data_offsets": [offset, offset + tensor.size]}
        offset += tensor.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            stream.write(np.ascontiguousarray(tensor.make()).view(np.uint8).reshape(-1).data)
            if progress is not None:
                progress(tensor.size)
        stream.flush()
        os.fsync(stream.fileno())
