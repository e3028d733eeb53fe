"""Images of captions: codes drawn one after the other, decoded by the first stage that they are of."""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.data.captions import CaptionRows
from fmjax.errors import DataError, InputError, RunError
from fmjax.inference.checks import check_list, check_whole
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

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[tuple[int, Any]]:
        """(index, image): see `fmjax.inference.generators.Generator`.

        Raises InputError for what is no caption, or one longer than the model reads; RunError for an image that is not
        finite.
        """
        check_list("prompts", prompts)
        model, codec = self.model, self.model.codec
        copies, jobs = collections.Counter(), []
        for prompt in prompts:
            row = self._row(prompt)
            for _ in range(options.num_samples):
                jobs.append(row | {"draw": np.array([zlib.crc32(prompt.encode()), copies[prompt]], np.uint32)})
                copies[prompt] += 1
        first_stage, placement = model.opened("first_stage"), model.placement
        size = max(min(options.batch_size, len(jobs)), 1)
        size += -size % (1 if placement is None else placement.num_row_shards)
        inside = model.inference if placement is None else placement.scoring
        for first in range(0, len(jobs), size):
            part = jobs[first : first + size]
            filled = part + part[-1:] * (size - len(part))
            rows = jax.tree.map(lambda *one: np.stack(one), *filled)
            with inside():
                made = _make(model.module, options.sampling, model.params, first_stage, options.seed, rows)
            for index, array in enumerate(np.asarray(made)[: len(part)]):
                if not np.isfinite(array).all():
                    raise RunError(f"image {first + index} of {model} is not finite; nothing is written")
                yield first + index, codec.decode({codec.array: array})

    def _row(self, prompt) -> dict[str, np.ndarray]:
        """`tokens` and `segment_ids` of a caption."""
        model = self.model
        if not isinstance(prompt, str):
            raise InputError(f"a prompt of {model} is a caption, got {prompt!r}")
        most = model.module.max_length
        try:
            return CaptionRows(model.tokenizer, most, "error", "what the model reads, model.max_length")(prompt)
        except DataError as error:
            raise InputError(f"{str(error).partition('; raise it')[0]}; shorten it") from None


@functools.partial(jax.jit, static_argnames=("module", "sampling"))
def _make(module, sampling: Sampling, params, first, seed, rows):
    """float32 [B, H, W, C] for captions of [B, T], and "draw" uint32 [B, 2], of which a row's keys are made."""
    module, params = module.unrolled(params)
    apply = functools.partial(module.apply, {"params": params})
    draws, key = rows.pop("draw"), jax.random.key(seed)
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
