"""An objective beside which a teacher says how likely each answer is: what distillation adds to any task.

A class is made of this and of the task's own objective, in this order, as those of `fmjax.objectives.distillation` are:

    class Taught(TaughtTokens, MyObjective): ...

The task's objective calls the module once. What it calls the student with, the teacher is called with too, so that
nothing here knows what the inputs are.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.models.projected import Projected, student_of
from fmjax.objectives.divergences import Likeliest, likeliest, likeliest_of
from fmjax.objectives.masked_lm import predicted
from fmjax.objectives.matching import Match, Seen, check_matches, match_sums
from fmjax.objectives.teacher import WithTeacher

KEPT = ("teacher_ids", "teacher_logprobs", "teacher_rest")
"""Arrays of rows that a teacher has seen before (`fmjax.commands.teach`): the fields of `Likeliest`."""
TEMPERATURE, NUM_ANSWERS = "teacher_temperature", "teacher_answers"
"""Of such rows' identity: what the teacher's logits were divided by."""

PADDED = ("segment_ids", "image_ids")
"""Inputs [B, T] that are 0 at padding."""


class Call(NamedTuple):
    """A call of a module by the task's objective.

    Attributes:
      output: what it gave.
      module, reads: where activations are matched, what was applied, and its collection of that name.
      ids: that it was given of `PADDED`, where activations are matched.
    """

    output: Any
    module: Any
    reads: Mapping[str, Any]
    ids: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Taught(WithTeacher):
    """(1 - weight) task + weight T^2 D(teacher, student) + the weighted losses of `matches`.

    D is the divergence of the softmax of logits divided by the temperature T; T^2 keeps its gradient's size beside that
    of the task, whatever T is (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.1). Each term is a mean
    over what it is of. An evaluation is the task's own.

    Attributes:
      teacher: a run, a published folder or a hub id that gives logits as the student does. It is not saved with the
        run. "": the rows have what it says, computed before (`python -m fmjax.commands.teach`).
      weight: share of the teacher in the loss, from 0 to 1.
      temperature: T.
      matches: hidden states and maps of attention that are to be the teacher's, by names of your choice, each a section
        (`fmjax.objectives.matching.Match`): {"hidden": {"of": "residual", "layers": "every", "loss": "cosine"}}.
    """

    ANSWERS: ClassVar[str] = ""
    """The module's field that tells how many answers a distribution has; "": rows have none of their own."""

    weight: float = 0.5
    temperature: float = 2.0
    matches: dict[str, Match] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.weight <= 1.0:
            raise ConfigError(f"objective.weight = {self.weight} must lie between 0 and 1")
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ConfigError(f"objective.temperature = {self.temperature} must be positive")
        for name, match in self._matches.items():
            match.check(f"objective.matches.{name}")
        if self._matches and not self.teacher:
            raise ConfigError(
                "objective.matches compares with activations of the teacher, which rows do not keep: name "
                "objective.teacher, or leave objective.matches out"
            )

    @functools.cached_property
    def _matches(self) -> dict[str, Match]:
        return {name: Match(**section) for name, section in (self.matches or {}).items()}

    def said(self, output, batch) -> tuple:
        """(what a module gave as `between` and `kept` take it, float32 weights of its distributions) for a batch."""
        raise NotImplementedError

    def between(self, teacher, student, weights) -> jax.Array:
        """The weighted sum, float32 [], of the divergences of what both `said`."""
        raise NotImplementedError

    def kept(self, said, count: int) -> Likeliest:
        """The `count` likeliest answers of what a teacher `said`, by row. Raises ConfigError where rows have none of
        their own."""
        raise NotImplementedError

    def place_weights(self, batch) -> jax.Array:
        """What rows [B] or their tokens [B, T] weigh in the losses of `matches`: as in the task."""
        return batch["loss_weights"]

    def likeliest(self, teacher, batch, count: int) -> dict[str, jax.Array]:
        """What is kept of what a teacher says of a batch: `KEPT`, [B, ...] each.

        teacher: `fmjax.objectives.base.OtherModel`.
        """
        output = self._of_teacher(teacher, batch, jax.random.key(0)).output  # without dropout nothing is drawn
        return dict(zip(KEPT, self.kept(self.said(output, batch)[0], count)))

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models=None) -> dict:
        """Sums of the task, and in training "task_loss" (its own), "divergence", and "match_NAME" of each match."""
        if not train:
            return super().__call__(apply_fn, params, batch, key, train)
        sums, student = self._observed(apply_fn, params, batch, key, train)
        taught = self._of_teacher(models["teacher"], batch, key) if self.teacher else None
        kept = lambda: Likeliest(*(batch[name] for name in KEPT))
        told = kept() if taught is None else self.said(taught.output, batch)[0]
        said, weights = self.said(student.output, batch)
        divergence = self.between(told, said, weights), weights.sum()
        found = self._matched(apply_fn, params, student, taught, self.place_weights(batch)) if self._matches else {}
        task = sums.pop("loss")
        named = {"task_loss": task, "divergence": divergence}
        named |= {f"match_{name}": pair for name, pair in found.items()}
        return {"loss": self._loss(task, divergence, found), **sums, **named}

    def _loss(self, task, divergence, found):
        """All terms, weighted; one pair where there is but one of the task, whose weight is the divergence's too."""
        total, weight = divergence
        total = self.weight * self.temperature**2 * total
        own = task if isinstance(task[0], tuple) else (task,)
        if self.weight in (0, 1):  # no gradient of the other is computed
            terms = ((total, weight),) if self.weight else own
        elif len(own) == 1:
            terms = (((1 - self.weight) * own[0][0] + total, weight),)
        else:
            terms = (*(((1 - self.weight) * value, of) for value, of in own), (total, weight))
        terms += tuple((self._matches[name].weight * value, of) for name, (value, of) in found.items())
        return terms if len(terms) > 1 else terms[0]

    def _observed(self, apply_fn, params, batch, key, train: bool) -> tuple[dict, Call]:
        """(the task's sums, how it called the module). Raises ConfigError unless it called it once."""
        calls = []

        def observed(variables, *args, **options):
            if not self._matches:
                calls.append(Call(apply_fn(variables, *args, **options), None, {}, {}))
                return calls[-1].output
            applied, method = [], options.pop("method", "__call__")

            def reading(module, *args, **options):
                applied.append(module.clone(parent=None))
                return getattr(module, method)(*args, **options)

            output, state = apply_fn(variables, *args, method=reading, mutable=["reads"], **options)
            ids = {name: options[name] for name in PADDED if name in options}
            calls.append(Call(output, applied[-1], state.get("reads", {}), ids))
            return output

        sums = super().__call__(observed, params, batch, key, train)
        if len(calls) != 1:
            raise ConfigError(
                f"objective {type(self).__name__} learns from a teacher beside a task that calls the model once, and "
                f"its task called it {len(calls)} times"
            )
        return dict(sums), calls[0]

    def _of_teacher(self, teacher, batch, key) -> Call:
        """How the task calls the teacher, in the student's place."""
        apply_fn = lambda variables, *args, **options: teacher.apply(*args, **options)
        return self._observed(apply_fn, None, batch, key, False)[1]

    def _matched(self, apply_fn, params, student: Call, teacher: Call, weights) -> dict:
        """Sums by name of match."""
        project, names = None, getattr(student.module, "names", ())
        if isinstance(student.module, Projected):
            project = lambda name, x: apply_fn({"params": params}, name, x, method="project") if name in names else x
        seen = [
            Seen(student_of(call.module), call.reads.get("student", call.reads), call.ids)
            for call in (student, teacher)
        ]
        seen[0].project = project
        return match_sums(self._matches, *seen, weights)

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the teacher does not answer as the module does, and where what is to be matched is
        not in both, or does not fit."""
        super().check_models(student_of(module), models)
        if self._matches:
            check_matches(self._matches, module, models["teacher"].module)

    def check(self, module, data) -> None:
        """As of the task; ConfigError also where there is neither a teacher nor what one said of the rows, at this
        temperature."""
        super().check(student_of(module), data)
        if self.teacher:
            return
        if missing := [name for name in KEPT if name not in data.train[0]]:
            raise ConfigError(
                f"objective.teacher is empty, and these data have no {missing[0]}: give the path of a run, a published "
                "folder or a hub id, or compute once what it says (python -m fmjax.commands.teach)"
            )
        answers, ours = data.identity.get(NUM_ANSWERS), getattr(student_of(module), self.ANSWERS, None)
        if answers is not None and int(answers) != ours:
            raise ConfigError(
                f"these rows have what a teacher of {answers} answers said, and model.{self.ANSWERS} = {ours}; take a "
                "model of as many, or compute them again with its teacher (python -m fmjax.commands.teach)"
            )
        there = data.identity.get(TEMPERATURE)
        if there is not None and float(there) != self.temperature:
            raise ConfigError(
                f"objective.temperature = {self.temperature}, and these rows have what the teacher said at {there}; "
                "set it to that, or compute them again (python -m fmjax.commands.teach)"
            )


@dataclasses.dataclass(frozen=True)
class TaughtTokens(Taught):
    """Of tasks whose module gives (hidden [B, T, D], head), at the positions that the task predicts."""

    ANSWERS: ClassVar[str] = "vocab_size"

    def said(self, output, batch):
        """((hidden, head), weights) of the places that are predicted."""
        hidden, weights = predicted(batch, output[0], batch["loss_weights"])
        return (hidden, output[1]), weights

    def between(self, teacher, student, weights):
        """See `Divergence.total`."""
        return self.divergence.total(teacher, student, weights, self.chunk_size)

    def kept(self, said, count: int) -> Likeliest:
        """Of each place."""
        return likeliest(*said, count, self.temperature, self.chunk_size)


@dataclasses.dataclass(frozen=True)
class TaughtClasses(Taught):
    """Of tasks whose module gives logits [B, classes]."""

    ANSWERS: ClassVar[str] = "num_classes"

    def said(self, output, batch):
        """(logits, weights of the rows)."""
        return output, batch["loss_weights"]

    def between(self, teacher, student, weights):
        """Of the rows."""
        return jnp.sum(self.divergence.of(teacher, student) * weights)

    def kept(self, said, count: int) -> Likeliest:
        """Of each row."""
        return likeliest_of(said, count, self.temperature)

    def check_teacher(self, module, teacher) -> None:
        """Raises ConfigError for a teacher of other classes."""
        ours, theirs = (getattr(one, "num_classes", None) for one in (module, teacher))
        if not theirs or ours != theirs:
            raise ConfigError(
                f"objective.teacher = {self.teacher!r} tells {theirs} classes apart, the model {ours}; name one that "
                "was trained on the same classes"
            )
