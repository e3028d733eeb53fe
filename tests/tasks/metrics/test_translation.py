"""BLEU and chrF from sums over documents are sacrebleu's of the corpus."""

import math
import sys

import numpy as np
import pytest
import sacrebleu

from fmjax.errors import InputError
from fmjax.tasks.metrics import translation

PREDICTIONS = ["Ein Mann läuft .", "Zwei Hunde spielen im tiefen Schnee.", "", "a", "Das ist ganz und gar falsch!"]
REFERENCES = [
    "Ein Mann läuft schnell.",
    "Zwei Hunde spielen im Schnee.",
    "Leer",
    "a b c",
    "Es regnet seit gestern Abend.",
]


def totals(statistics, pairs):
    rows = [statistics(*pair) for pair in pairs]
    return {name: math.fsum(row[name] for row in rows) for name in rows[0]}


@pytest.mark.parametrize("chosen", [range(5), [0], [0, 0, 1], [2], [3], [4], [2, 3], [1]])
def test_scores_of_sums_are_those_of_the_corpus(chosen):
    predictions, references = [PREDICTIONS[i] for i in chosen], [REFERENCES[i] for i in chosen]
    pairs = list(zip(predictions, references))
    want = sacrebleu.corpus_bleu(predictions, [references]).score
    assert translation.bleu(totals(translation.bleu_statistics, pairs)) == pytest.approx(want, abs=1e-9)
    want = sacrebleu.corpus_chrf(predictions, [references]).score
    assert translation.chrf(totals(translation.chrf_statistics, pairs)) == pytest.approx(want, abs=1e-9)


def test_scores_of_random_texts_and_of_empty_ones():
    rng = np.random.default_rng(0)
    for _ in range(20):
        texts = [["".join(rng.choice(list("ab c"), rng.integers(0, 9))) for _ in range(3)] for _ in range(2)]
        pairs = list(zip(*texts))
        found = translation.chrf(totals(translation.chrf_statistics, pairs))
        assert found == pytest.approx(sacrebleu.corpus_chrf(texts[0], [texts[1]]).score, abs=1e-9)
        found = translation.bleu(totals(translation.bleu_statistics, pairs))
        assert found == pytest.approx(sacrebleu.corpus_bleu(texts[0], [texts[1]]).score, abs=1e-9)
    same = totals(translation.bleu_statistics, [(REFERENCES[1],) * 2]) | translation.chrf_statistics("ab", "ab")
    assert translation.bleu(same) == pytest.approx(100) and translation.chrf(same) == pytest.approx(100)
    nothing = translation.bleu_statistics("", "") | translation.chrf_statistics("", "")
    assert translation.bleu(nothing) == translation.chrf(nothing) == 0


def test_signatures(monkeypatch):
    version = sacrebleu.__version__
    assert translation.bleu_signature() == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert "tok:intl" in translation.bleu_signature(tokenize="intl")
    assert translation.chrf_signature() == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    pair = "„Na, so was“, sagt er.", '"Na, so was", sagt er.'
    want = sacrebleu.corpus_bleu(pair[:1], [pair[1:]], tokenize="intl").score
    assert translation.sentence_bleu(*pair, tokenize="intl") == want
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(InputError, match="pip install 'fmjax"):
        translation.chrf_statistics("a", "a")
