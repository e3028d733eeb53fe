"""What a model says of values that are no texts: through the codecs of its run, which alone know what they are."""

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.data.codecs.media import Media, described
from fmjax.errors import DataError, InputError
from fmjax.inference import counted, kinds
from fmjax.inference.checks import check_list, check_whole
from fmjax.inference.rows import bucket, pass_tokens
from fmjax.layers.checks import check_choice
from fmjax.parallel import watch
from fmjax.parallel.placement import whole
from fmjax.parallel.platform import target_platform

POOLINGS = ("mean", "first", "last")
PASS_VALUES = 64
"""Of one forward pass where nothing else is asked."""
PASS_BYTES = 2**21
"""Of what goes into one on a CPU: 16 images of 100x100 pixels."""
OWN = "own"
"""Not pooled here: the module gives one vector a value (`pooled`)."""


def reads(model) -> dict[str, Any]:
    """Codecs, by modality, of what the model reads: those whose `array` is among what its module takes."""
    taken = kinds.inputs(model.module)
    return {modality: codec for modality, codec in model.codecs.items() if getattr(codec, "array", None) in taken}


def names(model) -> dict[str, str]:
    """Modalities that the model reads by what lists of their values are called: "images", or the codec's array."""
    return {name: mode for mode, codec in reads(model).items() for name in (f"{mode}s", codec.array)}


def read_by_name(model, name: str) -> str:
    """The modality whose values are called so. Raises InputError, naming what there is."""
    if name in names(model):
        return names(model)[name]
    known = ", ".join(f"{one}=[...]" for one in names(model))
    raise InputError(f"{model} reads no {name!r}; it reads {known or 'no values but texts'}")


def encode(model, values: Sequence[Any], modality: str | None = None, what: str = "input") -> dict[str, np.ndarray]:
    """The module's arrays [N, ...] of values: bare, in files (`pathlib.Path`, or a text that is a file's path), or
    `Media`. What the codec makes of a value is what it makes of its file.

    Args:
      modality: of the values; None where the model reads one alone.
      what: a value is called in messages.

    Raises InputError for a value of another modality, or one that the codec does not take, naming its place.
    """
    check_list(f"{what}s", values)
    codecs = reads(model)
    if modality is None and len(codecs) == 1:
        (modality,) = codecs

    def row(index: int, value: Any) -> dict[str, np.ndarray]:
        value = pathlib.Path(value) if is_file(value) else value
        of_another = isinstance(value, str) or (isinstance(value, Media) and value.modality != modality)
        if of_another or modality not in codecs:
            expected = ", ".join(codecs) or "nothing but texts"
            unless = " (no file is called so)" if codecs and isinstance(value, str) else ""
            raise InputError(f"{what} {index} is {described(value)}, and {model} reads {expected}{unless}")
        try:
            codec = codecs[modality]
            value = Media(modality, value) if isinstance(value, pathlib.Path) else value
            return value.encode(codec) if isinstance(value, Media) else codec.encode(value)
        except DataError as error:
            raise InputError(f"{what} {index}: {error}") from None

    if len(values) == 1:
        rows = [row(0, values[0])]
    else:  # on threads: Pillow lets others run while it decodes and scales
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(row, itertools.count(), values))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


def is_file(value: Any) -> bool:
    """Whether it is a text that is the path of a file."""
    return isinstance(value, str) and os.path.isfile(value)  # False for what can be no path


def lacks_reading(model) -> str | None:
    """What it lacks to read values at all."""
    if reads(model):
        return None
    taken = ", ".join(kinds.inputs(model.module))
    return f"it has no codec of what its module takes ({taken or 'nothing'})"


def lacks_classes(model) -> str | None:
    """What a model lacks to classify values."""
    modality = getattr(model.objective, "predicts", None)
    if modality is None:
        return "its objective names nothing that it predicts (`predicts`), as classification does"
    if modality not in model.codecs:
        return f"it has no codec {modality!r} of what it predicts; was it saved without codecs.json?"
    return lacks_reading(model)


