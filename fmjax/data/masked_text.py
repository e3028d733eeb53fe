"""Text for masked language models: BERT's sentence pairs and RoBERTa's full sentences, masked by index.

Sources, mixtures, tokenizer, cache and held-out documents are those of `TextData`. A row is whole sentences
(`sentence_rows`) with some of its tokens hidden (`masking`), a pure function of (config, seed, index).
"""

import bisect
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from fmjax.data.base import Row, described
from fmjax.data.corpus import Corpus
from fmjax.data.masking import Masker
from fmjax.data.prepared import fingerprint
from fmjax.data.sentence_rows import (
    PLAN_VERSION,
    FullSentenceRows,
    FullSentencesPlan,
    SentencePairRows,
    SentencePairsPlan,
    plan_contiguous,
    plan_full_sentences,
    plan_sentence_pairs,
)
from fmjax.data.sentences import RULES
from fmjax.data.shuffle import shuffled_indices
from fmjax.data.text import TextData
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice, check_positive

MASKINGS = ("static", "dynamic")


@dataclasses.dataclass(frozen=True)
class MaskedTextData(TextData):
    """Documents for a masked language model.

    The fields not named here are those of `TextData`. A row has the arrays of `Masker`, and with next_sentence
    `token_types` int32 [T] and `next_sentence_labels` int32 [] (0 where the second part follows the first, 1 where it
    is random). Its first token is the tokenizer's CLS, or its BOS where it has no CLS; its parts end with SEP, or EOS.
    It is filled up with PAD, or 0. A tokenizer trained here has the pieces <s>, </s> and <mask>.

    Attributes:
      sequence_length: tokens a row, T, special ones included.
      next_sentence: True: `[CLS] A [SEP] B [SEP]`, half of the time with a random B (BERT: `plan_sentence_pairs`).
        False: rows as full of whole sentences as they go, across documents (RoBERTa: `plan_full_sentences`).
      sentences: "lines" or "punctuation", see `split_sentences`. Without next_sentence also "ignore": rows are then
        filled to the last token (`plan_contiguous`), where whole sentences leave some of each empty.
      masking: what is hidden in a row is a pure function, "static": of (seed, row, duplicate); "dynamic": of (seed,
        index in the endless stream), so that no epoch repeats another.
      duplicates: how many layouts into pairs, each with static masks of its own, there are: epoch e takes number
        e % duplicates. None is 10, as BERT's data were written ten times. Not read with dynamic masking of full
        sentences, which have one layout.
      mask_rate: share of the tokens that are predicted.
      max_predictions: the most tokens of a row that are predicted; None is round(mask_rate * sequence_length).
      short_sequence_rate: share of the pairs that are shorter than a row; None is 0.1. Not read without
        next_sentence.

    Held-out rows are laid out and masked once, whatever the seed.
    """

    TRAINED_SPECIALS: ClassVar[tuple[str, ...]] = ("<mask>",)

    next_sentence: bool = False
    sentences: str = "lines"
    masking: str = "dynamic"
    duplicates: int | None = None
    mask_rate: float = 0.15
    max_predictions: int | None = None
    short_sequence_rate: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_choice("data.sentences", self.sentences, RULES)
        check_choice("data.masking", self.masking, MASKINGS)
        if self.sentences == "ignore" and self.next_sentence:
            raise ConfigError("data.sentences = 'ignore' leaves no sentences for data.next_sentence")
        shortest = 5 if self.next_sentence else 3
        if self.sequence_length < shortest:
            raise ConfigError(f"data.sequence_length = {self.sequence_length} must be at least {shortest} here")
        if not 0.0 < self.mask_rate <= 1.0:
            raise ConfigError(f"data.mask_rate = {self.mask_rate} must be above 0 and at most 1")
        for name in ("duplicates", "max_predictions"):
            if getattr(self, name) is not None:
                check_positive(**{f"data.{name}": getattr(self, name)})
        if self.short_sequence_rate is not None and not 0.0 <= self.short_sequence_rate <= 1.0:
            raise ConfigError(f"data.short_sequence_rate = {self.short_sequence_rate} must be in [0, 1]")
        if self.short_sequence_rate is not None and not self.next_sentence:
            raise ConfigError("data.short_sequence_rate is never read without data.next_sentence")
        if self.duplicates is not None and self.masking == "dynamic" and not self.next_sentence:
            raise ConfigError("data.duplicates is never read with dynamic masking of full sentences")

    @property
    def example(self) -> dict[str, Any]:
        names = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
        lengths = dict.fromkeys(names, self.sequence_length) | {"masked_positions": self._num_predictions}
        if self.next_sentence:
            lengths |= {"token_types": self.sequence_length, "next_sentence_labels": None}
        return described(**lengths)

    @property
    def _sentence_rule(self) -> str:
        return self.sentences

    @property
    def _num_predictions(self) -> int:
        return self.max_predictions or max(1, round(self.mask_rate * self.sequence_length))

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        if _special(tokenizer, "mask_id") is None:
            raise ConfigError(
                f"the tokenizer {self.tokenizer!r} has no mask token, which masked text needs; take one that has, such "
                "as BERT's or RoBERTa's, or train one with data.tokenizer = 'train:VOCAB_SIZE'"
            )
        for names, what in ((("cls_id", "bos_id"), "begins"), (("sep_id", "eos_id"), "ends")):
            if _special(tokenizer, *names) is None:
                raise ConfigError(
                    f"the tokenizer {self.tokenizer!r} has no token that {what} a row of masked text "
                    f"({' or '.join(names)})"
                )

    def _check(self, module: Any, tokenizer: Tokenizer) -> None:
        super()._check(module, tokenizer)
        if self.next_sentence and getattr(module, "num_token_types", 2) < 2:
            raise ConfigError(
                f"model.num_token_types is {module.num_token_types}, but data.next_sentence gives tokens of two types"
            )

    def _train_rows(self, corpus: Corpus, tokenizer: Tokenizer, seed: list):
        import grain

        dynamic = self.masking == "dynamic"
        count = 1 if dynamic and not self.next_sentence else self.duplicates or 10
        if self.next_sentence:
            layouts = [self._layout(corpus, "train", tokenizer, [*seed, number]) for number in range(count)]
        else:
            layouts = [self._layout(corpus, "train", tokenizer, seed)] * count
        return grain.MapDataset.source(MaskedStream(layouts, self._masker(tokenizer), seed, dynamic))

    def _heldout_rows(self, corpus: Corpus, tokenizer: Tokenizer) -> Sequence:
        if not corpus.splits["heldout"].num_documents:
            return ()
        seed = ["evaluation"]
        return MaskedRows(self._layout(corpus, "heldout", tokenizer, seed), self._masker(tokenizer), seed)

    def _layout(self, corpus: Corpus, name: str, tokenizer: Tokenizer, seed: list) -> Sequence[Row]:
        """One layout of a split into rows, not masked yet."""
        split = corpus.splits[name]
        begin, end = _special(tokenizer, "cls_id", "bos_id"), _special(tokenizer, "sep_id", "eos_id")
        if not self.next_sentence:
            make = plan_contiguous if self.sentences == "ignore" else plan_full_sentences
            key = fingerprint("full_sentences", PLAN_VERSION, name, self.sequence_length)
            plan = corpus.kept(key, FullSentencesPlan, lambda: make(split, self.sequence_length))
            return FullSentenceRows(split, plan, begin, end)
        if split.num_documents < 2:
            raise DataError(
                f"data.next_sentence needs a second document to draw random sentences from, but there is only one "
                f"{name} document; set data.document_separator for a file of many"
                + ("" if name == "train" else ", data.eval_source, or a larger data.heldout_fraction")
            )
        rate = 0.1 if self.short_sequence_rate is None else self.short_sequence_rate
        key = fingerprint("sentence_pairs", PLAN_VERSION, name, self.sequence_length, rate, seed)
        plan = corpus.kept(key, SentencePairsPlan, lambda: plan_sentence_pairs(split, self.sequence_length, rate, seed))
        return SentencePairRows(split, plan, begin, end, self.sequence_length, seed)

    def _masker(self, tokenizer: Tokenizer) -> Masker:
        names = ("cls_id", "sep_id", "mask_id", "pad_id", "bos_id", "eos_id")
        specials = {_special(tokenizer, name) for name in names} - {None}
        return Masker(
            sequence_length=self.sequence_length,
            max_predictions=self._num_predictions,
            rate=self.mask_rate,
            mask_id=_special(tokenizer, "mask_id"),
            special_ids=tuple(sorted(specials)),
            vocab_size=tokenizer.vocab_size,
            pad_id=_special(tokenizer, "pad_id") or 0,
        )


