"""Retrieval: recall as scikit-learn counts it, among all candidates whatever the limit."""

import numpy as np
import pytest

from fmjax.tasks.retrieval import best_rank
from fmjax.tasks.runner import run_tasks
from tests.tasks.short_texts import MODEL


def test_recall_counts_any_hit():
    from sklearn.metrics import top_k_accuracy_score

    scores = np.random.default_rng(0).random((30, 8))
    gold = np.arange(30) % 8
    ranks = np.array([best_rank(row, [g]) for row, g in zip(scores, gold)])
    for k in (1, 5):
        assert (ranks < k).mean() == pytest.approx(top_k_accuracy_score(gold, scores, k=k, labels=range(8)))
    assert best_rank([0.1, 0.5, 0.5, 0.2], [2]) == 1 and best_rank([0.1, 0.5, 0.5, 0.2], [0, 1]) == 0


def test_retrieval_ranks_among_all_candidates_whatever_the_limit(data):
    whole = run_tasks(MODEL, ["multi30k_retrieval"], data_dir=data)["multi30k_retrieval"]
    assert whole.metrics["recall@1"] == 1.0  # both sides are equal, and either of two equal captions is right
    first = run_tasks(MODEL, ["multi30k_retrieval"], data_dir=data, limit=1)["multi30k_retrieval"]
    assert first.samples[0]["answers"] == whole.samples[0]["answers"] and whole.samples[0]["document"]["gold"] == [0, 2]
