"""Images of captions: codes drawn one after the other, decoded by the first stage that they are of."""

import dataclasses
import functools
import zlib
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.diffusion.guidance import Guidance
from fmjax.errors import InputError
from fmjax.inference.checks import check_list, is_number
from fmjax.inference.copies import made
from fmjax.inference.drawing import DrawingOptions
from fmjax.inference.prompts import caption_row
from fmjax.inference.sampler import Sampling, Settings, sample
from fmjax.inference.steps import in_pieces
from fmjax.objectives.first_stage import images_of
from fmjax.parallel.placement import whole

PIECE = 32
"""Codes that a call draws at least: it takes the layers' weights apart, which is as much as one code costs."""


@dataclasses.dataclass(frozen=True)
class Options(DrawingOptions):
    """How images are drawn: as `DrawingOptions`, and

    Attributes:
      guidance: how far away from what the model says without a caption: p + (guidance - 1) (p - p without), of the
        logits; 1 is without.
      negative: a caption to be guided away from, in the place of none.
    """

    guidance: float = 1.0
    negative: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.guidance):
            raise InputError(f"guidance = {self.guidance!r} must be a number")
        self.made_guidance  # which has its own check
        if self.negative is not None and self.guidance == 1.0:
            raise InputError(f"negative = {self.negative!r} has no meaning with guidance = 1; give guidance, 3 say")

    @property
    def made_guidance(self) -> Guidance:
        return Guidance(float(self.guidance))


class DrawnCodes:
    """From captions to images (`fmjax.objectives.captioned_codes.CaptionedCodes`)."""

    Options = Options

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        if model.codec is None:
            makes = model.objective.makes
            return f"it has no codec {makes!r} to write its values with; was it saved without codecs.json?"
        return "it has no tokenizer for captions" if model.tokenizer is None else None

    def default_prompts(self) -> Sequence[Any]:
        raise InputError(f"{self.model} makes images of captions: give it some")

    def run(
        self, prompts: Sequence[Any], options: Options, only: Container[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(index, image): see `fmjax.inference.generators.Generator`.

        only: indices of the images that are made; None is all.

        Raises InputError for what is no caption, or one longer than the model reads; RunError for an image that is not
        finite.
        """
        check_list("prompts", prompts)
        if not len(prompts):
            return
        model, other = self.model, self._other(options)
        rows = [self._row(prompt) for prompt in prompts]
        told = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        texts = np.array([zlib.crc32(prompt.encode()) for prompt in prompts], np.uint32)
        first_stage = model.opened("first_stage")
        static = _Static(model.module, options.sampling, options.made_guidance)

        def program(places, copies):
            batch = {name: array[places] for name, array in told.items()}
            draws = np.stack([texts[places], copies.astype(np.uint32)], axis=1)
            keys = _keys(jax.random.key(options.seed), draws)
            state = _begun(static, model.params, batch, other)
            advance = lambda state, first, last: _advanced(static, model.params, keys, state, first, last)
            state = in_pieces(advance, state, model.module.num_places - 1, least=PIECE)
            return _ended(static, first_stage, keys, state)

        yield from made(model, model.codec, prompts, options, program, only)

    def _row(self, prompt) -> dict[str, np.ndarray]:
        return caption_row(self.model, prompt, self.model.module.max_length)

    def _other(self, options: Options) -> dict[str, np.ndarray] | None:
        """The row to be guided away from; None where nothing guides. Raises InputError for a model that knows none."""
        if options.guidance == 1.0:
            return None
        if options.negative is not None:
            return self._row(options.negative)
        if not self.model.objective.label_dropout:
            raise InputError(
                f"guidance = {options.guidance}: {self.model} was trained with objective.label_dropout = 0, so it does "
                "not know what to draw without a caption; leave guidance out, or give a negative caption"
            )
        return dict.fromkeys(("tokens", "segment_ids"), np.zeros(self.model.module.max_length, np.int32))


@dataclasses.dataclass(frozen=True)
class _Static:
    """What programs are compiled for, besides the shapes of arrays."""

    module: Any
    sampling: Sampling
    guidance: Guidance

    def apply(self, params, *arguments, **more):
        """A call of the module, its layers one by one, as decoding with a cache needs them."""
        module, params = self.module.unrolled(params)
        return module.apply({"params": params}, *arguments, **more)

    def draw(self, logits, keys, place):
        """Codes int32 [B] of logits [B or 2 B, V], the second half of which are guided away from."""
        if self.guidance.scale != 1.0:
            logits = self.guidance(*jnp.split(logits, 2), 0.0)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        settings = Settings(*(jnp.full(len(logits), value) for value in self.sampling.values))
        return sample(logits, own, settings, self.sampling.uses)[0]


@jax.jit
def _keys(key, draws):
    """[B], what rows are drawn with, of numbers uint32 [B, 2] of a text and a copy."""
    return jax.vmap(lambda draw: jax.random.fold_in(jax.random.fold_in(key, draw[0]), draw[1]))(draws)


@functools.partial(jax.jit, static_argnames=("static",))
def _begun(static: _Static, params, rows, other):
    """What a code is drawn from and what was drawn, for captions of [B, T] and another one [T] or None, which is as
    many rows more: {"logits" [B or 2 B, V], "cache", "codes" int32 [B, N]}."""
    codes = jnp.zeros((len(rows["tokens"]), static.module.num_places), jnp.int32)
    if other is not None:
        rows = {name: jnp.concatenate([row, jnp.broadcast_to(other[name], row.shape)]) for name, row in rows.items()}
    cache = static.module.init_cache(len(rows["tokens"]))
    logits, cache = static.apply(params, **rows, cache=cache, method="first_code")
    return {"logits": logits, "cache": cache, "codes": codes}


@functools.partial(jax.jit, static_argnames=("static",), donate_argnames=("state",))
def _advanced(static: _Static, params, keys, state, first, last):
    """The state when the codes from `first` to before `last` are drawn."""

    def turn(place, state):
        drawn = static.draw(state["logits"], keys, place)
        both = jnp.tile(drawn, len(state["logits"]) // len(drawn))
        logits, cache = static.apply(params, both, place, state["cache"], method="next_code")
        return {"logits": logits, "cache": cache, "codes": state["codes"].at[:, place].set(drawn)}

    return lax.fori_loop(first, last, turn, state)


@functools.partial(jax.jit, static_argnames=("static",))
def _ended(static: _Static, first_stage, keys, state):
    """float32 [B, H, W, C], when all codes but the last are drawn."""
    last = static.module.num_places - 1
    codes = state["codes"].at[:, last].set(static.draw(state["logits"], keys, last))
    return whole(images_of(first_stage, codes))