def _special(tokenizer: Tokenizer, *names: str) -> int | None:
    """The first of these ids that the tokenizer has."""
    ids = (getattr(tokenizer, name, None) for name in names)
    return next((found for found in ids if found is not None), None)


class MaskedRows(Sequence):
    """Finite rows, each with one mask: row i's depends on (seed, i)."""

    def __init__(self, layout: Sequence[Row], masker: Masker, seed: Sequence):
        self._layout, self._masker, self._seed = layout, masker, list(seed)

    def __len__(self) -> int:
        return len(self._layout)

    def __getitem__(self, index: int) -> Row:
        return self._masker(self._layout[index], [*self._seed, index])


class MaskedStream:
    """Endless rows: epoch e is layout e % len(layouts), shuffled anew.

    Args:
      layouts: the layouts, which may differ in their numbers of rows.
      masker: hides tokens.
      seed: JSON-able values.
      dynamic: whether a mask depends on the index in the stream, or on (layout, row).
    """

    def __init__(self, layouts: Sequence[Sequence[Row]], masker: Masker, seed: Sequence, dynamic: bool):
        self._layouts, self._masker, self._seed, self._dynamic = layouts, masker, list(seed), dynamic
        self._ends = list(itertools.accumulate(len(layout) for layout in layouts))
        self._orders = [shuffled_indices(len(layout), [*seed, number]) for number, layout in enumerate(layouts)]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        index = int(index)
        cycle, place = divmod(index, self._ends[-1])
        number = bisect.bisect_right(self._ends, place)
        layout = self._layouts[number]
        row = int(self._orders[number][cycle * len(layout) + place - (self._ends[number] - len(layout))])
        mask = ["dynamic", index] if self._dynamic else ["static", number, row]
        return self._masker(layout[row], [*self._seed, *mask])
