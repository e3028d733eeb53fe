"""Models into published folders: config.json, safetensors, tokenizer; a folder is there whole or not at all."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.inference import kinds
from fmjax.interop.compressed_tensors import KEY, outgoing_few_bits
from fmjax.interop.family import TOKEN_IDS, TOKENIZER, Family, fixed_of, publish, table_of
from fmjax.interop.opening import PARTS
from fmjax.interop.preprocessor import PREPROCESSOR, labels, write_preprocessor
from fmjax.interop.published_objective import write_objective
from fmjax.interop.safetensors_files import DIFFUSERS_STEM, STEM, Outgoing, write_folder
from fmjax.interop.weights import Slot, flatten, slots, tensors
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import merged, without_adapters
from fmjax.small_files import read_json, replacing

MAX_SHARD_SIZE = 5_000_000_000


def save_published(
    model, directory: str | pathlib.Path, max_shard_size: int = MAX_SHARD_SIZE, progress: bool = False,
    architecture: str | None = None, dequantized: bool = False,
) -> None:  # fmt: skip
    """Writes a `fmjax.load.Model` as a folder that `transformers` loads with equal logits.

    Args:
      max_shard_size: bytes of a safetensors file at most; a larger model gets several and an index.
      progress: show a progress bar.
      architecture: of the published ones that compute what the model does, the one that is written; None: that which
        the model came as, or the usual one.
      dequantized: kernels of few bits are written as floats, and not as compressed-tensors has them
        (`fmjax.interop.compressed_tensors`).

    A model that reads images, or names classes, gets what its codecs say in `preprocessor_config.json` and `id2label`.

    Raises InputError for a directory that is not empty, or a model that no published class computes exactly, or without
    the tokenizer that the class has; TokenizerError for a tokenizer that the class does not have.
    """
    kept = model.config.get("published", {})
    family, values = publish(model.module, architecture or kept.get("architecture"))
    if family.tokenizer_class and model.tokenizer is None:
        raise InputError(
            f"{model} has no tokenizer, and a {family.architectures[0]} is not loaded without its {TOKENIZER}; save a "
            "model that has one (data.tokenizer of its run), or with format='fmjax'"
        )
    if family.check_tokenizer is not None and model.tokenizer is not None:
        family.check_tokenizer(model.tokenizer)
    params = merged(model.params) if dequantized else without_adapters(model.params)
    leaves = flatten({**params, **model.state})
    for path, leaf in leaves.items():
        if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in jax.tree.leaves(leaf)):
            raise InputError(f"parameter {path!r} is spread over several processes; save it as 'fmjax', load it in one")
    table = slots(table_of(family, model.module), {path: tuple(leaf.shape) for path, leaf in leaves.items()})
    outgoing = [
        Outgoing(name, parts[0].shape, np.dtype(leaves[parts[0].path].dtype), functools.partial(_gather, parts, leaves))
        for first, parts in tensors(table).items()
        for name in (first, *parts[0].copies)
        if not isinstance(leaves[parts[0].path], QTensor)
    ]
    few_bits, quantization = outgoing_few_bits(table, leaves)
    outgoing += few_bits
    for name, make in fixed_of(family, model.module).items():
        dtype = outgoing[0].dtype
        if (numbers := make()) is not None:
            outgoing.append(Outgoing(name, numbers.shape, dtype, lambda make=make, dtype=dtype: make().astype(dtype)))
    # A text beside images has its special tokens in its part's config, and nothing continues it.
    in_parts = kinds.has_two_towers(model.module) or family.in_folders
    reads_tokens = kinds.reads_tokens(model.module) and not in_parts
    values = (_token_ids(model, kept) if reads_tokens else {}) | values
    values |= write_objective(family, model.config.get("objective"), kept)
    if family.write_codec is not None and "image" in model.codecs:
        values |= family.write_codec(model.codecs["image"])
    values |= {} if quantization is None else {KEY: quantization}
    if family.model_type:  # diffusers' configs have none
        values["dtype"] = str(outgoing[0].dtype)
    if "id2label" in values and (names := getattr(model.codecs.get("label"), "names", ())):
        values |= {key: value for key, value in labels(names).items() if key in values}
    with whole_folder(directory) as folder:
        total = sum(tensor.size for tensor in outgoing)
        with tqdm(total=total, unit="B", unit_scale=True, desc="saving", disable=not progress) as bar:
            _write(folder, family, values, outgoing, max_shard_size, bar.update)
        if reads_tokens:
            bans = {"bad_words_ids": [[i] for i in kept["banned_ids"]]} if kept.get("banned_ids") else {}
            _write_json(folder / "generation_config.json", kept.get("generation") or _token_ids(model, kept) | bans)
        _write_tokenizer(model, family, folder)
        _write_beside(model, family, folder)
        if family.processor and "image" in model.codecs:
            _write_json(folder / PREPROCESSOR, write_preprocessor(model.codecs["image"], family.processor))


def _write(
    folder: pathlib.Path, family: Family, values: dict, outgoing: list[Outgoing], max_shard_size, progress
) -> None:
    """A folder's config and tensors; those of parts in folders of their own go there, and the classes of the parts."""
    if not family.in_folders:
        stem = STEM if family.model_type else DIFFUSERS_STEM
        write_folder(folder, outgoing, max_shard_size, progress, stem)
        _write_json(folder / "config.json", values)
        return
    values = dict(values)
    for part in family.parts:
        inside = part.inside({tensor.name: tensor for tensor in outgoing})
        inside = [dataclasses.replace(tensor, name=name) for name, tensor in inside.items()]
        (folder / part.name).mkdir()
        _write(folder / part.name, part.family, values.pop(part.key), inside, max_shard_size, progress)
        library = "transformers" if part.family.model_type else "diffusers"
        values[part.name] = [library, part.family.architectures[0]]
    if (name := family.objective_part) in values:
        (folder / name).mkdir()
        _write_json(folder / name / f"{name}_config.json", values[name])
        values[name] = ["diffusers", values[name]["_class_name"]]
    _write_json(folder / PARTS, values)


