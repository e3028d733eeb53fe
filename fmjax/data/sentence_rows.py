"""Rows of sentences for masked language models, before masking: sentence pairs (BERT), full sentences (RoBERTa).

Both are planned by index from the sentences' lengths, as packing is: a row is a pure function of its index.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fmjax.data.corpus import TokenizedSplit
from fmjax.data.shuffle import random_bits

PLAN_VERSION = 1  # part of the cache key: raise it when a plan lays the same sentences out otherwise
_BITS = 1 << 14  # random numbers drawn at once while planning


@dataclasses.dataclass(frozen=True)
class FullSentencesPlan:
    """Row i holds the tokens starts[i] .. starts[i + 1] - 1 of the corpus; int64 [rows + 1]."""

    starts: np.ndarray


@dataclasses.dataclass(frozen=True)
class SentencePairsPlan:
    """Row i holds the sentences first[i, 0] .. first[i, 1] - 1 and then second[i, 0] .. second[i, 1] - 1.

    Attributes:
      first, second: int64 [rows, 2].
      is_random: bool [rows]: whether the second part is from another document instead of following the first.
    """

    first: np.ndarray
    second: np.ndarray
    is_random: np.ndarray


def plan_full_sentences(split: TokenizedSplit, sequence_length: int) -> FullSentencesPlan:
    """RoBERTa's FULL-SENTENCES (Liu et al. 2019, section 4.2): as many whole sentences a row as fit, across documents.

    A row has room for its first and last special token and for one separator between documents. A sentence longer
    than a row is cut into full pieces and a rest.
    """
    room = sequence_length - 2
    lengths = np.diff(split.offsets)
    pieces = -(-lengths // room)
    first_piece = np.cumsum(pieces) - pieces
    piece_in_sentence = np.arange(int(pieces.sum())) - np.repeat(first_piece, pieces)
    starts = np.repeat(split.offsets[:-1], pieces) + piece_in_sentence * room
    begins_document = np.zeros(len(starts), np.int64)
    begins_document[first_piece[split.documents[:-1]]] = 1
    ends = np.append(starts[1:], split.offsets[-1])
    # A piece that begins a document takes a separator too, unless it comes first in its row.
    used = np.concatenate([[0], np.cumsum(ends - starts + begins_document)])
    rows, piece = [], 0
    while piece < len(starts):
        rows.append(piece)
        piece = int(np.searchsorted(used, used[piece] + begins_document[piece] + room, side="right")) - 1
    return FullSentencesPlan(np.append(starts[rows], split.offsets[-1]).astype(np.int64))


def plan_contiguous(split: TokenizedSplit, sequence_length: int) -> FullSentencesPlan:
    """As `plan_full_sentences`, but rows end in the middle of a sentence: all are full except the last one."""
    room = sequence_length - 2
    document_starts = split.offsets[split.documents[:-1]]
    # A token's place in the text with a separator before every document; a row begins without one.
    places = document_starts + np.arange(1, len(document_starts) + 1)
    rows, start, end = [], 0, int(split.offsets[-1])
    while start < end:
        rows.append(start)
        last = start + int(np.searchsorted(document_starts, start, side="right")) + room - 1
        begun = int(np.searchsorted(places, last, side="right"))
        start = last - begun + 1
        if begun < len(document_starts):
            start = min(start, int(document_starts[begun]))
    return FullSentencesPlan(np.array([*rows, end], np.int64))


def plan_sentence_pairs(
    split: TokenizedSplit, sequence_length: int, short_sequence_rate: float, seed: Sequence
) -> SentencePairsPlan:
    """BERT's pairs for next-sentence prediction (Devlin et al. 2019, appendix A.2; `create_pretraining_data.py`).

    Sentences of a document are gathered until a row is full or, for a share of the rows, until a length drawn evenly
    from 2 up to full. The first part ends at a sentence drawn evenly. Half of the time, and always when only one
    sentence was gathered, the second part is instead a stretch of another document that begins at random, and the
    sentences not used are gathered again for the next row. Unlike the original the length is drawn for each row, not
    for each document: one long document may be all there is.
    """
    documents, offsets = split.documents.tolist(), split.offsets
    full = sequence_length - 3
    draw = _Draws(seed)
    first, second, is_random = [], [], []
    for document in range(len(documents) - 1):
        sentence, last = documents[document], documents[document + 1]
        while sentence < last:
            target = full
            if draw.below(_BITS) < short_sequence_rate * _BITS:
                target = 2 + draw.below(max(full - 1, 1))
            end = _gather(offsets, sentence, last, target)
            middle = sentence + 1 + (draw.below(end - sentence - 1) if end - sentence > 1 else 0)
            random = end - sentence == 1 or draw.below(2) == 1
            if random:
                other = draw.below(len(documents) - 2)
                other += other >= document
                begin = documents[other] + draw.below(documents[other + 1] - documents[other])
                room = target - int(offsets[middle] - offsets[sentence])
                second.append((begin, _gather(offsets, begin, documents[other + 1], room)))
            else:
                second.append((middle, end))
            first.append((sentence, middle))
            is_random.append(random)
            sentence = middle if random else end
    pairs = lambda parts: np.array(parts, np.int64).reshape(-1, 2)
    return SentencePairsPlan(pairs(first), pairs(second), np.array(is_random, bool))


def _gather(offsets: np.ndarray, sentence: int, last: int, target: int) -> int:
    """The end of the shortest stretch of sentences from `sentence`, at least one, with `target` tokens; or `last`."""
    end = int(np.searchsorted(offsets[sentence : last + 1], offsets[sentence] + target)) + sentence
    return min(max(end, sentence + 1), last)


class _Draws:
    """Whole numbers drawn one after another from a seed."""

    def __init__(self, seed: Sequence):
        self._seed, self._block, self._bits = list(seed), 0, iter(())

    def below(self, limit: int) -> int:
        """One of 0 .. limit - 1, evenly."""
        for bits in self._bits:
            return bits % limit
        self._bits = iter(random_bits(_BITS, *self._seed, "plan", self._block).tolist())
        self._block += 1
        return next(self._bits) % limit


class FullSentenceRows(Sequence):
    """Rows of a `FullSentencesPlan`: {"tokens": int32 [n]}, n at most the sequence length.

    A row begins with `begin` and ends with `end`, and `end` stands between the documents in it.
    """

    def __init__(self, split: TokenizedSplit, plan: FullSentencesPlan, begin: int, end: int):
        self._tokens, self._plan, self._begin, self._end = split.tokens, plan, begin, end
        self._document_starts = split.offsets[split.documents[:-1]]

    def __len__(self) -> int:
        return len(self._plan.starts) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start, stop = self._plan.starts[index : index + 2].tolist()
        inside = slice(*np.searchsorted(self._document_starts, (start + 1, stop)))
        text = np.insert(self._tokens[start:stop].astype(np.int32), self._document_starts[inside] - start, self._end)
        return {"tokens": np.concatenate([[self._begin], text, [self._end]]).astype(np.int32)}


class SentencePairRows(Sequence):
    """Rows of a `SentencePairsPlan`, `begin` first `end` second `end`, at most `sequence_length` tokens.

    A row has "tokens" and "token_types" int32 [n], types 0 up to the first `end` and 1 after it, and
    "next_sentence_labels" int32 []: 0 where the second part follows the first, 1 where it is random. A pair that is
    too long loses tokens of its longer part, one by one, each from its front or its back at random.
    """

    def __init__(
        self, split: TokenizedSplit, plan: SentencePairsPlan, begin: int, end: int, sequence_length: int, seed: Sequence
    ):
        self._split, self._plan, self._begin, self._end = split, plan, begin, end
        self._room, self._seed = sequence_length - 3, list(seed)

    def __len__(self) -> int:
        return len(self._plan.is_random)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        offsets = self._split.offsets
        bounds = [offsets[part[index]].tolist() for part in (self._plan.first, self._plan.second)]
        first, second = (self._split.tokens[slice(*part)] for part in self._truncated(bounds, index))
        tokens = np.concatenate([[self._begin], first, [self._end], second, [self._end]]).astype(np.int32)
        types = np.zeros(len(tokens), np.int32)
        types[len(first) + 2 :] = 1
        label = np.array(self._plan.is_random[index], np.int32)
        return {"tokens": tokens, "token_types": types, "next_sentence_labels": label}

    def _truncated(self, bounds: list, index: int) -> list[tuple[int, int]]:
        lengths = [stop - start for start, stop in bounds]
        excess = sum(lengths) - self._room
        if excess <= 0:
            return bounds
        # Cutting the longer part token by token (the second of two equal ones) leaves these lengths.
        longer = 0 if lengths[0] > lengths[1] else 1
        lengths[longer] -= (cut := min(excess, abs(lengths[0] - lengths[1])))
        lengths[0] -= (excess - cut) // 2
        lengths[1] -= (excess - cut + 1) // 2
        removed = [stop - start - length for (start, stop), length in zip(bounds, lengths)]
        fronts = random_bits(sum(removed), *self._seed, "truncate", index) >> np.uint64(63)
        front = [int(fronts[: removed[0]].sum()), int(fronts[removed[0] :].sum())]
        return [(start + f, start + f + length) for (start, _), f, length in zip(bounds, front, lengths)]
