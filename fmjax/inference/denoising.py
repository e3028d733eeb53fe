"""Values out of noise: what a diffusion model says of x0, followed by a sampler in one program."""

import dataclasses
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.diffusion import SAMPLERS
from fmjax.diffusion.consistency import Consistency
from fmjax.diffusion.grids import SPACINGS, inverted, make_grid
from fmjax.diffusion.guidance import Guidance
from fmjax.diffusion.samplers import Euler, columns
from fmjax.errors import ConfigError, InputError
from fmjax.inference.checks import check_list, check_whole, is_number
from fmjax.inference.copies import made
from fmjax.inference.denoising_program import Static, beginning, denoised
from fmjax.inference.denoising_prompts import prompts_of
from fmjax.inference.images import mask_of, values_of
from fmjax.layers.checks import check_choice


@dataclasses.dataclass(frozen=True)
class Options:
    """How values are made.

    Attributes:
      steps: of the sampler from noise to data.
      sampler: "heun" (two evaluations of the model a step), "euler", "dpmpp_2m", "ddim", "ancestral" or
        "euler_ancestral"; of a run of objective consistency "consistency" alone. See fmjax/diffusion/README.md.
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

    Prompts are values of the codec "label" (numbers, or names where the classes have them) or, of a model that is told
    in words, captions; None is no condition.
    """

    Options = Options

    def __init__(self, model):
        self.model, self.codec = model, model.codec
        self.prompts = prompts_of(model)

    @staticmethod
    def lacks(model) -> str | None:
        if model.codec is None:
            makes = model.objective.makes
            return f"it has no codec {makes!r} to write its values with; was it saved without codecs.json?"
        return prompts_of(model).lacks(model)

    def default_prompts(self) -> Sequence[Any]:
        """Every class; a model without classes makes one value of none. Captions: those of its samples."""
        return self.prompts.default()

    def run(
        self, prompts: Sequence[Any], options: Options, only: Container[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(index, value): see `fmjax.inference.generators.Generator`.

        only: indices of the values that are made; None is all.

        Raises InputError for what the model cannot do, RunError for a value that is not finite.
        """
        check_list("prompts", prompts)
        if not len(prompts):
            return
        denoise = self._program(options)
        numbers, told = self.prompts.arrays(prompts)

        def program(places, copies):
            rows = {name: array[places] for name, array in told.items()}
            return denoise(jax.random.key(options.seed), np.stack([numbers[places], copies], axis=1), rows)

        yield from made(self.model, self.codec, numbers.tolist(), options, program, only)

    def _program(self, options: Options):
        """(key, jobs, arrays of prompts) -> values, with all else that the options say; checked before anything is
        computed. Without arrays the jobs' numbers are labels."""
        model, objective, codec = self.model, self.model.objective, self.codec
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
        if getattr(objective, "of_latents", False) and objective.first_stage is None:
            raise InputError(
                f"{model} makes latents, and its objective.first_stage names nothing to decode them with; call its "
                "fmjax.train again with --config.objective.first_stage=MODEL and --config.objective.latent_shape=H,W,C"
            )
        named = {name: getattr(objective, name, None) for name in getattr(objective, "OPENED", ())}
        others = {name: model.opened(name) for name, path in named.items() if path is not None}
        static = Static(model.module, codec.shape, objective, sampler, guidance, options.clip)
        arrays = {
            "along": columns(sampler, grid, process), "back": back, "image": image, "mask": mask,
            "start": beginning(grid, process, image is not None), "others": others,
            "carry": objective.scaling(model.carry) if "first_stage" in others else None,
            "negative": self._negative(options),
        }  # fmt: skip

        def program(key, jobs, told=None):
            told = {"labels": jobs[:, 0]} if told is None else told
            return denoised(static, model.variables, key, jobs, told, arrays)

        return program

    def _negative(self, options: Options) -> dict[str, np.ndarray] | None:
        """Arrays of the one row that is guided away from; None for that without a condition."""
        if options.negative is None:
            return None
        return {name: array[0] for name, array in self.prompts.arrays([options.negative])[1].items()}

    def _check_guidance(self, options: Options) -> None:
        told = f"guidance = {options.guidance}: {self.model}"
        if options.guidance == 1.0:
            return
        if not self.prompts.known:
            raise InputError(f"{told} takes no labels to be guided by; leave guidance out")
        knows = self.model.objective.label_dropout > 0 and self.prompts.can_do_without
        if options.negative is None and not knows:
            raise InputError(
                f"{told} was trained with objective.label_dropout = 0, or has no row for no label, so it does not know "
                "what to say without a label; leave guidance out, or give a negative label"
            )

    def _check_sampler(self, options: Options, sampler) -> None:
        if isinstance(sampler, Consistency):
            raise InputError(
                f"sampler = {options.sampler!r}: {self.model} did not learn to go to the data in one step, as it is no "
                "run of objective consistency; take heun, dpmpp_2m or ddim"
            )
        if sampler.needs_variance and not self.model.objective.learned_variance:
            raise InputError(
                f"variance = {options.variance!r}: {self.model} does not predict a step's variance, as it was trained "
                "without objective.learned_variance; give variance = 'small' or 'large'"
            )