def _write_tokenizer(model, family: Family, folder: pathlib.Path) -> None:
    """A model's tokenizer; that of parts in folders of their own goes into one too, with how long a text is at most."""
    if model.tokenizer is None or (family.in_folders and not family.tokenizer_class):
        return
    if not family.in_folders:
        model.tokenizer.save(folder)
        return
    (folder / TOKENIZER).mkdir()
    model.tokenizer.save(folder / TOKENIZER)
    settings = folder / TOKENIZER / "tokenizer_config.json"
    _write_json(settings, read_json(settings) | {"model_max_length": model.module.text.max_length})
    index = folder / PARTS
    _write_json(index, read_json(index) | {TOKENIZER: ["transformers", family.tokenizer_class]})


def _write_beside(model, family: Family, folder: pathlib.Path) -> None:
    """The models that the objective names by path and the family has in folders of their own, and their classes."""
    index = folder / PARTS
    for name, part in family.beside.items():
        if getattr(model.objective, name, None) is None:
            continue
        other = model.opened(name)
        module = other.module if family.write_beside is None else family.write_beside(model, other.module)
        alone = dict(config={}, tokenizer=None, codecs={}, carry=None, kept={}, functions={})
        whole = dataclasses.replace(model, module=module, params=other.params, **alone)
        save_published(whole, folder / part.name, architecture=part.family.architectures[0])
        values = read_json(index) | {part.name: ["diffusers", part.family.architectures[0]]}
        _write_json(index, values)


def _token_ids(model, kept: dict) -> dict:
    """The special ids: what the model came with, or its tokenizer's."""
    if any(key in kept for key in TOKEN_IDS):
        return {key: kept[key] for key in TOKEN_IDS if key in kept}
    return {key: getattr(model.tokenizer, key.removesuffix("_token_id") + "_id", None) for key in TOKEN_IDS[:3]}


def _gather(parts: list[Slot], leaves) -> np.ndarray:
    """One published tensor, put together from its parts and their shards."""
    whole = np.empty(parts[0].shape, np.dtype(leaves[parts[0].path].dtype))
    for part in parts:
        for shard in leaves[part.path].addressable_shards:
            if shard.replica_id:
                continue
            index, data = shard.index, shard.data
            depth = len(part.place)
            bounds = [s.indices(n)[:2] for s, n in zip(index[:depth], leaves[part.path].shape)]
            if not all(start <= at < stop for at, (start, stop) in zip(part.place, bounds)):
                continue
            if depth:
                data = _row(data, tuple(at - start for at, (start, _) in zip(part.place, bounds)))
            part.write(whole, index[depth:], np.asarray(data))
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
