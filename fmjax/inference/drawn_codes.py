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

from fmjax.errors import InputError
from fmjax.inference.checks import check_list, check_whole
from fmjax.inference.copies import made
from fmjax.inference.prompts import caption_row
from fmjax.inference.sampler import Sampling, Settings, sample
from fmjax.objectives.first_stage import images_of
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class Options:
    """How codes are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest code.
      top_k: draw from the k likeliest codes; 0: all.
      top_p: draw from the likeliest codes that have this much probability together.
      seed: of what is drawn.
      num_samples: images for each prompt.
      batch_size: images made at once.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 64

    def __post_init__(self):
        check_whole(1, num_samples=self.num_samples, batch_size=self.batch_size)
        check_whole(0, 2**32 - 1, seed=self.seed)
        self.sampling  # which has its own checks

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


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
        model = self.model
        rows = [caption_row(model, prompt, model.module.max_length) for prompt in prompts]
        told = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        texts = np.array([zlib.crc32(prompt.encode()) for prompt in prompts], np.uint32)
        first_stage = model.opened("first_stage")

        def program(places, copies):
            batch = {name: array[places] for name, array in told.items()}
            batch["draw"] = np.stack([texts[places], copies.astype(np.uint32)], axis=1)
            key = jax.random.key(options.seed)
            return _make(model.module, options.sampling, model.params, first_stage, key, batch)

        yield from made(model, model.codec, prompts, options, program, only)


@functools.partial(jax.jit, static_argnames=("module", "sampling"))
def _make(module, sampling: Sampling, params, first, key, rows):
    """float32 [B, H, W, C] for captions of [B, T], and "draw" uint32 [B, 2], of which a row's keys are made."""
    module, params = module.unrolled(params)
    apply = functools.partial(module.apply, {"params": params})
    draws = rows.pop("draw")
    keys = jax.vmap(lambda draw: jax.random.fold_in(jax.random.fold_in(key, draw[0]), draw[1]))(draws)
    settings = Settings(*(jnp.full(len(draws), value) for value in sampling.values))

    def draw(logits, place):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        return sample(logits, own, settings, sampling.uses)[0]

    def turn(carry, place):
        logits, cache = carry
        codes = draw(logits, place)
        return apply(codes, place, cache, method="next_code"), codes

    start = apply(**rows, cache=module.init_cache(len(draws)), method="first_code")
    (logits, _), codes = lax.scan(turn, start, jnp.arange(module.num_places - 1))
    codes = jnp.concatenate([codes.T, draw(logits, module.num_places - 1)[:, None]], axis=1)
    return whole(images_of(first, codes))
