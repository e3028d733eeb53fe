"""Values out of noise: the ordinary differential equation of a flow, solved in one program."""

import collections
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference.checks import check_list
from fmjax.layers.modulation import NO_LABEL
from fmjax.parallel.placement import whole

SOLVERS = ("euler", "heun")


@dataclasses.dataclass(frozen=True)
class Options:
    """How values are made.

    Attributes:
      num_steps: of the solver from noise to data.
      solver: "euler" takes one velocity a step, "heun" the mean of those at its both ends (but for the last step).
      guidance: how far away from the velocity without a label: v + (guidance - 1) (v - v without); 1 is without.
      seed: of the noise.
      num_samples: values for each prompt.
      batch_size: values made at once.
    """

    num_steps: int = 50
    solver: Literal["euler", "heun"] = "heun"
    guidance: float = 1.0
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 64

    def __post_init__(self):
        for name in ("num_steps", "num_samples", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)!r} must be a whole number of at least 1")
        if self.solver not in SOLVERS:
            raise InputError(f"solver = {self.solver!r}; known: {', '.join(SOLVERS)}")
        if not self.guidance >= 0:
            raise InputError(f"guidance = {self.guidance!r} must be at least 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed = {self.seed!r} must be at least 0 and less than 2**32")


class Denoising:
    """Solves d x / d t = v(x, t, label) from noise at t = 1 to data at t = 0, with v the module's output.

    Prompts are values of the codec "label" (numbers, or names where the classes have them), or None for no label.
    """

    Options = Options

    def __init__(self, model):
        self.model = model
        self.labels = model.codecs.get("label")

    @staticmethod
    def lacks(model) -> str | None:
        if model.codec is None:
            makes = model.objective.makes
            return f"it has no codec {makes!r} to write its values with; was it saved without codecs.json?"
        return None

    def default_prompts(self) -> Sequence[Any]:
        """Every class; a model without classes makes one value of none."""
        return range(self.labels.num_classes) if self.labels is not None else [None]

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[tuple[int, Any]]:
        """(index, value): see `fmjax.inference.generators.Generator`."""
        check_list("prompts", prompts)
        module, codec = self.model.module, self.model.codec
        self._check_guidance(options.guidance)
        labels = [self._label(prompt) for prompt in prompts]
        # What a value is drawn with: its label and the number of the copy.
        copies, jobs = collections.Counter(), []
        for label in labels:
            for _ in range(options.num_samples):
                jobs.append((label, copies[label]))
                copies[label] += 1
        placement = self.model.placement
        size = max(min(options.batch_size, len(jobs)), 1)
        size += -size % (1 if placement is None else placement.num_row_shards)
        inside = self.model.inference if placement is None else placement.scoring
        for first in range(0, len(jobs), size):
            part = jobs[first : first + size]
            filled = np.array(part + part[-1:] * (size - len(part)), np.int32)
            with inside():
                arrays = _solve(
                    module, self.model.params, jax.random.key(options.seed), filled, codec.shape,
                    options.num_steps, options.solver, options.guidance,
                )  # fmt: skip
            for index, array in enumerate(np.asarray(arrays)[: len(part)]):
                yield first + index, codec.decode({codec.array: array})

    def _check_guidance(self, guidance: float) -> None:
        if guidance == 1.0:
            return
        if self.labels is None:
            raise InputError(f"guidance = {guidance}: {self.model} takes no labels to be guided by; leave guidance out")
        if getattr(self.model.objective, "label_dropout", None) == 0:
            raise InputError(
                f"guidance = {guidance}: {self.model} was trained with objective.label_dropout = 0, so it does not "
                "know the velocity without a label; leave guidance out"
            )

    def _label(self, prompt) -> int:
        if prompt is None:
            return NO_LABEL
        if self.labels is None:
            raise InputError(f"{self.model} takes no prompts, got {prompt!r}")
        return int(self.labels.encode(prompt)["labels"])


@functools.partial(jax.jit, static_argnames=("module", "shape", "num_steps", "solver", "guidance"))
def _solve(module, params, key, jobs, shape, num_steps, solver, guidance):
    """float32 [B, *shape] for jobs int32 [B, 2]: a label and a number that noise is drawn with."""
    labels = jobs[:, 0]
    takes_labels = "labels" in inspect.signature(type(module).__call__).parameters

    def noise(job):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, job[0] + 1), job[1]), shape)

    def velocity(x, time):
        times = jnp.full(len(x), time)

        def apply(labels):
            given = {"labels": labels} if takes_labels else {}
            return module.apply({"params": params}, inputs=x, times=times, **given).astype(jnp.float32)

        v = apply(labels)
        if guidance == 1.0:
            return v
        without = apply(jnp.full_like(labels, NO_LABEL))
        return without + guidance * (v - without)

    def step(index, x):
        time, after = 1 - index / num_steps, 1 - (index + 1) / num_steps
        v = velocity(x, time)
        ahead = x + (after - time) * v
        if solver == "euler":
            return ahead
        # The velocity at the data's end itself was never trained on.
        mean = lambda: x + (after - time) * 0.5 * (v + velocity(ahead, after))
        return jax.lax.cond(index + 1 < num_steps, mean, lambda: ahead)

    return whole(jax.lax.fori_loop(0, num_steps, step, jax.vmap(noise)(jobs)))
