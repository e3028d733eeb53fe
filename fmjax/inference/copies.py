"""Copies of what prompts ask for, made in batches of one size: what generators by one program a batch share."""

import collections
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from fmjax.errors import RunError


def made(
    model, codec, identities: Sequence[Hashable], options, program: Callable[[np.ndarray, np.ndarray], Any],
    only: Container[int] | None = None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """(index, value) for each of `options.num_samples` copies of each prompt, in order of the prompts.

    Args:
      codec: whose `decode` makes a value of an array.
      identities: of each prompt; copies of equal ones are counted on, so that no two are alike.
      options: with `num_samples` and `batch_size`.
      program: (places of prompts, numbers of copies), int32 [B] each, to numbers [B, ...]; called where the model's
        parameters lie, with the last batch filled up to the size of the others.
      only: indices of the values that are made; None is all.

    Raises RunError for a value that is not finite.
    """
    counts, jobs = collections.Counter(), []
    for place, identity in enumerate(identities):
        for _ in range(options.num_samples):
            jobs.append((place, counts[identity]))
            counts[identity] += 1
    wanted = [index for index in range(len(jobs)) if only is None or index in only]
    placement = model.placement
    size = max(min(options.batch_size, len(wanted)), 1)
    size += -size % (1 if placement is None else placement.num_row_shards)
    inside = model.inference if placement is None else placement.scoring
    for first in range(0, len(wanted), size):
        part = wanted[first : first + size]
        places, copies = np.array([jobs[index] for index in part + part[-1:] * (size - len(part))], np.int32).T
        with inside():
            arrays = program(places, copies)
        for index, array in zip(part, np.asarray(arrays)):
            if not np.isfinite(array).all():
                raise RunError(
                    f"value {index} of {model} is not finite; nothing is written. Diverged weights do that, numbers "
                    "too large for float16, or guidance that is too strong"
                )
            yield index, codec.decode({codec.array: array})
