"""Metrics of documents' statistics, and their standard errors by the bootstrap."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

REPLICATES = 1000
"""Bootstrap resamples of the documents behind each standard error."""


def table(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Statistics of documents as columns, float64 [documents]; a statistic that a document lacks is 0."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.asarray([row.get(name, 0.0) for row in rows], np.float64) for name in names}


def bootstrap(
    columns: Mapping[str, np.ndarray],
    reduce: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]],
    seed: int,
    clusters: Sequence[Hashable | None] | None = None,
    *,
    summable: bool = True,
) -> dict[str, float | None]:
    """Standard errors of metrics: their standard deviation over resamples of the documents with replacement.

    Documents of one cluster come and go together (the cluster bootstrap), so that ten questions on one passage do not
    count as ten independent ones. Raising the number of documents of a cluster does not lower the error by itself.

    Args:
      columns: statistics of each document, float64 [documents] by name.
      reduce: these to metrics.
      seed: of the resampling.
      clusters: of each document; None is a cluster of its own.
      summable: whether `reduce` looks at the columns' sums alone, which is quicker.

    Returns: metric to standard error; None where a resample gives no finite value or lacks the metric, as one may that
      misses all of a small subset, and for all where there is a single cluster.
    """
    groups = defaultdict(list)
    num_documents = len(next(iter(columns.values())))
    for index, cluster in enumerate(clusters or [None] * num_documents):
        groups[("alone", index) if cluster is None else ("together", cluster)].append(index)
    members = [np.asarray(group) for group in groups.values()]
    count = len(members)
    if count < 2:
        return dict.fromkeys(reduce(columns))
    if summable:
        # One matrix product a resample instead of one for each of the (hundreds of) statistics.
        owners = np.empty(num_documents, np.int64)
        for number, member in enumerate(members):
            owners[member] = number
        sums = np.stack([np.bincount(owners, column, minlength=count) for column in columns.values()], axis=1)
    rng = np.random.default_rng(seed)
    values = defaultdict(list)
    for _ in range(REPLICATES):
        picked = rng.integers(0, count, count)
        if summable:
            times = np.bincount(picked, minlength=count).astype(np.float64)
            with np.errstate(invalid="ignore"):  # a log-likelihood of minus infinity that was not picked
                totals = times @ sums
            sample = {name: np.asarray([total]) for name, total in zip(columns, totals)}
        else:
            where = np.concatenate([members[i] for i in picked])
            sample = {name: column[where] for name, column in columns.items()}
        for name, value in reduce(sample).items():
            values[name].append(value)
    return {
        name: float(np.std(sample, ddof=1)) if len(sample) == REPLICATES and np.isfinite(sample).all() else None
        for name, sample in values.items()
    }
