"""Texts out of masks: what a model of masked diffusion fills blanks with, in one program."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.diffusion.masked import Unmasking, unmask_between
from fmjax.errors import InputError
from fmjax.inference.checks import check_list, check_whole, is_number
from fmjax.inference.steps import in_pieces
from fmjax.parallel.placement import put_whole, whole


@dataclasses.dataclass(frozen=True)
class Options:
    """How blanks are filled.

    Attributes:
      length: tokens of each blank.
      blank: what stands for one in a prompt; a prompt without any has one at its end.
      steps: in which all tokens are seen; more than there are tokens in blanks add nothing.
      order: "random", the exact reverse of hiding tokens, or "confidence", the surest first (MaskGIT).
      temperature: divides the logits.
      seed: of what is drawn.
      num_samples: texts for each prompt.
      batch_size: texts made at once.
    """

    length: int = 64
    blank: str = "____"
    steps: int = 64
    order: str = "random"
    temperature: float = 1.0
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 16

    def __post_init__(self):
        check_whole(1, length=self.length, num_samples=self.num_samples, batch_size=self.batch_size, steps=self.steps)
        check_whole(0, 2**32 - 1, seed=self.seed)
        if not self.blank:
            raise InputError("blank is empty; give what stands for one in a prompt")
        if not is_number(self.temperature):
            raise InputError(f"temperature = {self.temperature!r} must be a number")
        self.unmasking  # which has its own checks

    @property
    def unmasking(self) -> Unmasking:
        return Unmasking(self.order, self.steps, float(self.temperature))


class Filling:
    """Fills the blanks of texts (`fmjax.objectives.masked_diffusion.MaskedDiffusion`); the text around them stays."""

    Options = Options

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        return "it has no tokenizer to write texts with" if model.tokenizer is None else None

    def default_prompts(self) -> Sequence[str]:
        return [""]

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[tuple[int, str]]:
        """(index, text): see `fmjax.inference.generators.Generator`."""
        check_list("prompts", prompts)
        model, copies, jobs = self.model, collections.Counter(), []
        for prompt in prompts:
            tokens = self._tokens(prompt, options)
            for _ in range(options.num_samples):
                jobs.append((tokens, copies[prompt]))
                copies[prompt] += 1
        width = max((len(tokens) for tokens, _ in jobs), default=0)
        objective = model.objective
        for first in range(0, len(jobs), options.batch_size):
            part = jobs[first : first + options.batch_size]
            rows = np.zeros((2, options.batch_size, width), np.int32)  # tokens, segments; rows beyond are dropped
            for row, (tokens, _) in enumerate(part):
                rows[:, row, : len(tokens)] = tokens, np.ones(len(tokens))
            numbers = np.array([copy for _, copy in part] + [0] * (options.batch_size - len(part)), np.int32)
            static = model.module, objective.process, options.unmasking, objective.mask_id
            places = (rows[0] == objective.mask_id).sum(1)
            with model.inference():
                keys = _keys(jax.random.key(options.seed), rows[0], numbers)
                advance = lambda tokens, *span: _fill(static, model.variables, tokens, rows[1], keys, places, *span)
                made = in_pieces(advance, put_whole(rows[0], model.placement), options.steps)
            for row, (tokens, _) in enumerate(part):
                yield first + row, model.tokenizer.decode(np.asarray(made)[row, : len(tokens)].tolist())

    def _tokens(self, prompt, options: Options) -> list[int]:
        if not isinstance(prompt, str):
            raise InputError(f"a prompt of {self.model} is a text with blanks {options.blank!r}, got {prompt!r}")
        parts = (prompt if options.blank in prompt else prompt + options.blank).split(options.blank)
        masks = [self.model.objective.mask_id] * options.length
        found = self.model.tokens([parts[0]])[0] if parts[0] else []
        for text in parts[1:]:
            found = [*found, *masks, *(self.model.tokens([text])[0] if text else [])]
        limit = self.model.context_length
        if limit is not None and len(found) > limit:
            raise InputError(
                f"the prompt {prompt[:40]!r} is {len(found)} tokens with its blanks, and {self.model} reads {limit}; "
                "shorten it or give a smaller length"
            )
        return found


@jax.jit
def _keys(key, tokens, numbers):
    """[B], what rows are drawn with: it depends on their tokens int32 [B, T] and numbers int32 [B] alone."""

    def row_key(row, number):
        places = jnp.arange(1, len(row) + 1, dtype=jnp.uint32)
        content = jnp.sum(row.astype(jnp.uint32) * (places * jnp.uint32(2654435761)))  # the same whatever is padded
        return jax.random.fold_in(jax.random.fold_in(key, content), number)

    return jax.vmap(row_key)(tokens, numbers)


@functools.partial(jax.jit, static_argnums=0)
def _fill(static, variables, tokens, segments, keys, places, first, last):
    """int32 [B, T] behind the steps from `first` to before `last`, of tokens and segments int32 [B, T]."""
    module, process, unmasking, mask_id = static
    logits_of = lambda tokens, times: module.apply(variables, tokens=tokens, segment_ids=segments)
    # Of a row that is padded each token is drawn by its place, so the width does not matter.
    return whole(unmask_between(first, last, logits_of, tokens, places, keys, process, unmasking, mask_id))
