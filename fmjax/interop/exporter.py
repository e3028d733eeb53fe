"""Models into published folders: config.json, safetensors, tokenizer; a folder is there whole or not at all."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.interop.family import TOKEN_IDS, publish
from fmjax.interop.safetensors_files import Outgoing, write_folder
from fmjax.interop.weights import Slot, flatten, slots, tensors
from fmjax.layers.weights import merged
from fmjax.small_files import replacing

MAX_SHARD_SIZE = 5_000_000_000


def save_published(
    model, directory: str | pathlib.Path, max_shard_size: int = MAX_SHARD_SIZE, progress: bool = False
) -> None:
    """Writes a `fmjax.load.Model` as a folder that `transformers` loads with equal logits.

    Args:
      max_shard_size: bytes of a safetensors file at most; a larger model gets several and an index.
      progress: show a progress bar.

    Raises InputError for a directory that is not empty, or a model that no published class computes exactly.
    """
    kept = model.config.get("published", {})
    family, values = publish(model.module, kept.get("architecture"))
    leaves = flatten(merged(model.params))
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise InputError(f"parameter {path!r} is spread over several processes; save it as 'fmjax', load it in one")
    outgoing = [
        Outgoing(name, parts[0].shape, np.dtype(leaves[parts[0].path].dtype), functools.partial(_gather, parts, leaves))
        for name, parts in tensors(slots(family.table, {p: tuple(x.shape) for p, x in leaves.items()})).items()
    ]
    ids = _token_ids(model, kept)
    values = ids | values | {"dtype": str(outgoing[0].dtype)}
    with whole_folder(directory) as folder:
        total = sum(tensor.size for tensor in outgoing)
        with tqdm(total=total, unit="B", unit_scale=True, desc="saving", disable=not progress) as bar:
            write_folder(folder, outgoing, max_shard_size, bar.update)
        bans = {"bad_words_ids": [[i] for i in kept["banned_ids"]]} if kept.get("banned_ids") else {}
        _write_json(folder / "generation_config.json", kept.get("generation") or ids | bans)
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        _write_json(folder / "config.json", values)


def _token_ids(model, kept: dict) -> dict:
    """The special ids: what the model came with, or its tokenizer's."""
    if any(key in kept for key in TOKEN_IDS):
        return {key: kept[key] for key in TOKEN_IDS if key in kept}
    return {key: getattr(model.tokenizer, key.removesuffix("_token_id") + "_id", None) for key in TOKEN_IDS[:3]}


def _gather(parts: list[Slot], leaves) -> np.ndarray:
    """One published tensor, put together from its parts and their shards."""
    whole = np.empty(parts[0].shape, np.dtype(leaves[parts[0].path].dtype))
    for part in parts:
        target = part.view(whole)
        for shard in leaves[part.path].addressable_shards:
            if shard.replica_id:
                continue
            index, data = shard.index, shard.data
            if part.layer is not None:
                first, last, _ = index[0].indices(leaves[part.path].shape[0])
                if not first <= part.layer < last:
                    continue
                index, data = index[1:], _row(data, part.layer - first)
            target[index] = np.asarray(data)
    return whole


@jax.jit
def _row(x, index):
    return x[index]


def check_new(directory: str | pathlib.Path) -> None:
    """Raises InputError where `directory` is a file or a folder with something in it."""
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        what = "already holds a model" if (directory / "config.json").exists() else "is not an empty folder"
        raise InputError(f"{str(directory)!r} {what}; save to a new directory")


@contextlib.contextmanager
def whole_folder(directory: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder that becomes `directory` when everything in it is written, and vanishes when something fails.

    Raises InputError where `directory` is a file or a folder with something in it.
    """
    directory = pathlib.Path(directory)
    check_new(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with replacing(directory) as partial:
        partial.mkdir()
        yield partial


def _write_json(path: pathlib.Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
