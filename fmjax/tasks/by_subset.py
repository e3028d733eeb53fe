"""Metrics of each subset beside those of all documents, for test sets made of many (MMLU, BIG-Bench Hard)."""

import math
from typing import Any

from fmjax.tasks.protocol import Task


class BySubset(Task):
    """Mixed in before a task whose metrics are means: `METRIC/SUBSET` for each subset that has documents.

    The metric itself is the mean over all documents, in which a large subset weighs more, as in
    lm-evaluation-harness's groups. A subset of a few documents has no standard error (null): a resample of all
    documents may hold none of it.
    """

    def subset_of(self, document: Any) -> str:
        """The subset that a document belongs to."""
        raise NotImplementedError

    def example_group(self, document):
        return self.subset_of(document)

    def statistics(self, document, answers):
        found, subset = super().statistics(document, answers), self.subset_of(document)
        return found | {f"{name}/{subset}": found[name] for name in self.metrics} | {f"documents/{subset}": 1.0}

    def reduce(self, totals):
        subsets = sorted(name.partition("/")[2] for name in totals if name.startswith("documents/"))
        found = super().reduce(totals)
        if len(subsets) == 1:  # then it says nothing new
            return found
        for subset in subsets:
            count = totals[f"documents/{subset}"]
            found |= {f"{n}/{subset}": totals[f"{n}/{subset}"] / count if count else math.nan for n in self.metrics}
        return found
