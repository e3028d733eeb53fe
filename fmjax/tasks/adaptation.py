"""Models adapted to labels before they are evaluated: a linear probe on frozen features, or all weights with a head.

Both are trained with the train step, the optimizers and the mesh of any other run. Either way the answer is linear in
features of the model, so one function reads the result: `class_logits` of texts or other values (`Media`),
`token_logits` of words.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.errors import InputError
from fmjax.inference import counted, embedding, kinds, pairs, pixels, values
from fmjax.inference.rows import padded
from fmjax.inference.word_vectors import framed, word_places, word_vectors
from fmjax.layers.checks import check_positive
from fmjax.models.state import STATE_KEY, kept_state
from fmjax.tasks.heads import Classifier, Probe

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long and how fast to train.

    Attributes:
      epochs, min_steps: passes over the training documents, and updates at least.
      batch_size: documents of an update; None is all of them.
      learning_rate: peak of a linear warm-up over a tenth of the updates with a linear decay; None is 0.064 / the
        model's hidden size: 1e-3 for a width of 64, 8e-5 for 768, 1.6e-5 for 4096.
      weight_decay: of matrices (AdamW).
      l2: what the loss holds of half the squared kernel of a probe, divided by the number of its training examples, as
        scikit-learn's LogisticRegression with C = 1 / l2.
    """

    epochs: float = 3.0
    min_steps: int = 100
    batch_size: int | None = 16
    learning_rate: float | None = None
    weight_decay: float = 0.01
    l2: float = 1.0

    def __post_init__(self):
        check_positive(min_steps=self.min_steps)

    def optimizer(self, steps: int) -> dict[str, Any]:
        """The config's section for so many updates."""
        schedule = {"name": "linear", "warmup_steps": steps // 10}
        rates = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        return {"name": "adamw", **rates, "schedule": schedule}


PROBE = Recipe(epochs=0, min_steps=400, batch_size=None, learning_rate=0.1, weight_decay=0.0)
FINE_TUNE = Recipe()


def class_logits(kernel, bias, model, inputs: Sequence[Any]) -> np.ndarray:
    """Float32 [N, C]: `kernel` [D, C] and `bias` [C] on the model's vectors of texts or media."""
    return vectors(model, inputs) @ np.asarray(kernel) + np.asarray(bias)


def token_logits(kernel, bias, model, sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """For each sentence float32 [words, C]; 0 throughout for words without a token (`word_vectors`)."""
    kernel, bias = np.asarray(kernel), np.asarray(bias)
    found = word_vectors(model, sentences)
    return [np.where(np.any(v != 0, axis=1, keepdims=True), v @ kernel + bias, 0.0) for v in found]


def vectors(model, inputs: Sequence[Any]) -> np.ndarray:
    """Float32 [N, D], of texts (`text_vectors`) or of media, as `Model.embed` pools them."""
    if kinds.has_two_towers(model.module) or isinstance(inputs[0], Media):
        return model.embed(list(inputs))
    return text_vectors(model, inputs)


def text_vectors(model, texts: Sequence[str]) -> np.ndarray:
    """Embeddings as `Model.embed` pools them, float32 [N, D]; of texts longer than the context, of their beginning."""
    with model.inference():
        return embedding.embed(model.module, model.params, _rows(model, texts), pooling=_pooling(model))


def _pooling(model) -> str:
    return "mean" if model.is_bidirectional else "last"


def _rows(model, texts: Sequence[str]) -> list[list[int]]:
    encoded = model.tokens(list(texts))
    found = [framed(model, ids) for ids in encoded]
    cut = sum(kept < len(ids) for ids, (_, _, kept) in zip(encoded, found))
    if cut:
        log.warning("%d of %d texts were longer than the model's context: their end was left out", cut, len(texts))
    return [tokens for tokens, _, _ in found]


def probe(model, inputs, labels, num_classes: int, seed: int, recipe: Recipe = PROBE):
    """The model with "class_logits" of a linear probe on its frozen embeddings (`vectors`), standardised.

    Args:
      model: a `fmjax.load.Model`.
      inputs, labels: training documents, texts or media, with labels from 0 to num_classes - 1.
      seed: of everything random; the same seed gives the same weights.
    """
    weights = _fit_probe(vectors(model, inputs), np.asarray(labels), num_classes, seed, recipe)
    return _with(model, "class_logits", class_logits, weights)


def probe_words(model, sentences, labels, num_classes: int, seed: int, recipe: Recipe = PROBE):
    """As `probe`, with "token_logits" and a label for each word, which is read at its first token."""
    found = np.concatenate(word_vectors(model, sentences))
    flat = np.concatenate([np.asarray(one, int) for one in labels])
    seen = np.any(found != 0, axis=1)
    return _with(model, "token_logits", token_logits, _fit_probe(found[seen], flat[seen], num_classes, seed, recipe))


def fine_tune(model, inputs, labels, num_classes: int, seed: int, recipe: Recipe = FINE_TUNE):
    """The model with all weights trained, and a head that gives "class_logits"; arguments as in `probe`."""
    if isinstance(inputs[0], Media):
        if pixels.lacks_palette(model) is None:
            raise InputError(f"{model} tells pixel after pixel and is not fine-tuned to classes; take a probe of it")
        arrays = values.encode(model, inputs, inputs[0].modality)
        pooling, method = _reading(model, *arrays)
    elif kinds.has_two_towers(model.module):
        arrays, pooling, method = _padded(pairs.framed(model, inputs), model), "none", "encode_texts"
    else:
        arrays, pooling, method = _padded(_rows(model, inputs), model), _pooling(model), "hidden"
    arrays |= {"labels": np.asarray(labels, np.int32), "loss_weights": np.ones(len(inputs), np.float32)}
    model, weights = _fine_tune(model, arrays, num_classes, (pooling, method), seed, recipe)
    return _with(model, "class_logits", class_logits, weights)


def fine_tune_words(model, sentences, labels, num_classes: int, seed: int, recipe: Recipe = FINE_TUNE):
    """As `fine_tune`, with "token_logits" and a label for each word, which counts at its first token."""
    placed = [word_places(model, sentence) for sentence in sentences]
    arrays = _padded([tokens for tokens, _ in placed], model)
    targets, weights = np.zeros_like(arrays["tokens"]), np.zeros(arrays["tokens"].shape, np.float32)
    for row, ((_, places), one) in enumerate(zip(placed, labels)):
        for place, label in zip(places, one):
            if place >= 0:
                targets[row, place], weights[row, place] = label, 1.0
    arrays |= {"labels": targets, "loss_weights": weights}
    model, weights = _fine_tune(model, arrays, num_classes, ("none", "hidden"), seed, recipe)
    return _with(model, "token_logits", token_logits, weights)


def _with(model, name: str, function, weights):
    """The model with a function that holds its weights where the fingerprint sees them."""
    return dataclasses.replace(model, functions=model.functions | {name: jax.tree_util.Partial(function, *weights)})


def _padded(rows: Sequence[Sequence[int]], model) -> dict[str, np.ndarray]:
    laid = padded(rows, len(rows), model.context_length)
    return {"tokens": laid.tokens, "segment_ids": laid.segment_ids}


def _fit_probe(vectors: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, recipe: Recipe):
    """(kernel [D, C], bias [C]) for features that are not standardised: what that takes is folded in."""
    mean, std = vectors.mean(axis=0), vectors.std(axis=0)
    std = np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, 1.0)  # a constant feature says nothing
    arrays = {
        "features": ((vectors - mean) / std).astype(np.float32),
        "labels": labels.astype(np.int32),
        "loss_weights": np.ones(len(labels), np.float32),
    }
    objective = {"name": "fmjax.tasks.heads:ProbeLoss", "l2": recipe.l2 / len(labels)}
    params = train(Probe(num_classes), arrays, objective, seed, recipe)[0]["head"]
    kernel = np.asarray(params["kernel"]) / std[:, None]
    return kernel.astype(np.float32), (np.asarray(params["bias"]) - mean @ kernel).astype(np.float32)


def _reading(model, array: str) -> tuple[str, str]:
    """(pooling, method) of a `Classifier` on the vectors that `Model.embed` gives of values in `array`."""
    if kinds.has_two_towers(model.module):
        return "none", f"encode_{array}"
    return ("none", "pooled") if kinds.has_pooled(model.module) else ("mean", "hidden")


def _fine_tune(model, arrays, num_classes: int, reading: tuple[str, str], seed: int, recipe: Recipe):
    """(the model, (kernel, bias)) after training; `reading` is pooling and method of a `Classifier`. All of it trains,
    so that adapters and kernels of few bits are merged first."""
    model = model.merged()
    names = [name for name in arrays if name not in ("labels", "loss_weights")]
    classifier = Classifier(model.module.clone(parent=None), num_classes, *reading)
    if recipe.learning_rate is None:
        one = {name: arrays[name][:1] for name in names}
        shapes = nn.unbox(jax.eval_shape(classifier.init, jax.random.key(0), **one)["params"])
        recipe = dataclasses.replace(recipe, learning_rate=0.064 / shapes["head"]["kernel"].shape[0])
    objective = {"name": "fmjax.tasks.heads:LabelLoss", "input_names": names}
    trained, carry = train(classifier, arrays, objective, seed, recipe, model)
    head, new = trained["head"], trained["backbone"]
    new = jax.tree.map(lambda new, old: new.astype(old.dtype), new, _part(model.params, new))
    # What the head does not read, such as that of masked tokens, stays as it was.
    model = dataclasses.replace(model, params=_replaced(model.params, new), kept={})
    if state := kept_state(carry):
        state = {name: _replaced(model.state[name], one["backbone"]) for name, one in state.items()}
        model = dataclasses.replace(model, carry=model.carry | {STATE_KEY: state})
    return model, (np.asarray(head["kernel"]), np.asarray(head["bias"]))


def _part(params: dict, wanted: dict) -> dict:
    """Of nested parameters those that `wanted` has."""
    return {k: _part(params[k], v) if isinstance(v, dict) else params[k] for k, v in wanted.items()}


def _replaced(params: dict, new: dict) -> dict:
    return {**params, **{k: _replaced(params[k], v) if isinstance(v, dict) else v for k, v in new.items()}}


def train(
    module: nn.Module, arrays: dict[str, np.ndarray], objective: dict, seed: int, recipe: Recipe, model=None
) -> tuple[Any, Any]:
    """(parameters, carry) of `module` trained on rows of `arrays`, whose leading axis is that of the documents.

    Args:
      model: whose parameters and state "backbone" begins with, and whose mesh is trained on; None draws them all, and
        trains on one device.

    Raises: InputError where the loss is no longer finite, and where batches of a module with state do not divide over
      the devices, saying what to change.
    """
    from fmjax.data.shuffle import ShuffledIndices
    from fmjax.parallel.mesh import MeshConfig
    from fmjax.training.program import make_program

    placement = None if model is None else model.placement
    count = len(arrays["labels"])
    shards = 1 if placement is None else placement.num_row_shards
    batch_size = min(recipe.batch_size or count, count)
    # What makes a batch divide over the devices has no weight, so that they are the same steps on any number of them.
    padding = -batch_size % shards
    if padding and model is not None and model.state:
        _refuse_padding(model, batch_size, shards)
    steps = max(recipe.min_steps, math.ceil(recipe.epochs * count / batch_size))
    config = {
        "seed": seed,
        "train": {"steps": steps, "batch_size": batch_size + padding},
        "mesh": dataclasses.asdict(MeshConfig(data=1) if placement is None else placement.config),
        "objective": objective,
        "optimizer": recipe.optimizer(steps),
    }
    example = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in arrays.items()}
    devices = jax.local_devices()[:1] if placement is None else None
    program = make_program(config, module, example, devices)
    state = program.init(None if model is None else _begin(program, model))
    if model is not None and model.state:
        state = dataclasses.replace(state, carry=_begin_carry(program, model))
    order, losses = ShuffledIndices(count, seed), []
    _count(arrays, [order[i] for i in range(steps * batch_size)], of_backbone=model is not None)
    with jax.set_mesh(program.mesh):
        for step in range(steps):
            rows = [order[step * batch_size + i] for i in range(batch_size)]
            batch = {name: array[rows + rows[:1] * padding] for name, array in arrays.items()}
            batch["loss_weights"][batch_size:] = 0
            batch = {name: jax.device_put(array, program.batch_sharding) for name, array in batch.items()}
            state, metrics = program.train_step(state, batch, program.key)
            losses.append(metrics["finite"])
    if not np.all(jax.device_get(losses)):
        raise InputError(
            f"training on {count} documents with learning rate {recipe.learning_rate} gave a loss that is not finite; "
            "lower the learning rate"
        )
    trained = state.params, state.carry
    return jax.device_get(trained) if placement is None else trained


