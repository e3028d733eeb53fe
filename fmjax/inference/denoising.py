"""Values out of noise: what a diffusion model says of x0, followed by a sampler in one program."""

import collections
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion import SAMPLERS
from fmjax.diffusion.grids import SPACINGS, Grid, inverted, make_grid
from fmjax.diffusion.guidance import Guidance, predictor
from fmjax.diffusion.samplers import Euler, columns, sample
from fmjax.errors import ConfigError, InputError, RunError
from fmjax.inference.checks import check_list, check_whole, is_number
from fmjax.inference.images import mask_of, values_of
from fmjax.layers.checks import check_choice
from fmjax.layers.modulation import NO_LABEL
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class Options:
    """How values are made.

    Attributes:
      steps: of the sampler from noise to data.
      sampler: "heun" (two evaluations of the model a step), "euler", "dpmpp_2m", "ddim", "ancestral",
        "euler_ancestral" or "consistency" (of one step or a few, of a model that learned that): see
        fmjax/diffusion/README.md.
      eta: of sampler "ddim": from 0, none, to 1, as much noise in each step as ancestral sampling draws.
      variance: of sampler "ancestral": "small", "large" or "learned".
      spacing: of the times: "trailing", "leading", "linspace" or "karras"; none: the sampler's or the process's own.
      shift: above 1 puts more of the times near noise.
      guidance: how far away from what the model says without a label: p + (guidance - 1) (p - p without); 1 is without.
      guidance_interval: times between which it guides.
      guidance_rescale: share of the guided output that is given back its standard deviation, against overexposure.
      negative: a label to be guided away from, in the place of none.
      clip: x0 is cut off at plus and minus this in each step; none: nowhere.
      init_image: an image, or a file of one, that is changed; with `strength` or a mask.
      strength: share of the steps that an initial image goes through: 1 leaves nothing of it.
      mask: an image, or a file of one, white where the initial image is made anew; the rest is kept.
      invert: begin with the noise that the initial image comes from by Euler's method, not with one that is drawn.
      seed: of the noise.
      num_samples: values for each prompt.
      batch_size: values made at once.
    """

    steps: int = 50
    sampler: str = "heun"
    eta: float | None = None
    variance: str | None = None
    spacing: str | None = None
    shift: float = 1.0
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    negative: int | str | None = None
    clip: float | None = None
    init_image: Any = None
    strength: float = 1.0
    mask: Any = None
    invert: bool = False
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 64

    def __post_init__(self):
        check_whole(1, steps=self.steps, num_samples=self.num_samples, batch_size=self.batch_size)
        check_whole(0, 2**32 - 1, seed=self.seed)
        if self.spacing is not None:
            check_choice("spacing", self.spacing, SPACINGS)
        numbers = {name: getattr(self, name) for name in ("guidance", "guidance_rescale", "shift", "strength")}
        numbers |= {name: getattr(self, name) for name in ("eta", "clip") if getattr(self, name) is not None}
        if not isinstance(self.guidance_interval, Sequence) or len(self.guidance_interval) != 2:
            raise InputError(f"guidance_interval = {self.guidance_interval!r} must be two times")
        numbers |= dict(zip(("guidance_interval", "guidance_interval (its end)"), self.guidance_interval))
        for name, value in numbers.items():
            if not is_number(value):
                raise InputError(f"{name} = {value!r} must be a number")
        if not self.shift > 0 or (self.clip is not None and not self.clip > 0):
            raise InputError(f"shift = {self.shift} and clip = {self.clip} must be above 0")
        if not 0 < self.strength <= 1:
            raise InputError(f"strength = {self.strength} must be above 0 and at most 1")
        self.made_sampler, self.made_guidance  # which have their own checks
        if self.negative is not None and self.guidance == 1.0:
            raise InputError(f"negative = {self.negative!r} has no meaning with guidance = 1; give guidance, 3 say")
        needing = {"strength": self.strength != 1.0, "mask": self.mask is not None, "invert": self.invert}
        if self.init_image is None and any(needing.values()):
            name = next(name for name, given in needing.items() if given)
            raise InputError(f"{name} = {getattr(self, name)!r} is about an initial image: give init_image")
        if self.init_image is not None and not any(needing.values()):
            raise InputError("of init_image nothing is left at strength = 1; give less, 0.6 say, a mask, or invert")

    @property
    def made_sampler(self):
        """The sampler with its options. Raises InputError for one that is not known, or has none of these."""
        try:
            kind = SAMPLERS.get(self.sampler)
        except ConfigError as error:
            raise InputError(f"sampler = {self.sampler!r}: {error}") from None
        given = {name: getattr(self, name) for name in ("eta", "variance") if getattr(self, name) is not None}
        for name in given:
            if name not in (field.name for field in dataclasses.fields(kind)):
                raise InputError(
                    f"{name} = {given[name]!r} has no meaning with sampler = {self.sampler!r}; leave it out"
                )
        return kind(**given)

    @property
    def made_guidance(self) -> Guidance:
        return Guidance(float(self.guidance), tuple(self.guidance_interval), float(self.guidance_rescale))


