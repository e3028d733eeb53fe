"""What a model of images and texts in one space does: vectors of either, and classes that are told in words."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fmjax.data.captions import CaptionRows
from fmjax.errors import InputError
from fmjax.inference import prompts, values
from fmjax.inference.checks import check_list, check_whole
from fmjax.inference.rows import bucket, check_lengths
from fmjax.models.dual_encoder import other_padding
from fmjax.parallel.placement import whole


def lacks_vectors(model) -> str | None:
    """What a model of pairs lacks to give vectors of one of its sides."""
    return None if prompts.lacks_tokenizer(model) is None else values.lacks_reading(model)


def lacks_classes(model) -> str | None:
    """What a model of pairs lacks to classify images by words."""
    if not hasattr(model.module, "probabilities"):
        return f"{type(model.module).__name__} has no method probabilities(image, text) of vectors"
    return prompts.lacks_tokenizer(model) or values.lacks_reading(model)


def embed(
    model, inputs: Sequence[Any] | None = None, *, texts: Sequence[str] | None = None, pooling: None = None,
    normalize: bool = True, batch_size: int | None = None, progress: str | None = None, **named: Sequence[Any],
) -> np.ndarray:  # fmt: skip
    """Vectors of images or of texts in the model's space, float32 [N, E], of length 1.

    Args:
      inputs: texts, or values of the modality that the model reads; or, by name, `texts` or `images`.
      pooling, normalize: what the model does is what it was trained for, so nothing else can be asked.
      batch_size: values of one forward pass; None goes by the platform.
      progress: label of a progress bar; None shows none.

    Raises InputError for values of another kind, and for a text that is longer than the model reads.
    """
    if pooling is not None:
        raise InputError(f"{model} pools by itself, as it was trained; leave pooling = {pooling!r} out")
    given = {name: value for name, value in {"inputs": inputs, "texts": texts, **named}.items() if value is not None}
    if len(given) != 1:
        raise InputError(f"embed takes one list of inputs, got {len(given)} ({', '.join(given) or 'none'})")
    ((name, found),) = given.items()
    check_list(name, found)
    if name == "inputs":
        name = "texts" if len(found) and all(isinstance(value, str) for value in found) else None
    if name == "texts":
        return embed_texts(model, found, batch_size, progress)
    modality = None if name is None else values.read_by_name(model, name)
    arrays = values.encode(model, found, modality)
    forward = lambda arrays: _encode(model.module, model.variables, arrays, "encode_images")
    parts = list(values.in_batches(model, arrays, forward, "embed", batch_size, progress))
    return np.concatenate(parts) if parts else np.zeros((0, _width(model)), np.float32)


def embed_texts(
    model, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None, overlong: str = "error"
) -> np.ndarray:
    """Vectors of texts, float32 [N, E], of length 1; short texts are computed in short rows. See `embed`, and `framed`
    for `overlong`."""
    rows = framed(model, texts, overlong)
    found = np.zeros((len(rows), _width(model)), np.float32)
    groups = defaultdict(list)
    for index, row in enumerate(rows):
        groups[bucket(len(row), high=model.module.max_length)].append(index)
    forward = lambda arrays: _encode(model.module, model.variables, arrays, "encode_texts")
    for length, group in sorted(groups.items()):
        arrays = {name: np.zeros((len(group), length), np.int32) for name in ("tokens", "segment_ids")}
        for place, index in enumerate(group):
            arrays["tokens"][place, : len(rows[index])] = rows[index]
            arrays["segment_ids"][place, : len(rows[index])] = 1
        found[group] = np.concatenate([*values.in_batches(model, arrays, forward, "embed", batch_size, progress)])
    return found


def caption_rows(model) -> CaptionRows:
    """The rule by which the model's run lays captions in rows, of as many tokens as the model reads: one that says
    nothing of captions that are too long cuts them, as `fmjax.data` does."""
    overlong = model.config.get("data", {}).get("overlong", "cut")
    return CaptionRows(model.tokenizer, model.module.max_length, overlong)


def framed(model, texts: Sequence[str], overlong: str = "error") -> list[list[int]]:
    """Tokens of texts with what the tokenizer puts around a text, as in training.

    overlong: "cut" leaves out the end of a text that is longer than the model reads, as `CaptionRows` does.

    Raises InputError without a tokenizer, for what is no text, and for one that is longer than the model reads, and
    where the model reads another padding than the tokenizer's.
    """
    model.tokens(texts)  # checks the texts
    if (wrong := other_padding(model.module, model.tokenizer)) is not None:
        raise InputError(wrong)
    rows = [model.tokenizer.encode_pair(text)[0] for text in texts]
    for index, row in enumerate(rows):
        if not row:
            raise InputError(f"text {index} has no tokens, so there is nothing to embed")
    if overlong == "cut":
        most, cut = model.module.max_length, caption_rows(model).cut
        rows = [row if len(row) <= most else cut(text, row) for text, row in zip(texts, rows)]
    check_lengths(rows, model.module.max_length, "shorten or split it")
    return rows


def class_vectors(
    model, classes: Sequence[str], templates: Sequence[str] = ("{}",), batch_size: int | None = None,
    progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Vectors of classes, float32 [C, E], of length 1: of each the mean of its texts' vectors, one text a template,
    made of length 1 again (Radford et al. 2021, section 3.1.4). Raises as `template_vectors`."""
    vectors = template_vectors(model, classes, templates, batch_size, progress).mean(axis=1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def template_vectors(
    model, classes: Sequence[str], templates: Sequence[str], batch_size: int | None = None, progress: str | None = None
) -> np.ndarray:
    """Vectors of classes in templates, float32 [C, T, E], of length 1.

    Raises InputError for no classes or templates, a class that is there twice, and a template without one {}.
    """
    for what, texts in (("classes", classes), ("templates", templates)):
        check_list(what, texts)
        if not len(texts) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{what} must be texts, at least one, got {texts!r}")
    for name in classes:
        if list(classes).count(name) > 1:
            raise InputError(f"the class {name!r} is there {list(classes).count(name)} times; name each once")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"the template {template!r} must have one {{}}, where the class stands")
    texts = [template.replace("{}", name) for name in classes for template in templates]
    return embed_texts(model, texts, batch_size, progress).reshape(len(classes), len(templates), -1)


