"""Diffusion: what a model says of noisy data, for any process, target, weighting and times (`fmjax.diffusion`)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion import PROCESSES, TARGETS, TIMES, WEIGHTINGS, member
from fmjax.diffusion.bound import bound
from fmjax.diffusion.targets import check_target, solve
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_positive
from fmjax.layers.modulation import NO_LABEL
from fmjax.objectives.base import check_labels, per_row

MEMBERS = {"process": PROCESSES, "target": TARGETS, "weighting": WEIGHTINGS, "times": TIMES}


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Weighted squared error of the target p = a x0 + b eps at x_t = alpha(t) x0 + sigma(t) eps; the defaults are
    DDPM's (Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 14).

    The module is called with `inputs` x_t, `times` t float32 [B] in [0, 1] and, where the batch has them, `labels`
    int32 [B], in whose place a share of the rows has `NO_LABEL` (classifier-free guidance, Ho & Salimans 2022). It
    returns the target, shaped as x; with `learned_variance` twice as many channels.

    Attributes:
      input_name: the batch's array x0; a codec of its modality is `makes`.
      process: how noise is mixed in.
      target: what the module returns.
      weighting: how much an error counts at t.
      times: how often t is drawn.
      stratified: times are spread over the rows of a batch, not drawn independently.
      learned_variance: the module also says, from -1 to 1, where each step's log-variance lies; the bound of it, with
        the mean's gradient stopped, is added (Nichol & Dhariwal 2021, eq. 16; so DiT is trained).
      bound_weight: of that bound, the sum over the steps in bits a number of x, in thousandths: 1 is the paper's
        lambda of 0.001.
      label_dropout: share of the rows that learn without their label.
      num_bins: parts of the times, equally long, for which the loss is also told apart.
      sample_prompts: classes that `samples/` shows, by number or by name where they have names; none: each class.
      sample_copies: how often each of them.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("sample_prompts", "sample_copies")
    ROWS_APART: ClassVar[bool] = True
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "denoising"

    input_name: str = "images"
    process: Annotated[dict, PROCESSES] = "ddpm"
    target: Annotated[dict, TARGETS] = "eps"
    weighting: Annotated[dict, WEIGHTINGS] = "simple"
    times: Annotated[dict, TIMES] = "uniform"
    stratified: bool = False
    learned_variance: bool = False
    bound_weight: float = 1.0
    label_dropout: float = 0.1
    num_bins: int = 4
    sample_prompts: tuple[int | str, ...] = ()
    sample_copies: int = 8

    def __post_init__(self):
        for name, registry in MEMBERS.items():
            object.__setattr__(self, name, member(registry, getattr(self, name)))
        check_positive(**{"objective.num_bins": self.num_bins, "objective.sample_copies": self.sample_copies})
        if not 0.0 <= self.label_dropout < 1.0:
            raise ConfigError(f"objective.label_dropout = {self.label_dropout} must be in [0, 1)")
        if self.learned_variance and self.process.num_steps is None:
            raise ConfigError(
                f"objective.learned_variance is about steps, which {type(self.process).__name__} has not; take "
                "objective.process = 'ddpm'"
            )
        if self.process.is_of_tokens:
            raise ConfigError(
                f"objective.process = {self.process} hides tokens, and objective diffusion is of numbers; take "
                "objective.name = 'masked_diffusion'"
            )
        check_target(self.process, self.target)
        self.weighting.check(self.process, self.times)

    def inputs(self, batch) -> dict:
        """What the module is initialised with."""
        x = batch[self.input_name]
        labels = {"labels": batch["labels"]} if "labels" in batch else {}
        return {"inputs": x, "times": jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)} | labels

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch: "loss", the weighted squared error a number of x, and the same by parts of t,
        "loss_bin_0" (near the data) and on; rows count by `loss_weights` [B]. With `learned_variance` also "bound"."""

        def told(dropped):
            given = {name: batch[name] for name in ("labels",) if name in batch}
            null = self.without(given)
            return {name: jnp.where(dropped & train, null[name], array) for name, array in given.items()}

        return self.sums(apply_fn, params, batch, batch[self.input_name], told, key, train)

    def sums(self, apply_fn, params, batch, x0, told: Callable, key, train: bool) -> dict:
        """What `__call__` returns, of x0 [B, ...].

        told: from which rows are dropped, bool [B], to what else the module is called with.
        """
        weights = batch["loss_weights"]
        u, noise, dropped = per_row(self._draw, batch["keys"], x0)
        times = self.times.quantile(self.process, batch["strata"] if self.stratified else u).astype(jnp.float32)
        x = self.process.mix(x0, noise, times)
        alpha, sigma = self.process.alpha(times), self.process.sigma(times)
        inputs = {"inputs": _rows(self.process.input_scale(alpha, sigma), x) * x, "times": times} | told(dropped)
        output = apply_fn({"params": params}, **inputs, train=train, rngs={"dropout": key} if train else None)
        output, between = self._split(output.astype(jnp.float32), x0.shape)
        a, b = (_rows(one, x) for one in self.target.coefficients(self.process, times, alpha, sigma))
        errors = jnp.mean(jnp.square(output - (a * x0 + b * noise)).reshape(len(x), -1), axis=1)
        errors = errors * self.weighting.weights(self.process, self.target, times, alpha, sigma)
        sums = {}
        if self.learned_variance:
            predicted, _ = solve(x, output, _rows(alpha, x), _rows(sigma, x), a, b)
            bits = bound(self.process, x0, x, predicted, 0.5 * (between + 1), times)
            sums["bound"] = (jnp.sum(bits * weights), weights.sum())
            errors = errors + self.bound_weight * self.process.num_steps / 1000 * bits
        sums["loss"] = (jnp.sum(errors * weights), weights.sum())
        bins = jnp.clip(jnp.floor(self.num_bins * times), 0, self.num_bins - 1)
        for index in range(self.num_bins):
            inside = weights * (bins == index)
            sums[f"loss_bin_{index}"] = (jnp.sum(errors * inside), inside.sum())
        return sums

    def without(self, arrays) -> dict[str, np.ndarray]:
        """Arrays of a row without a condition, for those of prompts, {name: [B, ...]}."""
        return {"labels": np.int32(NO_LABEL)} if "labels" in arrays else {}

    def told(self, arrays, text=None) -> dict:
        """What the module is called with of a prompt's arrays, besides x and the times."""
        return arrays

    def _draw(self, key, x):
        """(u in [0, 1) that a time is made of, noise, whether the label is dropped) of one row."""
        time_key, noise_key, label_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, x.shape)
        return jax.random.uniform(time_key), noise, jax.random.bernoulli(label_key, self.label_dropout)

    def _split(self, output, shape):
        """(target, where the variance lies or None) of the module's output."""
        wanted = (*shape[:-1], 2 * shape[-1]) if self.learned_variance else shape
        if output.shape != wanted:
            has = "with objective.learned_variance twice their channels" if self.learned_variance else "their shape"
            raise ConfigError(
                f"the module returns {output.shape} for {self.input_name} of shape {shape}; a target has {has}: "
                f"{'set model.out_channels to that' if self.learned_variance else 'leave model.out_channels out'}"
            )
        return jnp.split(output, 2, axis=-1) if self.learned_variance else (output, None)

    def check(self, module, data) -> None:
        """Raises ConfigError where the data lack x or a class that samples are of, or the model a class of theirs."""
        row = data.train[0]
        if self.input_name not in row:
            raise ConfigError(f"objective.input_name = {self.input_name!r} is not in the data: {', '.join(row)}")
        check_labels(module, data, low=NO_LABEL)
        if self.label_dropout and "labels" in row and not getattr(module, "null_class", True):
            raise ConfigError(
                f"objective.label_dropout = {self.label_dropout}, and the model has no row for no label "
                "(model.null_class); set one of them otherwise"
            )
        for prompt in self.sample_prompts:
            try:
                data.codecs["label"].encode(prompt)
            except (KeyError, DataError) as error:
                reason = "the data have no codec for 'label'" if isinstance(error, KeyError) else error
                raise ConfigError(f"objective.sample_prompts has {prompt!r}: {reason}") from None

    def sample(self, model, key) -> list:
        """Values of the modality, a row of `sample_copies` for each prompt."""
        process, end = self.process, np.array(self.process.ends[1])
        # Heun's method does not begin where there is noise alone, of what does not go straight with it.
        begins = process.divisor(process.alpha(end), process.sigma(end)) > 1e-8
        options = {"sampler": "heun" if begins else "dpmpp_2m", "steps": min(50, process.num_steps or 50)}
        seed = int(jax.random.bits(key) >> 1)
        return model.generate(self.sample_prompts or None, num_samples=self.sample_copies, seed=seed, **options)


@dataclasses.dataclass(frozen=True)
class FlowMatching(Diffusion):
    """Diffusion along straight lines, by their velocity noise - x (rectified flow, Liu et al. 2022,
    https://arxiv.org/abs/2209.03003, eq. 1), at times of a logit-normal distribution (Esser et al. 2024).

    Attributes: as of `Diffusion`, with other defaults.
    """

    process: Annotated[dict, PROCESSES] = "flow"
    target: Annotated[dict, TARGETS] = "velocity"
    times: Annotated[dict, TIMES] = "logit_normal"


def _rows(values, x):
    """A number a row, or one for all, to be multiplied with x [B, ...]."""
    return jnp.asarray(values).reshape(-1, *(1,) * (x.ndim - 1)) if jnp.ndim(values) else values
