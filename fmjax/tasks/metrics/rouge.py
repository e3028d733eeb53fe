"""ROUGE (Lin 2004, https://aclanthology.org/W04-1013) by the library rouge-score: F-measures times 100."""

import re
from collections.abc import Sequence
from typing import Any

from fmjax.errors import InputError


def rouge(prediction: str, reference: str, variants: Sequence[str], *, use_stemmer: bool) -> dict[str, float]:
    """F-measures times 100 by variant ("rouge1", "rouge2", "rougeL", "rougeLsum").

    rougeLsum takes each line for a sentence (`lines` makes them so), rougeL the whole text for one.

    Raises: InputError where rouge-score is not installed.
    """
    scorer = _library().rouge_scorer.RougeScorer(list(variants), use_stemmer=use_stemmer)
    return {name: 100 * score.fmeasure for name, score in scorer.score(reference, prediction).items()}


def lines(text: str) -> str:
    """A sentence a line: a line ends after ., ! or ? before a space."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def details(use_stemmer: bool, sentences: str) -> dict[str, Any]:
    """What ROUGE's names leave open, for `Task.details`; `sentences` says how rougeLsum's are told apart."""
    import importlib.metadata

    _library()
    return {
        "library": f"rouge-score {importlib.metadata.version('rouge-score')}",
        "use_stemmer": use_stemmer,
        "score": "F-measure * 100",
        "rougeLsum_sentences": sentences,
    }


def _library():
    try:
        import rouge_score.rouge_scorer
    except ImportError:
        raise InputError("ROUGE needs the package rouge-score: pip install 'fmjax[eval]'") from None
    return rouge_score
