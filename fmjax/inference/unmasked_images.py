"""Images out of masks: codes that a model fills in step by step, decoded by the first stage that they are of."""

import dataclasses
import functools
import math
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.guidance import Guidance
from fmjax.diffusion.masked import Unmasking, unmask_between
from fmjax.errors import InputError
from fmjax.inference.checks import check_list, check_whole, is_number
from fmjax.inference.copies import made
from fmjax.inference.images import mask_of, values_of
from fmjax.inference.prompts import caption_row
from fmjax.inference.steps import in_pieces
from fmjax.layers.modulation import NO_LABEL
from fmjax.objectives.first_stage import codes_of, images_of
from fmjax.parallel.placement import put_whole, whole


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are made.

    Attributes:
      steps: in which all codes are seen.
      order: "confidence", the surest first (MaskGIT), or "random", the exact reverse of hiding codes.
      temperature: divides the logits.
      choice_temperature: of the order "confidence": Gumbel noise in it, times this, less with each step down to none.
      guidance: how far away from what the model says without a condition: p + (guidance - 1) (p - p without), of the
        logits; 1 is without.
      guidance_interval: times between which it guides, from 1, all hidden, to 0.
      negative: a class or caption to be guided away from, in the place of none.
      init_image: an image, or a file of one, that is kept but within a mask.
      mask: an image, or a file of one, white where the initial image is made anew; codes that are white nowhere stay.
      seed: of what is drawn.
      num_samples: images for each prompt.
      batch_size: images made at once.
    """

    steps: int = 12
    order: str = "confidence"
    temperature: float = 1.0
    choice_temperature: float = 4.5
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative: int | str | None = None
    init_image: Any = None
    mask: Any = None
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 64

    def __post_init__(self):
        check_whole(1, steps=self.steps, num_samples=self.num_samples, batch_size=self.batch_size)
        check_whole(0, 2**32 - 1, seed=self.seed)
        if not isinstance(self.guidance_interval, Sequence) or len(self.guidance_interval) != 2:
            raise InputError(f"guidance_interval = {self.guidance_interval!r} must be two times")
        numbers = {name: getattr(self, name) for name in ("temperature", "choice_temperature", "guidance")}
        numbers |= dict(zip(("guidance_interval", "guidance_interval (its end)"), self.guidance_interval))
        for name, value in numbers.items():
            if not is_number(value):
                raise InputError(f"{name} = {value!r} must be a number")
        self.unmasking, self.made_guidance  # which have their own checks
        if self.negative is not None and self.guidance == 1.0:
            raise InputError(f"negative = {self.negative!r} has no meaning with guidance = 1; give guidance, 3 say")
        if (self.init_image is None) != (self.mask is None):
            lacks, has = ("init_image", "mask") if self.init_image is None else ("mask", "init_image")
            raise InputError(f"{has} = {getattr(self, has)!r} needs {lacks}: give both, or neither")

    @property
    def unmasking(self) -> Unmasking:
        return Unmasking(self.order, self.steps, float(self.temperature), float(self.choice_temperature))

    @property
    def made_guidance(self) -> Guidance:
        return Guidance(float(self.guidance), tuple(self.guidance_interval))


class UnmaskedImages:
    """From codes that are all hidden to images (`fmjax.objectives.masked_codes.MaskedCodes`).

    Prompts are captions, where the model reads them, or else values of the codec "label"; None is no condition.
    """

    Options = Options

    def __init__(self, model):
        self.model = model
        self.reads_captions = bool(getattr(model.module, "vocab_size", None))
        self.labels = None if self.reads_captions else model.codecs.get("label")

    @staticmethod
    def lacks(model) -> str | None:
        if model.codec is None:
            makes = model.objective.makes
            return f"it has no codec {makes!r} to write its values with; was it saved without codecs.json?"
        if getattr(model.module, "vocab_size", None) and model.tokenizer is None:
            return "it has no tokenizer for captions"
        return None

    def default_prompts(self) -> Sequence[Any]:
        """Every class; of a model without classes one image of no caption."""
        return range(self.labels.num_classes) if self.labels is not None else [None]

    def run(
        self, prompts: Sequence[Any], options: Options, only: Container[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(index, image): see `fmjax.inference.generators.Generator`.

        only: indices of the images that are made; None is all.

        Raises InputError for a prompt that the model does not read, and for guidance of a model that was never trained
        without a condition; RunError for an image that is not finite.
        """
        check_list("prompts", prompts)
        if not len(prompts):
            return
        model, other = self.model, self._other(options)
        rows = [self._condition(prompt) for prompt in prompts]
        told = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        identities = [tuple(row["source_tokens"]) if self.reads_captions else row.get("classes") for row in rows]
        first_stage = model.opened("first_stage")
        begun, mask, image = self._begun(first_stage, options)
        static = _Static(model.module, model.objective.process, options.unmasking, options.made_guidance)

        def program(places, copies):
            batch = {name: array[places] for name, array in told.items()}
            keys = _keys(jax.random.key(options.seed), batch, copies)
            hidden = np.full(len(copies), (begun == model.module.num_codes).sum())
            codes = put_whole(np.tile(begun, (len(copies), 1)), model.placement)
            advance = lambda codes, *span: _seen(static, model.variables, codes, hidden, keys, batch, other, *span)
            return _images(first_stage, in_pieces(advance, codes, options.steps), mask, image)

        yield from made(model, model.codec, identities, options, program, only)

    def _begun(self, first_stage, options: Options):
        """(codes int32 [N] of the initial image, hidden where they are made anew, the mask bool [H, W, 1], the image
        float32 [H, W, C]); without an image all hidden, and None for the others."""
        module, codec = self.model.module, self.model.codec
        hidden = np.full(module.num_places, module.num_codes, np.int32)
        if options.init_image is None:
            return hidden, None, None
        image, mask = values_of(codec, options.init_image, "init_image"), mask_of(codec, options.mask)
        side = math.isqrt(module.num_places)
        height, width = mask.shape[:2]
        inside = mask.reshape(side, height // side, side, width // side).any((1, 3)).ravel()
        with self.model.inference():
            codes = np.asarray(_codes(first_stage, image[None]))[0]
        return np.where(inside, hidden, codes), mask, image

    def _other(self, options: Options) -> dict | None:
        """What to be guided away from; None where nothing guides."""
        if options.guidance == 1.0:
            return None
        told = f"guidance = {options.guidance}: {self.model}"
        if not self.reads_captions and self.labels is None:
            raise InputError(f"{told} takes no prompts to be guided by; leave guidance out")
        if options.negative is None and not self.model.objective.label_dropout:
            raise InputError(
                f"{told} was trained with objective.label_dropout = 0, so it does not know what to say without a "
                "condition; leave guidance out, or give a negative prompt"
            )
        return self._condition(options.negative)

    def _condition(self, prompt) -> dict[str, np.ndarray]:
        """The module's condition for a prompt, one row."""
        model = self.model
        if prompt is None and not model.objective.label_dropout and (self.reads_captions or self.labels is not None):
            raise InputError(f"{model} was trained with objective.label_dropout = 0: give it a prompt")
        if self.reads_captions:
            most = model.module.max_length
            if prompt is None:
                return dict.fromkeys(("source_tokens", "source_segment_ids"), np.zeros(most, np.int32))
            row = caption_row(model, prompt, most)
            return {"source_tokens": row["tokens"], "source_segment_ids": row["segment_ids"]}
        if self.labels is None:
            if prompt is not None:
                raise InputError(f"{model} takes no prompts, got {prompt!r}")
            return {}
        return {"classes": np.int32(NO_LABEL) if prompt is None else self.labels.encode(prompt)["labels"]}


@dataclasses.dataclass(frozen=True)
class _Static:
    """What a program is compiled for, besides the shapes of arrays."""

    module: Any
    process: Any
    unmasking: Unmasking
    guidance: Guidance


@jax.jit
def _keys(key, rows, numbers):
    """[B], what rows are drawn with: it depends on their conditions [B, ...] and numbers int32 [B] alone."""

    def row_key(row, number):
        found = jnp.uint32(0)
        for name, values in sorted(row.items()):
            flat = jnp.atleast_1d(values).astype(jnp.uint32)
            places = jnp.arange(1, len(flat) + 1, dtype=jnp.uint32)
            found = found * jnp.uint32(31) + jnp.sum((flat + 1) * (places * jnp.uint32(2654435761)))
        return jax.random.fold_in(jax.random.fold_in(key, found), number)

    return jax.vmap(row_key)(rows, numbers)


@functools.partial(jax.jit, static_argnames=("static",))
def _seen(static: _Static, variables, codes, places, keys, rows, other, first, last):
    """Codes int32 [B, T] behind the steps from `first` to before `last`, for conditions `rows` of [B, ...] and another
    one [...] or None to be guided away from."""
    module = static.module
    apply = lambda codes, told: module.apply(variables, codes=codes, **told).astype(jnp.float32)
    without = None
    if other is not None:
        without = jax.tree.map(lambda one: jnp.broadcast_to(one, (len(codes), *jnp.shape(one))), other)

    def logits_of(codes, times):
        given = apply(codes, rows)
        return given if without is None else static.guidance(given, apply(codes, without), times[0])

    steps = static.process, static.unmasking, module.num_codes
    return whole(unmask_between(first, last, logits_of, codes, places, keys, *steps))


@jax.jit
def _codes(first_stage, images):
    """int32 [B, T] of images float32 [B, H, W, C]."""
    return whole(codes_of(first_stage, images))


@jax.jit
def _images(first_stage, codes, mask, image):
    """float32 [B, H, W, C] of codes int32 [B, T]; outside of a mask bool [H, W, 1], where there is one, `image`."""
    made = images_of(first_stage, codes)
    return whole(made if mask is None else jnp.where(mask, made, image))
