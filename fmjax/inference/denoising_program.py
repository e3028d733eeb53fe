"""The program that goes from noise to values: one for a number of steps and a batch size."""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.grids import Grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.samplers import Euler, sample
from fmjax.parallel.placement import whole


def beginning(grid: Grid, process, has_image: bool) -> np.ndarray:
    """float32 [2]: what the initial image and the noise are multiplied by at the beginning. Without an image the noise
    has the variance that data would add."""
    alpha, sigma = grid.alphas[0], grid.sigmas[0]
    if has_image:
        return np.array([alpha, sigma], np.float32)
    return np.array([0.0, np.hypot(alpha * process.data_std, sigma)], np.float32)


@dataclasses.dataclass(frozen=True)
class Static:
    """What a program is compiled for, besides the shapes of arrays."""

    module: Any
    shape: tuple[int, ...]
    objective: Any
    sampler: Any
    guidance: Guidance
    clip: float | None


@functools.partial(jax.jit, static_argnames=("static",))
def denoised(static: Static, variables, key, jobs, told, arrays):
    """float32 [B, *shape] for jobs int32 [B, 2], numbers that noise is drawn with, and arrays of prompts [B, ...]."""
    objective, space = static.objective, _Space(static, arrays["others"], arrays["carry"])
    keys = jax.vmap(lambda job: jax.random.fold_in(jax.random.fold_in(key, job[0] + 1), job[1]))(jobs)
    noise = jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, 0), space.shape))(keys)
    image, mask = space.image(arrays["image"]), space.mask(arrays["mask"])
    apply = _told_apply(static, variables, told, arrays)

    def predict(guidance, clip):
        return predictor(
            apply, objective.process, objective.target, guidance, splits_variance=objective.learned_variance, clip=clip
        )

    def draw(index):
        return jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, index + 1), space.shape))(keys)

    def keep(x, c):
        """Outside of the mask the image, as noisy as x is."""
        return jnp.where(mask, x, c["end_alpha"] * image + c["end_sigma"] * noise)

    x = arrays["start"][1] * noise + (0.0 if image is None else arrays["start"][0] * image)
    if arrays["back"] is not None:
        beginning = jnp.broadcast_to(image, noise.shape)
        x = sample(Euler(), predict(Guidance(), None), beginning, arrays["back"])
        noise = (x - arrays["start"][0] * image) / arrays["start"][1]
    made = sample(
        static.sampler, predict(static.guidance, static.clip), x, arrays["along"], draw, None if mask is None else keep
    )
    made = space.values(made)
    return whole(made if mask is None else jnp.where(arrays["mask"], made, arrays["image"]))


def _told_apply(static: Static, variables, told, arrays):
    """(x, times, whether with the condition) -> the module's output, float32; a text is encoded once."""
    objective, module, text = static.objective, static.module, arrays["others"].get("text")
    taken = {*inspect.signature(type(module).__call__).parameters, *(("tokens", "segment_ids") if text else ())}
    told = {name: array for name, array in told.items() if name in taken}

    def encoded(rows):
        if text is None and hasattr(module, "encode_text"):
            return module.apply(variables, **rows, method="encode_text")
        return objective.told(rows, text)

    spread = lambda one, like: {name: jnp.broadcast_to(one[name], array.shape) for name, array in like.items()}
    conditions = {True: encoded(told)}
    if static.guidance.scale != 1.0 and arrays["negative"] is not None:
        conditions[False] = encoded(spread(arrays["negative"], told))
    elif static.guidance.scale != 1.0 and getattr(objective, "condition", None) == "states":
        states = {name: array for name, array in conditions[True].items() if array is not None}
        conditions[False] = spread(objective.without(states), states)
    elif static.guidance.scale != 1.0:
        conditions[False] = encoded(spread(objective.without(told), told))
    method = "denoise" if hasattr(module, "denoise") else None

    def apply(x, times, given):
        return module.apply(variables, inputs=x, times=times, method=method, **conditions[given]).astype(jnp.float32)

    return apply


class _Space:
    """Where x is: the values' own space, or a first stage's latents of them, scaled as the run's carry says."""

    def __init__(self, static: Static, others, carry):
        self.stage, self.carry, self.shape = others.get("first_stage"), carry, static.shape
        if self.stage is not None:
            self.shape = tuple(static.objective.latent_shape)

    def image(self, image):
        """x0 of a value [H, W, C], or None of None."""
        if image is None or self.stage is None:
            return image
        latents = self.stage.apply(image[None], method="encode")[0]
        return (latents - self.carry["shift"]) * self.carry["scale"]

    def mask(self, mask):
        """bool of x of one [H, W, 1]: where any pixel is made anew; or None of None."""
        if mask is None or self.stage is None:
            return mask
        rows, columns = self.shape[:2]
        return mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns).any((1, 3))[..., None]

    def values(self, x):
        """[B, ...] of x0."""
        if self.stage is None:
            return x
        return self.stage.apply(x / self.carry["scale"] + self.carry["shift"], method="decode")