def classify(
    model, values: Sequence[Any], *, top_k: int | None = None, batch_size: int | None = None,
    progress: str | None = None,
) -> list[list[tuple[Any, float]]]:  # fmt: skip
    """For each value the `top_k` likeliest classes, (label, probability) each; all of them for None.

    Args:
      values: of the modality that the model reads, such as images uint8 [H, W, C], or `Media` of it.
      batch_size: values of one forward pass; None goes by the platform.
      progress: label of a progress bar; None shows none.

    Raises InputError for a value that the model's codec does not take.
    """
    codec, found = model.codecs[model.objective.predicts], []
    forward = lambda arrays: _forward(model.module, model.variables, arrays, None)
    for part in in_batches(model, encode(model, values), forward, "classify", batch_size, progress):
        best = np.argsort(-part, axis=-1, kind="stable")
        if top_k is not None:
            check_whole(1, part.shape[-1], top_k=top_k)
            best = best[:, :top_k]
        for row, classes in zip(part, best):
            found.append([(codec.decode({codec.array: label}), float(row[label])) for label in classes])
    return found


def embed(
    model, values: Sequence[Any], *, modality: str | None = None, pooling: str | None = None, normalize: bool = False,
    batch_size: int | None = None, progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Vectors of values, float32 [N, D], from the last layer's output; see `Model.embed`.

    pooling: None is the module's own (`pooled`), or else "mean".
    """
    if pooling is None:
        pooling = OWN if kinds.has_pooled(model.module) else "mean"
    known = [*POOLINGS] if kinds.has_hidden(model.module) else []
    check_choice("pooling", pooling, known + [OWN] * kinds.has_pooled(model.module))
    arrays = encode(model, values, modality)
    forward = lambda arrays: _forward(model.module, model.variables, arrays, pooling)
    parts = list(in_batches(model, arrays, forward, "embed", batch_size, progress))
    if not parts:
        example = model.module.example()
        shape = jax.eval_shape(functools.partial(_forward, model.module, pooling=pooling), model.variables, example)
        return np.zeros((0, shape.shape[-1]), np.float32)
    found = np.concatenate(parts)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) if normalize else found


def in_batches(
    model, arrays: Mapping[str, np.ndarray], forward: Callable, what: str, batch_size: int | None,
    progress: str | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """What `forward` gives for all rows, batch by batch of one height, the last filled up with rows of zeros.

    Args:
      forward: {name: [B, ...]} -> array [B, ...], computed with the model's parameters as they lie.
      what: the values are read for, for messages.
      batch_size: rows of a batch; None goes by the platform.
    """
    batch_size = _pass_size(arrays) if batch_size is None else batch_size
    check_whole(1, batch_size=batch_size)
    count = len(next(iter(arrays.values()), ()))
    placement, shards, context = model.placement, 1, contextlib.nullcontext
    if placement is not None:
        shards, context = placement.num_row_shards, placement.scoring
    height = min(bucket(count, low=1), batch_size)
    height += -height % shards
    counted.read_examples({name: array.shape[1:] for name, array in arrays.items()}, count)
    with tqdm(total=count, desc=progress, disable=progress is None, unit=" inputs", dynamic_ncols=True) as bar:
        for start in range(0, count, height):
            watch.at(f"a batch of values to {what}")
            part = {name: array[start : start + height] for name, array in arrays.items()}
            size = min(height, count - start)
            filled = {n: np.pad(x, [(0, height - size), *[(0, 0)] * (x.ndim - 1)]) for n, x in part.items()}
            with context():
                yield np.asarray(forward(filled))[:size]
            bar.update(size)
    watch.at(f"what follows the values to {what}", limited=False)


def _pass_size(arrays: Mapping[str, np.ndarray]) -> int:
    """Values of one forward pass where nothing else is asked: on a CPU few enough for what a layer computes of them to
    stay in the processor's caches."""
    if target_platform() != "cpu" or not arrays:
        return PASS_VALUES
    if "tokens" in arrays:
        size = pass_tokens() // max(1, arrays["tokens"].shape[1])
    else:
        size = PASS_BYTES // max(1, sum(array[:1].nbytes for array in arrays.values()))
    return max(1, min(PASS_VALUES, size))


@functools.partial(jax.jit, static_argnames=("module", "pooling"))
def _forward(module: nn.Module, variables, arrays, pooling: str | None) -> jax.Array:
    """Float32 [B, C], probabilities of the classes; with a pooling [B, D], vectors of `hidden` or `pooled`."""
    if pooling is None:
        return whole(jax.nn.softmax(module.apply(variables, **arrays).astype(jnp.float32), axis=-1))
    if pooling == OWN:
        return whole(module.apply(variables, **arrays, method="pooled").astype(jnp.float32))
    hidden = module.apply(variables, **arrays, method="hidden").astype(jnp.float32)
    pooled = {"mean": lambda: hidden.mean(axis=1), "first": lambda: hidden[:, 0], "last": lambda: hidden[:, -1]}
    return whole(pooled[pooling]())