class Denoising:
    """From noise to data by what the module says of x0 and noise (`fmjax.objectives.diffusion.Diffusion`).

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
        """(index, value): see `fmjax.inference.generators.Generator`.

        Raises InputError for what the model cannot do, RunError for a value that is not finite.
        """
        check_list("prompts", prompts)
        model, codec = self.model, self.model.codec
        program = self._program(options)
        labels = [self._label(prompt) for prompt in prompts]
        # What a value is drawn with: its label and the number of the copy.
        copies, jobs = collections.Counter(), []
        for label in labels:
            for _ in range(options.num_samples):
                jobs.append((label, copies[label]))
                copies[label] += 1
        placement = model.placement
        size = max(min(options.batch_size, len(jobs)), 1)
        size += -size % (1 if placement is None else placement.num_row_shards)
        inside = model.inference if placement is None else placement.scoring
        for first in range(0, len(jobs), size):
            part = jobs[first : first + size]
            filled = np.array(part + part[-1:] * (size - len(part)), np.int32)
            with inside():
                arrays = program(jax.random.key(options.seed), filled)
            for index, array in enumerate(np.asarray(arrays)[: len(part)]):
                if not np.isfinite(array).all():
                    raise RunError(
                        f"value {first + index} of {model} is not finite. Diverged weights do that, numbers too large "
                        "for float16, or guidance that is too strong; nothing is written"
                    )
                yield first + index, codec.decode({codec.array: array})

    def _program(self, options: Options):
        """(key, jobs) -> values, with all else that the options say; checked before anything is computed."""
        model, objective, codec = self.model, self.model.objective, self.model.codec
        sampler, guidance = options.made_sampler, options.made_guidance
        self._check_guidance(options)
        self._check_sampler(options, sampler)
        process = objective.process
        grid = make_grid(
            process, int(options.steps), options.spacing or sampler.spacing, float(options.shift)
        ).last(options.strength)
        image = mask = back = None
        if options.init_image is not None:
            image = values_of(codec, options.init_image, "init_image")
        if options.mask is not None:
            mask = mask_of(codec, options.mask)
        if options.invert:
            back = columns(Euler(), inverted(grid, process), process)
        static = _Static(
            model.module, codec.shape, process, objective.target, sampler, guidance, objective.learned_variance,
            options.clip,
        )  # fmt: skip
        arrays = {
            "along": columns(sampler, grid, process), "back": back, "image": image, "mask": mask,
            "start": _start(grid, process, image is not None),
            "negative": np.int32(NO_LABEL if options.negative is None else self._label(options.negative)),
        }  # fmt: skip
        return lambda key, jobs: _sample(static, model.variables, key, jobs, arrays)

    def _check_guidance(self, options: Options) -> None:
        told = f"guidance = {options.guidance}: {self.model}"
        if options.guidance == 1.0:
            return
        if self.labels is None:
            raise InputError(f"{told} takes no labels to be guided by; leave guidance out")
        knows = self.model.objective.label_dropout > 0 and getattr(self.model.module, "null_class", True)
        if options.negative is None and not knows:
            raise InputError(
                f"{told} was trained with objective.label_dropout = 0, or has no row for no label, so it does not know "
                "what to say without a label; leave guidance out, or give a negative label"
            )

    def _check_sampler(self, options: Options, sampler) -> None:
        if sampler.needs_variance and not self.model.objective.learned_variance:
            raise InputError(
                f"variance = {options.variance!r}: {self.model} does not predict a step's variance, as it was trained "
                "without objective.learned_variance; give variance = 'small' or 'large'"
            )

    def _label(self, prompt) -> int:
        if prompt is None:
            if not getattr(self.model.module, "null_class", True):
                raise InputError(f"{self.model} has no row for no label; give a label as prompt")
            return NO_LABEL
        if self.labels is None:
            raise InputError(f"{self.model} takes no prompts, got {prompt!r}")
        return int(self.labels.encode(prompt)["labels"])


def _start(grid: Grid, process, has_image: bool) -> np.ndarray:
    """float32 [2]: what the initial image and the noise are multiplied by at the beginning. Without an image the noise
    has the variance that data would add."""
    alpha, sigma = grid.alphas[0], grid.sigmas[0]
    if has_image:
        return np.array([alpha, sigma], np.float32)
    return np.array([0.0, np.hypot(alpha * process.data_std, sigma)], np.float32)


@dataclasses.dataclass(frozen=True)
class _Static:
    """What a program is compiled for, besides the shapes of arrays."""

    module: Any
    shape: tuple[int, ...]
    process: Any
    target: Any
    sampler: Any
    guidance: Guidance
    splits_variance: bool
    clip: float | None


@functools.partial(jax.jit, static_argnames=("static",))
def _sample(static: _Static, variables, key, jobs, arrays):
    """float32 [B, *shape] for jobs int32 [B, 2]: a label and a number that noise is drawn with."""
    labels, takes_labels = jobs[:, 0], "labels" in inspect.signature(type(static.module).__call__).parameters
    keys = jax.vmap(lambda job: jax.random.fold_in(jax.random.fold_in(key, job[0] + 1), job[1]))(jobs)
    noise = jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, 0), static.shape))(keys)
    image, mask = arrays["image"], arrays["mask"]

    def apply(x, times, given):
        told = {"labels": labels if given else jnp.full_like(labels, arrays["negative"])} if takes_labels else {}
        return static.module.apply(variables, inputs=x, times=times, **told).astype(jnp.float32)

    def predict(guidance, clip):
        return predictor(
            apply, static.process, static.target, guidance, splits_variance=static.splits_variance, clip=clip
        )

    def draw(index):
        return jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, index + 1), static.shape))(keys)

    def keep(x, c):
        """Outside of the mask the image, as noisy as x is."""
        return jnp.where(mask, x, c["end_alpha"] * image + c["end_sigma"] * noise)

    x = arrays["start"][1] * noise + (0.0 if image is None else arrays["start"][0] * image)
    if arrays["back"] is not None:
        beginning = jnp.broadcast_to(image, noise.shape)
        x = sample(Euler(), predict(Guidance(), None), beginning, arrays["back"])
        noise = (x - arrays["start"][0] * image) / arrays["start"][1]
    return whole(
        sample(
            static.sampler, predict(static.guidance, static.clip), x, arrays["along"], draw,
            None if mask is None else keep,
        )
    )  # fmt: skip
