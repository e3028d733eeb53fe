"""The programs that go from noise to values, one after the other: what is held, steps, values of x0. Of each there is
one for a number of steps and a batch size."""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.grids import Grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.samplers import Euler, advance
from fmjax.inference.steps import in_pieces
from fmjax.parallel.logical import constrain
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


def denoised(static: Static, variables, key, jobs, told, arrays):
    """float32 [B, *shape] for jobs int32 [B, 2], numbers that noise is drawn with, and arrays of prompts [B, ...]; told
    step by step (`fmjax.inference.steps`)."""
    x, held = _begun(static, variables, key, jobs, told, arrays)
    if arrays["back"] is not None:
        plain = dataclasses.replace(static, sampler=Euler(), guidance=Guidance(), clip=None)
        x = _followed(plain, variables, x, held | {"mask": None}, arrays["back"])
        held["noise"] = None if held["mask"] is None else (x - arrays["start"][0] * held["image"]) / arrays["start"][1]
    x = _followed(static, variables, x, held, arrays["along"])
    return _ended(static, x, arrays)


def _followed(static: Static, variables, x, held, along):
    """x at the end of a sampler's steps."""
    advance = lambda state, first, last: _advanced(static, variables, state, held, along, first, last)
    return in_pieces(advance, (x, static.sampler.start(x)), len(along["index"]))[0]


@functools.partial(jax.jit, static_argnames=("static",))
def _begun(static: Static, variables, key, jobs, told, arrays):
    """(x at the first step, what all steps hold on to): with an inversion that is the image, of which `noise` is made
    later."""
    space = _Space(static, arrays["others"], arrays["carry"])
    keys = jax.vmap(lambda job: jax.random.fold_in(jax.random.fold_in(key, job[0] + 1), job[1]))(jobs)
    noise = jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, 0), space.shape))(keys)
    image, mask = space.image(arrays["image"]), space.mask(arrays["mask"])
    if arrays["back"] is not None:
        x = jnp.broadcast_to(image, noise.shape)
    else:
        x = arrays["start"][1] * noise + (0.0 if image is None else arrays["start"][0] * image)
    x = constrain(x, ("batch", *[None] * len(space.shape)))
    held = {"keys": keys, "mask": mask, "image": image, "noise": None if mask is None else noise}
    return x, held | {"conditions": _conditions(static, variables, told, arrays)}


@functools.partial(jax.jit, static_argnames=("static",))
def _advanced(static: Static, variables, state, held, along, first, last):
    """The sampler's state behind the steps from `first` to before `last`."""
    objective = static.objective
    method = "denoise" if hasattr(static.module, "denoise") else None

    def apply(x, times, given):
        told = held["conditions"]["given" if given else "without"]
        return static.module.apply(variables, inputs=x, times=times, method=method, **told).astype(jnp.float32)

    def draw(index):
        shape = state[0].shape[1:]
        return jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, index + 1), shape))(held["keys"])

    def keep(x, c):
        """Outside of the mask the image, as noisy as x is."""
        return jnp.where(held["mask"], x, c["end_alpha"] * held["image"] + c["end_sigma"] * held["noise"])

    predict = predictor(
        apply, objective.process, objective.target, static.guidance, splits_variance=objective.learned_variance,
        clip=static.clip,
    )  # fmt: skip
    after = None if held["mask"] is None else keep
    state = advance(static.sampler, predict, state, along, first, last, draw, after)
    # As `_begun` gives it, so that a further piece is the same program.
    return jax.tree.map(lambda x: constrain(x, ("batch", *[None] * (x.ndim - 1))), state)


@functools.partial(jax.jit, static_argnames=("static",))
def _ended(static: Static, x, arrays):
    """The values of x0; outside of a mask those that were there."""
    made = _Space(static, arrays["others"], arrays["carry"]).values(x)
    return whole(made if arrays["mask"] is None else jnp.where(arrays["mask"], made, arrays["image"]))


def _conditions(static: Static, variables, told, arrays) -> dict[str, dict]:
    """Arguments of the module: "given" with the condition and, where something guides, "without" it or with another
    one; a text is encoded once."""
    objective, module, text = static.objective, static.module, arrays["others"].get("text")
    taken = {*inspect.signature(type(module).__call__).parameters, *(("tokens", "segment_ids") if text else ())}
    told = {name: array for name, array in told.items() if name in taken}

    def encoded(rows):
        if text is None and hasattr(module, "encode_text"):
            return module.apply(variables, **rows, method="encode_text")
        return objective.told(rows, text)

    spread = lambda one, like: {name: jnp.broadcast_to(one[name], array.shape) for name, array in like.items()}
    conditions = {"given": encoded(told)}
    if static.guidance.scale != 1.0 and arrays["negative"] is not None:
        conditions["without"] = encoded(spread(arrays["negative"], told))
    elif static.guidance.scale != 1.0 and getattr(objective, "drops_states", False):
        states = {name: array for name, array in conditions["given"].items() if array is not None}
        conditions["without"] = spread(objective.without(states), states)
    elif static.guidance.scale != 1.0:
        conditions["without"] = encoded(spread(objective.without(told), told))
    return conditions


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
