"""Consistency models (Song et al. 2023, https://arxiv.org/abs/2303.01469): distilled from a diffusion model, or learnt
alone."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion import TARGETS, member
from fmjax.diffusion.consistency import check_boundary, flow_step
from fmjax.diffusion.guidance import Guidance
from fmjax.diffusion.targets import solve
from fmjax.diffusion.weightings import Simple
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive, check_rate
from fmjax.layers.modulation import NO_LABEL
from fmjax.objectives.base import Proposal, per_row
from fmjax.objectives.diffusion import Diffusion


@dataclasses.dataclass(frozen=True)
class ConsistencyModel(Diffusion):
    """How far apart the function is at two neighbouring times of one path of the probability flow (the paper's
    definition 1), where it should be equal; at the earlier one by an average of the parameters, through which no
    gradient goes.

    The path goes from noise mixed into data by one step of the teacher (algorithm 2), or, without one, along the
    straight line of the same data and noise (algorithm 3). The function is x0 by the target; samples are drawn in one
    step or a few (`fmjax.inference.consistency`).

    Attributes:
      target: what the module returns; "consistency", or one of a process without noise at its least time.
      teacher: a run of objective diffusion or flow_matching with this process; None is without. It is not saved with
        the run. To begin with its parameters, set train.init_from to the same.
      teacher_target: what the teacher returns.
      guidance: of the teacher, by which the model then is guided itself; 1 is none.
      num_intervals: into which the times are cut, equally long; neighbours are the ends of one.
      solver: of the teacher's step, "heun" or "euler".
      momentum: of the average of the parameters, the paper's mu; 0 is the parameters themselves.
      distance: "squared", or "huber": sqrt(squared + huber^2) - huber of a row (Song & Dhariwal 2023,
        https://arxiv.org/abs/2310.14189, section 3.3).
      huber: the constant there, times the root of the number of x's numbers.
      sample_steps: of `samples/`.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = (*Diffusion.RESUME_FREE, "sample_steps")
    generator: ClassVar[str] = "consistency"

    target: Annotated[dict, TARGETS] = "consistency"
    teacher: str | None = None
    teacher_target: Annotated[dict, TARGETS] = "eps"
    guidance: float = 1.0
    num_intervals: int = 18
    solver: Literal["heun", "euler"] = "heun"
    momentum: float = 0.95
    distance: Literal["squared", "huber"] = "huber"
    huber: float = 0.00054
    sample_steps: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_boundary(self.process, self.target)
        check_positive(
            **{"objective.num_intervals": self.num_intervals, "objective.sample_steps": self.sample_steps}
        )
        check_rate("objective.momentum", self.momentum)
        for name, known in (("solver", ("heun", "euler")), ("distance", ("squared", "huber"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"objective.{name} = {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.learned_variance or not isinstance(self.weighting, Simple):
            raise ConfigError(
                "objective.learned_variance and objective.weighting are not for consistency; leave them out"
            )
        if self.process.num_steps is not None and self.num_intervals >= self.process.num_steps:
            raise ConfigError(
                f"objective.num_intervals = {self.num_intervals} must be below the {self.process.num_steps} steps of "
                "objective.process"
            )
        if not self.huber > 0:
            raise ConfigError(f"objective.huber = {self.huber} must be above 0")
        self._check_teacher()

    def _check_teacher(self) -> None:
        object.__setattr__(self, "teacher_target", member(TARGETS, self.teacher_target))
        if self.teacher is None and self.guidance != 1.0:
            raise ConfigError(f"objective.guidance = {self.guidance} is of a teacher, and objective.teacher is None")
        high = np.array(self.process.ends[1], float)
        divisor = self.process.divisor(self.process.alpha(high), self.process.sigma(high))
        if self.teacher is not None and self.solver == "heun" and not divisor > 1e-6:
            raise ConfigError(
                f"objective.solver = 'heun' divides by alpha, which is 0 at the greatest time of {self.process}; take "
                "'euler'"
            )

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {} if self.teacher is None else {"teacher": self.teacher}

    def check_objectives(self, objectives) -> None:
        """Raises ConfigError for a teacher of another process or target than the config says."""
        theirs = objectives.get("teacher")
        if theirs is None:
            return
        for name, ours in (("process", self.process), ("target", self.teacher_target)):
            if getattr(theirs, name, None) != ours:
                field = "process" if name == "process" else "teacher_target"
                raise ConfigError(
                    f"objective.teacher = {self.teacher!r} was trained with {name} {getattr(theirs, name, None)}, and "
                    f"objective.{field} is {ours}; set it to that"
                )
        if theirs.learned_variance:
            raise ConfigError(f"objective.teacher = {self.teacher!r} also predicts variances; take one without")
        if self.guidance != 1.0 and not theirs.label_dropout:
            raise ConfigError(
                f"objective.guidance = {self.guidance}, but objective.teacher = {self.teacher!r} was trained with "
                "objective.label_dropout = 0, so it does not know what to say without a label"
            )

    def initial(self, module, params, key) -> dict:
        """{"average": the parameters}."""
        return {"average": jax.tree.map(jnp.copy, params)}

    def after(self, carry, proposal, params) -> dict:
        """The average moved towards the new parameters."""
        mix = lambda old, new: self.momentum * old + (1 - self.momentum) * new
        return {"average": jax.tree.map(mix, carry["average"], params)}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry, models=None):
        """Sums over the batch as of `Diffusion`: "loss", a number of x, and "loss_bin_0" (near the data) and on."""
        x0, weights = batch[self.input_name], batch["loss_weights"]
        u, noise, dropped = per_row(self._draw, batch["keys"], x0)
        then, now = self._neighbours(batch["strata"] if self.stratified else u)
        labels = {}
        if "labels" in batch:
            labels["labels"] = jnp.where(dropped & train, NO_LABEL, batch["labels"])
        x = self.process.mix(x0, noise, now)
        if self.teacher is None:
            before = self.process.mix(x0, noise, then)
        else:
            predict = self._teaching(models["teacher"], labels)
            before = flow_step(predict, self.process, x, now, then, 2 if self.solver == "heun" else 1)

        def value(params, x, times):
            rngs = {"dropout": key} if train and key is not None else None
            told = dict(labels, train=train, rngs=rngs)
            return self._solved(lambda **inputs: apply_fn({"params": params}, **inputs, **told), self.target, x, times)

        wanted = jax.lax.stop_gradient(value(carry["average"], before, then)[0])
        errors = self._distance(value(params, x, now)[0], wanted)
        sums = {"loss": (jnp.sum(errors * weights), weights.sum())}
        bins = jnp.clip(jnp.floor(self.num_bins * now), 0, self.num_bins - 1)
        for index in range(self.num_bins):
            inside = weights * (bins == index)
            sums[f"loss_bin_{index}"] = (jnp.sum(errors * inside), inside.sum())
        return sums, Proposal()

    def _neighbours(self, u):
        """(earlier, later) times [B], the ends of the intervals that draws of `times` lie in."""
        (low, high), count = self.process.ends, self.num_intervals
        drawn = self.times.quantile(self.process, u)
        index = jnp.clip(jnp.floor((drawn - low) / (high - low) * count), 0, count - 1)
        end = lambda index: self.process.snap(low + (high - low) * index / count).astype(jnp.float32)
        return end(index), end(index + 1)

    def _solved(self, apply, target, x, times):
        """(x0, eps) of what a module returns as `target`."""
        rows = lambda values: jnp.asarray(values).reshape(-1, *(1,) * (x.ndim - 1))
        alpha, sigma = self.process.alpha(times), self.process.sigma(times)
        output = apply(inputs=rows(self.process.input_scale(alpha, sigma)) * x, times=times).astype(jnp.float32)
        a, b = target.coefficients(self.process, times, alpha, sigma)
        return solve(x, output, rows(alpha), rows(sigma), rows(a), rows(b))

    def _teaching(self, teacher, labels):
        """What the teacher says of x0 and eps, guided: (x, times) -> (x0, eps)."""
        guidance = Guidance(self.guidance)

        def apply(inputs, times):
            output = teacher.apply(inputs=inputs, times=times, **labels)
            if self.guidance == 1.0 or not labels:
                return output
            none = jnp.full_like(labels["labels"], NO_LABEL)
            other = teacher.apply(inputs=inputs, times=times, labels=none)
            return guidance(output, other, jnp.float32(0.0))

        return lambda x, times: self._solved(apply, self.teacher_target, x, times)

    def _distance(self, found, wanted):
        """[B], a number of x."""
        squares = jnp.square(found - wanted).reshape(len(found), -1)
        if self.distance == "squared":
            return squares.mean(axis=1)
        size = squares.shape[1]
        constant = self.huber * size**0.5
        return (jnp.sqrt(squares.sum(axis=1) + constant**2) - constant) / size

    def sample(self, model, key) -> list:
        """Values of the modality, a row of `sample_copies` for each prompt."""
        seed = int(jax.random.bits(key) >> 1)
        return model.generate(
            self.sample_prompts or None, num_samples=self.sample_copies, seed=seed, steps=self.sample_steps
        )
