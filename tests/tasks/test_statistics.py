"""Standard errors by the bootstrap: of clusters as the closed form has them, and none where a metric may be missing."""

import math

import numpy as np
import pytest

from fmjax.tasks import statistics


def test_a_metric_that_a_resample_may_lack_has_no_standard_error():
    columns = {"rare": np.asarray([1.0] + [0.0] * 9), "value": np.arange(10.0)}

    def reduce(found):
        rare = {"rare": 7.0} if found["rare"].sum() else {}
        return {"value": found["value"].sum()} | rare

    errors = statistics.bootstrap(columns, reduce, 0)
    assert errors["rare"] is None and errors["value"] > 0


def test_bootstrap_of_clusters_is_the_closed_form():
    """Ten copies of each value in one cluster are worth one value: the error is that of the clusters' means."""
    values = np.random.default_rng(0).normal(size=300)
    columns = {"x": np.repeat(values, 10), "documents": np.ones(3000)}

    def mean(table):
        return {"mean": table["x"].sum() / table["documents"].sum()}

    clusters = [i // 10 for i in range(3000)]
    together = statistics.bootstrap(columns, mean, 0, clusters)["mean"]
    assert together == pytest.approx(values.std() / math.sqrt(300), rel=0.1)
    assert together == pytest.approx(statistics.bootstrap(columns, mean, 0, clusters, summable=False)["mean"], rel=1e-6)
    assert statistics.bootstrap(columns, mean, 0)["mean"] == pytest.approx(together / math.sqrt(10), rel=0.1)
    assert statistics.bootstrap(columns, mean, 0, [0] * 3000) == {"mean": None}
    once = iter([{"rare": 1.0}])
    assert statistics.bootstrap(columns, lambda table: mean(table) | next(once, {}), 0, clusters)["rare"] is None