def _count(arrays: dict[str, np.ndarray], order: Sequence[int], of_backbone: bool) -> None:
    """Tells what the training reads: the rows `order`, of texts by their lengths."""
    if "tokens" in arrays:
        lengths = arrays["segment_ids"].sum(axis=1)
        counted.trained(int(lengths[row]) for row in order)
    elif of_backbone:  # forward and backward, by the convention of `fmjax.layers.flops`, is three passes
        shapes = {name: array.shape[1:] for name, array in arrays.items() if name not in ("labels", "loss_weights")}
        counted.read_examples(shapes, 3 * len(order))


def _refuse_padding(model, batch_size: int, shards: int) -> None:
    """Rows without weight would count in what a forward pass makes of all rows of a batch, such as batch statistics."""
    raise InputError(
        f"batches of {batch_size} documents do not divide over {shards} devices, and what fills them up would count in "
        f"the {', '.join(map(repr, model.state))} of {type(model.module).__name__}; take batches that divide "
        "(batch_size of the recipe, number of documents), or fewer devices"
    )


def _begin(program, model):
    """Parameters to begin with, in float32 copies (the state takes them over): the model's, and a head of zeros."""
    shapes = program.spec.shapes.params
    old = _part(model.params, shapes["backbone"])
    copied = jax.tree.map(lambda s, old: jnp.array(old, s.dtype, copy=True), shapes["backbone"], old)
    head = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes["head"])
    return jax.device_put({"backbone": copied, "head": head}, program.spec.shardings.params)


def _begin_carry(program, model):
    """The carry to begin with: copies of the model's state, as the backbone's."""
    shapes = program.spec.shapes.carry[STATE_KEY]
    copied = {}
    for name, one in shapes.items():
        old = {"backbone": _part(model.state[name], one["backbone"])}
        copied[name] = jax.tree.map(lambda s, old: jnp.array(old, s.dtype, copy=True), one, old)
    return jax.device_put({STATE_KEY: copied}, program.spec.shardings.carry)
