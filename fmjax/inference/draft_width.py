"""How many proposals a pass over several rows reads, where a pass over more tokens takes longer: as on a CPU.

All rows of a pass are as wide as the widest. What a row that proposes much gains may cost the others more, and
proposals that are mostly wrong cost more than they give. Which of those that cost nothing to leave out are read goes by
how many were taken so far.
"""

import numpy as np

from fmjax.inference.rows import bucket

TOKEN = 0.15
"""What a pass takes longer for each further token, in passes over one. SmolLM2-135M in float32 on a core of an AMD EPYC
(family 25, model 1), other work beside it: 4, 8 and 16 tokens of a row took 1.5, 2.3 and 3.0 times as long as one."""

KNOWN = 0.98
"""Share of what is known that is still known a pass later, so that what did not pay is tried again."""


class Width:
    """Of one run.

    Args:
      most: tokens that a pass may read of a row beyond its own.
    """

    def __init__(self, most: int):
        self._most = most
        # By how many were proposed: proposals that were taken, and that were tried.
        self._known: dict[int, np.ndarray] = {}

    def of(self, counts: np.ndarray, active: np.ndarray, last=None) -> int:
        """So many proposals a row that a token costs least.

        Args:
          counts: int [B], of each row.
          active: bool [B], rows that go on.
          last: of the last pass that was made, how many were proposed to each row, how many of these it read and how
            many were taken; None for none.
        """
        if last is not None:
            self._learn(*(np.asarray(x).reshape(-1) for x in last))
        counts = np.where(active, counts, 0).tolist()
        widths = sorted({min(bucket(n + 1, low=1) - 1, self._most) for n in (0, *counts)})
        gained = [sum(active) + sum(self._taken(n, width) for n in counts) for width in widths]
        costs = [1 + TOKEN * (len(counts) * (width + 1) - 1) for width in widths]
        return widths[int(np.argmax(np.divide(gained, costs)))]

    def _taken(self, proposed: int, width: int) -> float:
        """Proposals that are expected to be taken of the first `width` of so many: each where those before it are."""
        chance = self._chance(proposed)
        return sum(chance**place for place in range(1, min(proposed, width) + 1))

    def _chance(self, proposed: int) -> float:
        """As if, before any was tried, all but one of so many had been taken, and this were known of one."""
        taken, tried = self._known.get(proposed, (0, 0))
        return (taken + proposed / (proposed + 1)) / (tried + 1)

    def _learn(self, counts: np.ndarray, read: np.ndarray, taken: np.ndarray) -> None:
        for known in self._known.values():
            known *= KNOWN
        for proposed, seen, found in zip(counts.tolist(), read.tolist(), taken.tolist()):
            if seen:
                known = self._known.setdefault(proposed, np.zeros(2))
                known += (found, min(found + 1, seen))
