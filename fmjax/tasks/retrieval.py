"""Retrieval by embeddings: which of all candidates are nearest to a query."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from fmjax.errors import DataError
from fmjax.tasks.functions import embed
from fmjax.tasks.protocol import Apply, Task
from fmjax.tasks.reading import read_text


def best_rank(scores, gold: Sequence[int]) -> int:
    """The place, from 0, of the best of the right candidates `gold`; of equal scores the first candidate leads."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    return int(np.flatnonzero(np.isin(order, gold))[0])


def ranks(candidates, model, inputs: Sequence[tuple]) -> np.ndarray:
    """int [N]: `best_rank` of each (query, numbers of its right candidates) by cosine with `candidates` [M, D]."""
    queries = embed(model, [query for query, _ in inputs])
    # Rounded, so that equal texts tie whatever the order of the sums.
    scores = np.round(queries @ np.asarray(candidates).T, 5)
    return np.asarray([best_rank(row, gold) for row, (_, gold) in zip(scores, inputs)])


class Retrieval(Task):
    """A task whose documents are {"query": text or `Media`, "gold": numbers of its right candidates}.

    `recall@k`: whether any right candidate is among the k nearest by the cosine of `embed`, of all candidates whatever
    the number of queries.
    """

    uses = ("adapt", "embed")
    metrics = ("recall@1", "recall@5", "recall@10")

    def candidates(self, context) -> list:
        """All texts, or `Media`, that may be found."""
        raise NotImplementedError

    def adapt(self, model, context):
        index = embed(model, self.candidates(context))
        return dataclasses.replace(model, functions=model.functions | {"ranks": jax.tree_util.Partial(ranks, index)})

    def requests(self, document):
        return [Apply("ranks", (document["query"], tuple(document["gold"])))]

    def statistics(self, document, answers):
        return {name: float(answers[0] < int(name.partition("@")[2])) for name in self.metrics}


class Multi30kRetrieval(Retrieval):
    """The English caption of a German one (Elliott et al. 2016, https://aclanthology.org/W16-3210), among the 1,000 of
    the test set of 2016. Captions of equal text are all right."""

    name = "multi30k_retrieval"
    description = "English translation of a German caption by embeddings: recall@1, @5, @10"
    needs = "text_multi30k/test_2016_flickr.{de,en}.gz (no licence stated; from Flickr30k, research use)"

    def documents(self, context):
        targets, sources = self.candidates(context), self._lines(context, "de")
        if len(sources) != len(targets):
            raise DataError(
                f"text_multi30k: test_2016_flickr has {len(sources)} German and {len(targets)} English captions"
            )
        places = {}
        for number, text in enumerate(targets):
            places.setdefault(text, []).append(number)
        return [{"query": source, "gold": places[target]} for source, target in zip(sources, targets)]

    def candidates(self, context):
        return self._lines(context, "en")

    def _lines(self, context, language):
        path = context.file("text_multi30k", f"test_2016_flickr.{language}.gz", f"test_2016_flickr.{language}")
        return read_text(path).removesuffix("\n").split("\n")
