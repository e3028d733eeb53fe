"""A draft at work in one run of the engine: the host's part.

Where the host has to know what is proposed, it makes a pass at a time: a language allows what it does after each
proposal, and on a CPU, where a pass over many tokens costs more than one over a few, it is made as wide as pays
(`fmjax.inference.draft_width`). Proposals that were drawn are all read: the text depends on which were.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError, RunError
from fmjax.inference.allowed_tokens import AllowedTokens
from fmjax.inference.draft_width import Width
from fmjax.inference.drafts import Drafted, Proposals
from fmjax.inference.engine_programs import Form, State
from fmjax.inference.engine_requests import Acceptance, Walk
from fmjax.inference.engine_speculation import Passes, speculation
from fmjax.inference.rows import bucket


class Drafting:
    """The draft of one run.

    Args:
      drafted: the draft and its weights.
      in_turns: whether a pass of the model takes far longer than a dispatch, as on a CPU that of a deep stack.

    Attributes:
      in_turns: so every pass is dispatched alone.
      spare: tokens of a pass that may be taken back.
      places: of the cache, beyond those that a request takes, for what is proposed behind its end and for padding.
    """

    def __init__(self, drafted: Drafted, in_turns: bool):
        self.in_turns = in_turns
        self._draft, self._weights = drafted
        self._own, self._places = None, None
        self._width = Width(self._draft.tokens) if in_turns else None
        self._last = None  # of the last pass: proposals of each row, those read, and those taken
        self.spare = self._draft.tokens
        self.places = self.spare + 1

    @property
    def _context(self) -> int | None:
        """Places that a draft model has."""
        return getattr(getattr(self._draft, "module", None), "max_length", None)

    def check(self, index: int, places: int) -> None:
        """Raises InputError for a request that takes more places than a draft model has."""
        if self._context is not None and places > self._context:
            raise InputError(
                f"prompt {index} and its new tokens take {places} places, and the draft has a context of "
                f"{self._context}: ask for fewer max_new_tokens, or take another draft"
            )

    def begin(self, form: Form, batch_size: int, places: int) -> None:
        """Makes the draft's own arrays, empty, for a cache of so many places."""
        # Of a draft's own context the last place may be proposed for: its padding goes to the cache, which is longer.
        self._places = np.int32(places if self._context is None else min(places, self._context + 1))
        self._own = speculation().start(form, self._draft, batch_size, places)

    def read(self, form: Form, packed) -> None:
        """Packed prompts have become rows."""
        self._own = speculation().read(form, self._draft, self._weights, self._own, packed)

    def decode(
        self, form: Form, weights, state: State, alive, stop_ids, steps, free_rows,
        allowed: AllowedTokens | None = None, walks: Sequence[tuple[Walk | None, np.ndarray]] | None = None,
    ):  # fmt: skip
        """(state, tokens, their log-probabilities, what `acceptance` reads) of passes of the model.

        Args:
          steps, free_rows: as for `engine_programs.programs()[2]`, of passes.
          allowed, walks: where some row is held to a language; of each row its walk, and words of what it may draw.
        """
        if self.in_turns or walks is not None:
            state, found = self._one_pass(form, weights, state, alive, stop_ids, allowed, walks)
        else:
            state, self._own, found = speculation().together(
                form, self._draft, weights, self._weights, state, self._own, alive, stop_ids, self._places, steps,
                free_rows,
            )  # fmt: skip
        return state, found.tokens, found.logprobs, (found.proposed, found.accepted, found.passed)

    def _one_pass(self, form: Form, weights, state: State, alive, stop_ids, allowed, walks) -> tuple[State, Passes]:
        """A pass, over so many tokens as the most that were proposed to a row ask for."""
        state, self._own, proposals, told = speculation().propose(
            form, self._draft, weights, self._weights, state, self._own, alive, self._places
        )
        tokens, count = map(np.asarray, told)
        width = min(bucket(count.max() + 1, low=1) - 1, self._draft.tokens)  # few programs for all numbers of proposals
        if self._width is not None and proposals.laws is None:
            width = self._width.of(count, np.asarray(alive), self._last)
        proposals, tokens, read = narrowed(proposals, width), tokens[:, :width], np.minimum(count, width)
        words = None
        if walks is not None:
            rows = [words_along(allowed, *walk, row[:n]) for walk, row, n in zip(walks, tokens, read)]
            fill = lambda row: row + [allowed.everything] * (tokens.shape[1] + 1 - len(row))
            words = jnp.asarray(np.stack([np.stack(fill(row)) for row in rows]))
        state, self._own, passes = speculation().verify(
            form, self._draft, weights, state, self._own, proposals, stop_ids, words
        )
        self._last = count, read, passes.accepted
        return state, passes


def narrowed(proposals: Proposals, width: int) -> Proposals:
    """The first `width` of each row's."""
    laws = None if proposals.laws is None or not width else proposals.laws[:, :width]
    return Proposals(proposals.tokens[:, :width], jnp.minimum(proposals.count, width), laws, proposals.finite)


def words_along(allowed: AllowedTokens, walk: Walk | None, words: np.ndarray, proposed) -> list[np.ndarray]:
    """What a row may draw next, and after each of the proposals as far as its language goes on with them."""
    found = [words]
    if walk is None:
        return found
    walk = walk.copy()
    for token in map(int, proposed):
        if not found[-1][token // 32] >> (token % 32) & 1 or token in allowed.stop_ids:
            break
        walk.take(token)
        words = allowed.of(walk)
        if words is None:
            break
        found.append(words)
    return found


def acceptance(index: int, place: int, passes: Sequence[np.ndarray] | None, kept: int) -> Acceptance:
    """What the passes of a chunk were worth to the row at `place`.

    Args:
      passes: proposed, accepted and passed of `Passes`; None for none.
      kept: tokens of the chunk that the row goes on by.

    Raises RunError, naming the prompt `index`, where the draft's logits were not finite.
    """
    if passes is None:
        return Acceptance()
    proposed, accepted, passed = (x[place] for x in passes)
    if (proposed < 0).any():
        raise RunError(
            f"prompt {index}: the draft's logits are not finite. Damaged or diverged weights do that, or numbers too "
            "large for float16"
        )
    return Acceptance(int(passed.sum()), kept, int(proposed.sum()), min(int(accepted.sum()), kept))
