"""What generation is asked for and what it answers: prompts of token ids, drawn tokens and their log-probabilities."""

import dataclasses
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fmjax.inference.sampler import Sampling, Uses

DEAD_END = "dead_end"
"""How a continuation ended that no token of the vocabulary goes on with to a text of its language."""

HIGHEST_SEED = 2**32 - 1
"""Seeds and numbers of copies are folded into keys as uint32."""


class Walk(Protocol):
    """A continuation on its way through a language (`fmjax.inference.constraints`)."""

    def allowed(self) -> np.ndarray:
        """uint32 words (`fmjax.inference.sampler.only_these`): the tokens that a text of the language goes on with."""

    def may_end(self) -> bool:
        """Whether what was drawn so far is a text of the language."""

    def take(self, token: int) -> None:
        """Goes on by a token that was drawn."""

    def copy(self) -> "Walk":
        """Another one at the same place, which goes on by itself."""


class Language(Protocol):
    """The texts that a continuation may be."""

    def begin(self) -> Walk:
        """A walk that nothing was drawn of."""


@dataclasses.dataclass(frozen=True)
class PromptRequest:
    """A prompt and what is wanted of it.

    Attributes:
      tokens: the prompt, at least one token; for an encoder-decoder the source.
      max_new_tokens: drawn at most, fewer where the context ends.
      sampling: how they are drawn.
      seed, copy: with the prompt's own tokens they fix what is drawn; `copy` numbers requests for the same prompt.
      language: what is drawn is a text of it: each token is drawn from those that it allows there, and a stop token
        where a text of it may end. None is any text.
    """

    tokens: Sequence[int]
    max_new_tokens: int = 64
    sampling: Sampling = Sampling(0.0)
    seed: int = 0
    copy: int = 0
    language: Language | None = None

    @property
    def uses(self) -> Uses:
        """Parts of the sampler that it needs."""
        return self.sampling.uses._replace(allowed=self.language is not None)


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """What a draft was worth.

    Attributes:
      passes: of the model over a row, after its prompt.
      drawn: tokens that came of them.
      proposed, accepted: tokens of the draft that they read, and that were taken.
    """

    passes: int = 0
    drawn: int = 0
    proposed: int = 0
    accepted: int = 0

    def __add__(self, other: "Acceptance") -> "Acceptance":
        return Acceptance(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __str__(self) -> str:
        return (
            f"{self.tokens_a_pass:.2f} tokens a pass of the model, {self.accepted_share:.0%} of {self.proposed} "
            "proposed tokens accepted"
        )

    @property
    def tokens_a_pass(self) -> float:
        """1 without a draft."""
        return self.drawn / max(self.passes, 1)

    @property
    def accepted_share(self) -> float:
        """Of proposed tokens; 0 where there were none."""
        return self.accepted / max(self.proposed, 1)


def add_acceptance(one: Acceptance | None, other: Acceptance | None) -> Acceptance | None:
    """Of two parts; None is a part without a draft."""
    return one if other is None else other if one is None else one + other


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some newly drawn tokens of one request; `finish` is None while the request goes on, `acceptance` without a
    draft."""

    index: int
    tokens: list[int]
    logprobs: list[float]
    finish: str | None
    acceptance: Acceptance | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was drawn after one prompt.

    Attributes:
      tokens: drawn tokens; the stop token that ended them is the last.
      logprobs: log-probability of each at the temperature that drew it (`sampler.sample`).
      finish: "stop" (a stop token), "length" (`max_new_tokens` drawn), "context" (the context or the cache is full) or
        DEAD_END.
      acceptance: what the draft was worth; None without one.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: str
    acceptance: Acceptance | None = None


def digest(tokens: Sequence[int]) -> int:
    """A hash of a prompt, which its random keys are folded from: so they are the same in any company."""
    return zlib.crc32(np.asarray(tokens, "<i4").tobytes())


def number_copies(prompts: Sequence[Sequence[int]]) -> list[int]:
    """How often the same prompt came before each."""
    seen: dict[int, int] = defaultdict(int)
    copies = []
    for prompt in prompts:
        key = digest(prompt)
        copies.append(seen[key])
        seen[key] += 1
    return copies
