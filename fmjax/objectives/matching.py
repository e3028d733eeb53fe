"""Activations of a student that are to be as its teacher's: hidden states and maps of attention, layer by layer.

What is compared lies under taps (`fmjax.layers.tap`), so of any model that has them, scanned or not.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.activations import MAPS, activations, attention_map, named, owner_of, read_shapes, stack_of
from fmjax.layers.checks import check_choice
from fmjax.layers.layer_map import layer_map
from fmjax.models.projected import Projected, student_of

LOSSES = ("mse", "cosine")


@dataclasses.dataclass(frozen=True)
class Match:
    """What of a student is to be as its teacher's, and how far from it that is.

    The loss is the mean over places, weighed as the task weighs them (`Taught.place_weights`), padding left out, of the
    sum over pairs of layers of the distance there: "mse", the mean over an activation's numbers, or over the heads and
    the keys that a place attends in both models, of squared differences (TinyBERT, Jiao et al. 2020, equations 7 and
    8); "cosine", 1 minus the cosine of both vectors (DistilBERT, Sanh et al. 2019). A student of another width learns a
    matrix for it (`model.name = "projected"`).

    Attributes:
      of: the name of an activation, such as "residual" (what a layer gives), "attention_out", "mlp_out", "final" (what
        the stack gives) or "embedded"; "attention_scores", before the softmax, or "attention_probabilities", of as many
        heads as the teacher's. Of a model of several stacks with the stack's, "vision/stack/residual".
      layers: which of the teacher's layers each of the student's learns from: as in `layer_map`.
      loss: "mse" or "cosine".
      weight: of this loss beside the others.
    """

    of: str = "residual"
    layers: tuple[int, ...] | str = "every"
    loss: str = "mse"
    weight: float = 1.0

    @property
    def is_map(self) -> bool:
        return self.of.rpartition("/")[2] in MAPS

    def check(self, where: str) -> None:
        """Raises ConfigError, naming `where` of the config, for what is no such loss."""
        check_choice(f"{where}.loss", self.loss, LOSSES)
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigError(f"{where}.weight = {self.weight} must be above 0")
        if self.is_map and self.loss != "mse":
            raise ConfigError(f"{where}.loss = {self.loss!r} is of vectors; maps of attention take 'mse'")

    def pairs(self, student, teacher, where: str) -> list[tuple[int, int]]:
        """(layer of the student, layer of the teacher) of the activations that are compared.

        Raises ConfigError where there are none, or `layers` does not fit both depths.
        """
        if (student.layers is None) != (teacher.layers is None):
            raise ConfigError(f"{where}.of = {self.of!r} is of layers in one of student and teacher alone")
        if student.layers is None:
            return [(0, 0)]
        found = layer_map(self.layers, student.layers, teacher.layers, f"{where}.layers")
        pairs = [pair for pair in enumerate(found) if pair[1] >= 0]
        if not pairs:
            raise ConfigError(f"{where}.layers = {self.layers} compares no layer; leave {where} out")
        return pairs


def check_matches(matches: Mapping[str, Match], module, teacher) -> None:
    """Raises ConfigError where what is to be matched is not there in both models, or does not fit.

    Args:
      module: the one that is trained, of which `fmjax.models.projected.Projected` has the student.
      teacher: its teacher's.
    """
    projected = module.names if isinstance(module, Projected) else ()
    student = student_of(module)
    ours, theirs = read_shapes(student), read_shapes(teacher)
    for name, match in matches.items():
        where = f"objective.matches.{name}"
        match.check(where)
        a, b = (named(found, match.of, where + f".of, of the {side},") for found, side in
                ((ours, "student"), (theirs, "teacher")))  # fmt: skip
        s, t = match.pairs(a, b, where)[0]
        if match.is_map:
            _check_heads(where, *(stack_of(*one).num_heads for one in ((student, a), (teacher, b))))
            continue
        whole = [one.at(layer).shape for one, layer in ((a, s), (b, t))]
        check_places(where, a.name, *whole)
        shapes = [shape[2:] for shape in whole]
        if name in projected:
            if shapes[0] != (module.student_width,) or shapes[1] != (module.width,):
                raise ConfigError(
                    f"model.names has {name!r}: {a.name} has {shapes[0]} numbers a place, the teacher's {shapes[1]}, "
                    f"and the matrix goes from {module.student_width} to model.width = {module.width}"
                )
        elif shapes[0] != shapes[1]:
            raise ConfigError(
                f"{where}: {a.name} has {shapes[0]} numbers a place in the student, {shapes[1]} in the teacher; a "
                "learnt matrix brings one to the other: model = {'name': 'projected', 'student': {...}, 'width': "
                f"{math.prod(shapes[1])}, 'names': ({name!r},)}}"
            )
    if unused := [name for name in projected if name not in matches or matches[name].is_map]:
        raise ConfigError(
            f"model.names has {unused[0]!r}, and objective.matches no such hidden states; it has "
            f"{', '.join(matches) or 'nothing'}"
        )


def check_places(where: str, name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """Raises ConfigError for activations that are not [B, T, ...] of as many places in both models."""
    for side, shape in (("student", ours), ("teacher", theirs)):
        if len(shape) < 3:
            raise ConfigError(
                f"{where}: {name} of the {side} has the shape {tuple(shape)}, no places between rows and numbers; "
                "match an activation that has some, such as 'residual'"
            )
    if ours[1] != theirs[1]:
        raise ConfigError(
            f"{where}: {name} has {ours[1]} places in the student, {theirs[1]} in the teacher; match models that read "
            "as many, such as images by patches of one size"
        )


def _check_heads(where: str, ours: int, theirs: int) -> None:
    if ours != theirs:
        raise ConfigError(
            f"{where} compares maps of attention head by head, and the student has {ours} heads, the teacher {theirs}; "
            "match hidden states in their place"
        )


@dataclasses.dataclass
class Seen:
    """One model as it was called.

    Attributes:
      module: what was applied, without what is around a student.
      reads: its collection of that name.
      ids: int32 [B, T] that it was given and are 0 at padding: "segment_ids" of texts, "image_ids" of patches.
      project: from the name of a match and an array to the array as the teacher's width has it.
    """

    module: Any
    reads: Mapping[str, Any]
    ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    project: Any = None


def match_sums(
    matches: Mapping[str, Match], student: Seen, teacher: Seen, weights=None
) -> dict[str, tuple[jax.Array, jax.Array]]:  # fmt: skip
    """{name: (weighted sum over places, sum of their weights)} of what is matched; the gradient is the student's alone.

    A place counts that is no padding in either model.

    Args:
      weights: float [B] of rows, or [B, T] of tokens, of which a row of something else than these tokens weighs 1 where
        some do; None is 1.

    Raises ConfigError for activations of other places in both models.
    """
    ours, theirs = activations(student.reads), activations(jax.lax.stop_gradient(teacher.reads))
    sums = {}
    for name, match in matches.items():
        where = f"objective.matches.{name}"
        a, b = named(ours, match.of, f"{where}.of"), named(theirs, match.of, f"{where}.of")
        total = 0.0
        for s, t in match.pairs(a, b, where):
            check_places(where, a.name, a.at(s).shape, b.at(t).shape)
            if match.is_map:
                total += _between_maps(match, (student, ours, a, s), (teacher, theirs, b, t))
                continue
            x = a.at(s) if student.project is None else student.project(name, a.at(s))
            total += _between_vectors(match.loss, x, b.at(t))
        there = _weights(weights, student, a, total.shape)
        for seen, activation in ((student, a), (teacher, b)):
            ids = _ids(seen, activation, total.shape[1])
            there = there if ids is None else there * (ids > 0)
        sums[name] = (jnp.sum(total * there), there.sum())
    return sums


def _between_vectors(loss: str, student, teacher) -> jax.Array:
    """float32 [B, T] of arrays [B, T, ...]."""
    x, y = (one.astype(jnp.float32).reshape(*one.shape[:2], -1) for one in (student, teacher))
    if loss == "mse":
        return jnp.mean((x - y) ** 2, axis=-1)
    length = lambda one: jnp.sqrt(jnp.sum(one**2, axis=-1) + 1e-12)
    return 1.0 - jnp.sum(x * y, axis=-1) / (length(x) * length(y))


def _between_maps(match: Match, student, teacher) -> jax.Array:
    """float32 [B, T]: the mean of squared differences over heads and the keys that a place may attend in both."""
    maps = []
    for seen, found, queries, layer in (student, teacher):
        ids = _ids(seen, queries, queries.at(layer).shape[1])
        maps.append(attention_map(seen.module, found, queries, layer, ids, match.of.endswith("probabilities")))
    (x, mine), (y, others) = maps
    allowed = mine & others
    squares = jnp.mean(jnp.where(allowed[:, None], x - y, 0.0) ** 2, axis=1)
    return jnp.sum(squares, axis=-1) / jnp.maximum(jnp.sum(allowed, axis=-1), 1)


def _ids(seen: Seen, activation, length: int):
    """Those that the stack of an activation [B, length, ...] was given, or None. Raises ConfigError for others."""
    name = "segment_ids" if _reads_tokens(seen, activation) else "image_ids"
    ids = seen.ids.get(name)
    if ids is not None and ids.shape[1] != length:
        raise ConfigError(
            f"objective.matches compares {activation.name}, which has {length} places of the {ids.shape[1]} that "
            f"{name} tell the padding of; match an activation of another stack"
        )
    return ids


def _reads_tokens(seen: Seen, activation) -> bool:
    return hasattr(owner_of(seen.module, activation), "vocab_size")


def _weights(weights, seen: Seen, activation, shape: tuple[int, int]) -> jax.Array:
    """float32 [B, T], what each place of an activation weighs."""
    if weights is None:
        return jnp.ones(shape, jnp.float32)
    if weights.ndim == 2 and (weights.shape != shape or not _reads_tokens(seen, activation)):
        weights = jnp.max(weights, axis=1) > 0
    weights = weights if weights.ndim == 2 else weights[:, None]
    return jnp.broadcast_to(weights, shape).astype(jnp.float32)
