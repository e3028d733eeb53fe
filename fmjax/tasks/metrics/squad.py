"""Exact match and F1 of short answers, as SQuAD's evaluation script counts them (https://arxiv.org/abs/1606.05250)."""

import collections
import re
import string
from collections.abc import Sequence


def normalize(text: str) -> str:
    """Small letters; no ASCII punctuation; none of the words a, an, the; single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 where the prediction is one of the right answers, both normalised. No right answer at all is ""."""
    return float(any(normalize(prediction) == normalize(gold) for gold in golds or [""]))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """F1 of the words that prediction and right answer share, of the best right answer. No right answer is "".

    Where either has no words left, F1 is whether both have none. Text that is written without spaces, such as Chinese,
    is one word for each part between spaces.
    """
    return max(_f1(normalize(prediction).split(), normalize(gold).split()) for gold in golds or [""])


def _f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = (collections.Counter(prediction) & collections.Counter(gold)).total()
    return 2 * common / (len(prediction) + len(gold))
