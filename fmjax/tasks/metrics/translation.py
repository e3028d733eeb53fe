"""BLEU and chrF by sacrebleu, as sums over documents: a corpus's score is a function of the sums of its statistics.

BLEU: Papineni et al. 2002, https://aclanthology.org/P02-1040; chrF: Popović 2015, https://aclanthology.org/W15-3049;
sacrebleu and its signatures: Post 2018, https://arxiv.org/abs/1804.08771. Both scores are between 0 and 100.
"""

from collections.abc import Mapping

from fmjax.errors import InputError

CHARACTERS = 6
"""Character n-grams up to this length are counted by chrF."""

_BETA = 2  # recall weighs so many times as much as precision


def bleu_statistics(prediction: str, reference: str) -> dict[str, float]:
    """Matched and total n-grams, and both lengths in words. Raises InputError where sacrebleu is not installed."""
    score = _metrics().BLEU().corpus_score([prediction], [[reference]])
    found = {"bleu/predicted_words": score.sys_len, "bleu/reference_words": score.ref_len}
    for order, (matched, total) in enumerate(zip(score.counts, score.totals), start=1):
        found |= {f"bleu/matched_{order}": matched, f"bleu/total_{order}": total}
    return {name: float(value) for name, value in found.items()}


def bleu(totals: Mapping[str, float]) -> float:
    """Corpus BLEU of summed `bleu_statistics`, with sacrebleu's default smoothing (exp)."""
    compute = _metrics().BLEU.compute_bleu
    orders = range(1, _metrics().BLEU().max_ngram_order + 1)
    # As integers, which sacrebleu's own sums are.
    matched, counted = ([round(totals[f"bleu/{kind}_{order}"]) for order in orders] for kind in ("matched", "total"))
    lengths = round(totals["bleu/predicted_words"]), round(totals["bleu/reference_words"])
    return compute(matched, counted, *lengths, smooth_method="exp").score


def chrf_statistics(prediction: str, reference: str) -> dict[str, float]:
    """Character n-grams of the prediction, of the reference and of both, spaces left out."""
    _metrics()
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    found = {}
    ngrams = (extract_all_char_ngrams(text, CHARACTERS) for text in (prediction, reference))
    for order, (mine, wanted) in enumerate(zip(*ngrams), start=1):
        # A reference that is too short for n-grams of this length does not count them against the prediction.
        found[f"chrf/predicted_{order}"] = float(mine.total() if wanted else 0)
        found[f"chrf/reference_{order}"] = float(wanted.total())
        found[f"chrf/matched_{order}"] = float((mine & wanted).total())
    return found


def chrf(totals: Mapping[str, float]) -> float:
    """Corpus chrF2 of summed `chrf_statistics`: F of precision and recall averaged over the lengths that occur."""
    rates = []
    for order in range(1, CHARACTERS + 1):
        predicted, reference = totals[f"chrf/predicted_{order}"], totals[f"chrf/reference_{order}"]
        if predicted and reference:
            matched = totals[f"chrf/matched_{order}"]
            rates.append((matched / predicted, matched / reference))
    precision, recall = (sum(one) / len(rates) for one in zip(*rates)) if rates else (0.0, 0.0)
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)


def sentence_bleu(prediction: str, reference: str, **options) -> float:
    """BLEU of a corpus of one text; `options` are those of sacrebleu's `BLEU`."""
    return _metrics().BLEU(**options).corpus_score([prediction], [[reference]]).score


def bleu_signature(**options) -> str:
    """sacrebleu's signature, for `Task.details`; `options` are those of its `BLEU`."""
    return _signature(_metrics().BLEU(**options))


def chrf_signature() -> str:
    """sacrebleu's signature, for `Task.details`."""
    return _signature(_metrics().CHRF())


def _signature(metric) -> str:
    metric.corpus_score(["a"], [["a"]])  # a signature has the number of references
    return str(metric.get_signature())


def _metrics():
    try:
        import sacrebleu.metrics
    except ImportError:
        raise InputError("BLEU and chrF need the package sacrebleu: pip install 'fmjax[eval]'") from None
    return sacrebleu.metrics
