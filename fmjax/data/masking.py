"""Masking for masked language models (Devlin et al. 2019, section 3.1 and appendix A.2)."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fmjax.data.base import Row
from fmjax.data.shuffle import random_bits


@dataclasses.dataclass(frozen=True)
class Masker:
    """Chooses tokens of a row as targets and hides them.

    Of a row of n tokens, special ones counted, min(max_predictions, max(1, round(rate * n))) are chosen, evenly and
    without replacement among those that are not special. Each becomes the mask token with probability 0.8, a token
    drawn evenly from the vocabulary without the special ones with probability 0.1, and otherwise stays.

    Attributes:
      sequence_length: T.
      max_predictions: P.
      rate: share of the tokens chosen.
      mask_id: the mask token.
      special_ids: tokens that are never chosen and never put in.
      vocab_size: number of the tokens.
      pad_id: fills rows.
    """

    sequence_length: int
    max_predictions: int
    rate: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    pad_id: int

    @functools.cached_property
    def _is_ordinary(self) -> np.ndarray:
        is_ordinary = np.ones(self.vocab_size, bool)
        is_ordinary[list(self.special_ids)] = False
        return is_ordinary

    @functools.cached_property
    def _ordinary(self) -> np.ndarray:
        return np.flatnonzero(self._is_ordinary)

    def __call__(self, row: Row, seed: Sequence) -> Row:
        """The row masked and filled up, a pure function of (row, seed).

        Args:
          row: "tokens" int32 [n], n <= T; where it has "token_types" [n] or "next_sentence_labels" [], they are kept.
          seed: JSON-able values.

        Returns:
          tokens: int32 [T], masked.
          targets: int32 [T], the tokens as they were.
          loss_weights: float32 [T], 1 at the chosen positions.
          masked_positions: int32 [P], the chosen positions in ascending order, then 0, where a special token stands
            and the weight is 0.
          segment_ids, positions: int32 [T]; 1 and 0, 1, 2, ... up to n; 0 beyond.
        """
        length = len(row["tokens"])
        chosen, hidden = self._hide(row["tokens"], seed)
        masked_positions = np.zeros(self.max_predictions, np.int32)
        masked_positions[: len(chosen)] = chosen
        tokens = row["tokens"].copy()
        tokens[chosen] = hidden
        loss_weights = np.zeros(self.sequence_length, np.float32)
        loss_weights[chosen] = 1.0
        masked = {
            "tokens": self._filled(tokens, self.pad_id),
            "targets": self._filled(row["tokens"], self.pad_id),
            "loss_weights": loss_weights,
            "masked_positions": masked_positions,
            "segment_ids": self._filled(np.ones(length, np.int32), 0),
            "positions": self._filled(np.arange(length, dtype=np.int32), 0),
        }
        if "token_types" in row:
            masked["token_types"] = self._filled(row["token_types"], 0)
        if "next_sentence_labels" in row:
            masked["next_sentence_labels"] = row["next_sentence_labels"]
        return masked

    def _hide(self, tokens: np.ndarray, seed: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """(positions chosen, what stands there instead)."""
        candidates = np.flatnonzero(self._is_ordinary[tokens])
        count = min(self.max_predictions, max(1, round(self.rate * len(tokens))), len(candidates))
        order, how, other = np.split(
            random_bits(len(candidates) + 2 * count, *seed, "mask"), [len(candidates), len(candidates) + count]
        )
        chosen = np.sort(candidates[np.argsort(order, kind="stable")[:count]])
        how = how % np.uint64(10)
        random = self._ordinary[other % np.uint64(len(self._ordinary))]
        return chosen, np.select([how < 8, how == 8], [self.mask_id, random], tokens[chosen])

    def _filled(self, values: np.ndarray, fill: int) -> np.ndarray:
        padded = np.full(self.sequence_length, fill, np.int32)
        padded[: len(values)] = values
        return padded
