"""Guidance: a model's output with a condition, moved away from that without it or with another one."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fmjax.diffusion.samplers import Predict, Prediction
from fmjax.diffusion.targets import solve
from fmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

    Attributes:
      scale: how far: other + scale (given - other); 1 is none.
      interval: times between which it guides (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724).
      rescale: share of the guided output that is given the standard deviation of the one with the condition (Lin et al.
        2023, https://arxiv.org/abs/2305.08891, eq. 15 and 16).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self):
        if not self.scale >= 0:
            raise InputError(f"guidance = {self.scale!r} must be at least 0")
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise InputError(f"guidance_interval = {self.interval} must be two times, 0 <= first < second <= 1")
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance_rescale = {self.rescale} must be from 0 to 1")

    def __call__(self, given: jax.Array, other: jax.Array, time: jax.Array) -> jax.Array:
        """The guided output of [B, ...] with the condition and with the other one."""
        guided = other + self.scale * (given - other)
        if self.rescale:
            axes = tuple(range(1, given.ndim))
            size = given.std(axes, keepdims=True) / jnp.maximum(guided.std(axes, keepdims=True), 1e-12)
            guided = guided * (self.rescale * size + (1 - self.rescale))
        inside = (time >= self.interval[0]) & (time <= self.interval[1])
        return jnp.where(inside, guided, given)


def predictor(
    apply: Callable, process, target, guidance: Guidance, *, splits_variance: bool = False, clip: float | None = None
) -> Predict:
    """What samplers ask, of a model.

    Args:
      apply: (x [B, ...], times float32 [B], whether with the condition) -> the model's output.
      splits_variance: the last axis of the output is twice that of x: the target, and where the step's variance lies,
        from -1 to 1.
      clip: x0 is cut off at plus and minus this.
    """

    def predict(x, time, alpha, sigma):
        scaled, times = process.input_scale(alpha, sigma) * x, jnp.full(len(x), time)
        output, fraction = apply(scaled, times, True), None
        if splits_variance:
            output, between = jnp.split(output, 2, axis=-1)
            fraction = 0.5 * (between + 1)
        if guidance.scale != 1.0:
            other = apply(scaled, times, False)
            output = guidance(output, other[..., : output.shape[-1]], time)
        x0, eps = solve(x, output, alpha, sigma, *target.coefficients(process, time, alpha, sigma))
        return Prediction(x0 if clip is None else jnp.clip(x0, -clip, clip), eps, fraction)

    return predict