def classify(
    model, images: Sequence[Any], classes: Sequence[str] | None = None, *, templates: Sequence[str] = ("{}",),
    alternatives: bool = False, top_k: int | None = None, batch_size: int | None = None, progress: str | None = None,
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """For each image the `top_k` likeliest of classes that are told in words, (class, probability) each.

    Args:
      images: values of the modality that the model reads.
      classes: texts, such as ["a cat", "a dog"].
      templates: texts with one {}, in which each class is put: an ensemble of prompts (`class_vectors`).
      alternatives: for templates that say different things, such as where the thing is: an image is of a class if one
        of the class's texts fits (`DualEncoder.probabilities_of_any`). A mean of such texts' vectors fits no image.
      top_k: None is all of them.
      batch_size: of one forward pass; None goes by the platform.
      progress: label of a progress bar; None shows none.

    The probabilities are the module's: of one class among these, or, of a model that was trained on each pair by itself
    (SigLIP), of each class by itself.
    Raises InputError as `embed` and `class_vectors`.
    """
    if classes is None:
        raise InputError(f"{model} classifies by words: give it some, as in m.classify(images, ['a cat', 'a dog'])")
    if top_k is not None:
        check_whole(1, len(classes), top_k=top_k)
    of_texts = template_vectors if alternatives else class_vectors
    names = of_texts(model, classes, templates, batch_size)
    vectors = embed(model, values_of(model, images), batch_size=batch_size, progress=progress)
    if not len(vectors):
        return []
    with model.inference():
        method = "probabilities_of_any" if alternatives else "probabilities"
        found = np.asarray(_probabilities(model.module, model.variables, vectors, names, method))
    best = np.argsort(-found, axis=-1, kind="stable")[:, :top_k]
    return [[(classes[i], float(row[i])) for i in order] for row, order in zip(found, best)]


def values_of(model, images: Sequence[Any]) -> Sequence[Any]:
    """The images. Raises InputError for texts that are no files' paths."""
    check_list("images", images)
    for index, image in enumerate(images):
        if isinstance(image, str) and not values.is_file(image):
            raise InputError(f"image {index} is the text {image[:40]!r}; classify takes images, then classes in words")
    return images


def _width(model) -> int:
    """Of the model's space."""
    return jax.eval_shape(
        lambda variables, arrays: model.module.apply(variables, **arrays)["image"],
        model.variables, model.module.example(),
    ).shape[-1]  # fmt: skip


@functools.partial(jax.jit, static_argnames=("module", "method"))
def _encode(module: nn.Module, variables, arrays, method: str) -> jax.Array:
    return whole(module.apply(variables, **arrays, method=method))


@functools.partial(jax.jit, static_argnames=("module", "method"))
def _probabilities(module: nn.Module, variables, image, text, method: str) -> jax.Array:
    return whole(module.apply(variables, image, text, method=method))

