"""Captions of images, by a model's decoder."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference import prompts as encoding
from fmjax.inference import values
from fmjax.inference.checks import check_whole
from fmjax.inference.drawing import DrawingOptions
from fmjax.inference.sampler import Settings, Uses, sample
from fmjax.parallel.placement import whole


@dataclasses.dataclass(frozen=True)
class Options(DrawingOptions):
    """How captions are drawn: as `DrawingOptions`, the likeliest token where nothing else is said, and

    Attributes:
      prefix: what each text begins with, as the decoder was taught; it is not told again.
      max_new_tokens: tokens of a caption at most, without those of the prefix; None is as many as the decoder writes.
    """

    temperature: float = 0.0
    prefix: str = ""
    max_new_tokens: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.max_new_tokens is not None:
            check_whole(1, max_new_tokens=self.max_new_tokens)


class Captions:
    """Texts by a module with `seen(images)` and `caption_logits(seen, tokens)`; a prompt is an image.

    Every token is drawn of logits that are computed anew: a caption is short, and so is the decoder.
    """

    Options = Options
    takes: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        if not hasattr(model.module, "caption_logits"):
            return f"{type(model.module).__name__} has no method caption_logits(seen, tokens), of a decoder of captions"
        if "image" not in model.reads:
            return "it has no codec 'image' of what it reads; was it saved without codecs.json?"
        return encoding.lacks_tokenizer(model)

    def default_prompts(self) -> Sequence[Any]:
        raise InputError(f"{self.model} writes captions of images: give it some")

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[tuple[int, str]]:
        """(index, text): see `fmjax.inference.generators.Generator`."""
        model, decoder = self.model, self.model.module.decoder
        begun = self._begun(options.prefix)
        length = decoder.max_length if options.max_new_tokens is None else options.max_new_tokens + len(begun)
        if length > decoder.max_length or len(begun) >= length:
            raise InputError(
                f"max_new_tokens = {options.max_new_tokens} and {len(begun)} tokens of the prefix are more than the "
                f"decoder writes, {decoder.max_length}"
            )
        (arrays,) = encoding.by_part(model, prompts, self.takes)
        arrays = {name: np.repeat(array, options.num_samples, axis=0) for name, array in arrays.items()}
        arrays["copies"] = _copies(arrays["images"])
        # Of what lies behind the vocabulary only the end can be drawn.
        banned = (*range(model.tokenizer.vocab_size, decoder.vocab_size), decoder.mask_id)
        key, sampling = jax.random.key(options.seed), options.sampling
        forward = lambda part: _write(
            model.module, model.variables, part, key, sampling.values, sampling.uses, length, begun, banned
        )
        row = 0
        for part in values.in_batches(model, arrays, forward, "caption", options.batch_size):
            for tokens in part:
                ended = np.flatnonzero(tokens == decoder.end_id)
                told = tokens[len(begun) : ended[0] if len(ended) else length].tolist()
                yield row, model.tokenizer.decode(told).strip()
                row += 1

    def _begun(self, prefix: str) -> tuple[int, ...]:
        """The tokens of a prefix, with what stands before a text."""
        if not prefix:
            return ()
        tokenizer = self.model.tokenizer
        before = [tokenizer.bos_id] if tokenizer.add_bos else []
        return (*before, *self.model.tokens([prefix])[0])


def _copies(images: np.ndarray) -> np.ndarray:
    """int [N]: how many images before each are the same."""
    seen, found = collections.Counter(), []
    for image in images:
        found.append(seen[image.tobytes()])
        seen[image.tobytes()] += 1
    return np.array(found, np.int32)


@functools.partial(jax.jit, static_argnames=("module", "uses", "length", "begun", "banned"))
def _write(module: nn.Module, variables, arrays, key, settings, uses: Uses, length: int, begun, banned) -> jax.Array:
    """Tokens int32 [B, length] of texts that begin with `begun`; what comes behind the first `end_id` is that, too."""
    seen = module.apply(variables, arrays["images"], method="seen")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, arrays["copies"])
    settings = Settings(*(jnp.full(len(keys), value) for value in settings))
    end_id = module.decoder.end_id

    def goes_on(state):
        place, _, has_ended = state
        return (place < length) & ~has_ended.all()

    def step(state):
        place, tokens, has_ended = state
        logits = jnp.take(module.apply(variables, seen, tokens, method="caption_logits"), place, axis=1)
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        drawn, _ = sample(logits, row_keys, settings, uses, banned_ids=banned)
        drawn = jnp.where(has_ended, end_id, drawn)
        if begun:
            given = jnp.asarray(begun, jnp.int32)[jnp.minimum(place, len(begun) - 1)]
            drawn = jnp.where(place < len(begun), given, drawn)
        return place + 1, tokens.at[:, place].set(drawn), has_ended | (drawn == end_id)

    start = (0, jnp.full((len(keys), length), end_id, jnp.int32), jnp.zeros(len(keys), bool))
    return whole(jax.lax.while_loop(goes_on, step, start)[1])
