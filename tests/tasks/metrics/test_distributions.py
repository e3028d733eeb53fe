"""Distances of sets of vectors: as scipy's matrix root and loops over all pairs have them, and how they spread."""

import numpy as np
import pytest
import scipy.linalg

from fmjax.tasks.metrics.distributions import frechet, kernel_distance
from fmjax.tasks.metrics.neighbourhoods import inside, nearest

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)), RNG.normal(size=(60, 4)) + 0.5


def test_the_frechet_distance_is_that_of_scipys_matrix_root_and_the_closed_form():
    c1, c2 = np.cov(X.T), np.cov(Y.T)
    apart = X.mean(0) - Y.mean(0)
    want = apart @ apart + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert frechet(X, Y).value == pytest.approx(want, rel=1e-9) == frechet(Y, X).value
    # Covariances that commute: the squared difference of deviations; moved by a vector: its square.
    assert frechet(X, 3 * X + 1).value == pytest.approx(4 * np.trace(c1) + np.sum((2 * X.mean(0) + 1) ** 2), rel=1e-9)
    assert frechet(X, X).value == pytest.approx(0, abs=1e-9)
    # Fewer vectors than numbers: there is no inverse, and a distance all the same.
    few, others = RNG.normal(size=(5, 8)), RNG.normal(size=(6, 8))
    root = scipy.linalg.sqrtm(np.cov(few.T) @ np.cov(others.T)).real
    want = np.sum((few.mean(0) - others.mean(0)) ** 2) + np.trace(np.cov(few.T) + np.cov(others.T) - 2 * root)
    assert frechet(few, others).value == pytest.approx(want, rel=1e-5)


def test_the_kernel_distance_is_a_loop_over_all_pairs():
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3
    within = lambda part: np.mean([kernel(a, b) for i, a in enumerate(part) for j, b in enumerate(part) if i != j])
    want = within(X) + within(Y) - 2 * np.mean([kernel(a, b) for a in X for b in Y])
    assert kernel_distance(X, Y).value == pytest.approx(want, rel=1e-9)
    # Without bias: of equal distributions the mean is 0.
    found = [kernel_distance(*RNG.normal(size=(2, 30, 3))).value for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20


@pytest.mark.parametrize("distance", [frechet, kernel_distance])
def test_influences_are_derivatives_and_say_how_a_distance_spreads(distance):
    found = distance(X, Y)
    assert found.of_first.shape == (50,) and found.of_second.shape == (60,)
    assert np.allclose([found.of_first.mean(), found.of_second.mean()], 0)
    draw = lambda: distance(RNG.normal(size=(200, 3)), 1.5 * RNG.normal(size=(150, 3)) + 0.3)
    draws = [draw() for _ in range(300)]
    spread = np.std([one.value for one in draws])
    told = np.mean([np.sqrt(one.of_first.var() / 200 + one.of_second.var() / 150) for one in draws])
    assert told == pytest.approx(spread, rel=0.2)


def test_a_frechet_distance_moves_by_a_vectors_influence():
    """Vectors that stand there twice, and so count more: to first order the distance moves as their influences say."""
    many = np.concatenate([np.repeat(X, 40, axis=0), X[:1]])
    found = frechet(many[:-1], Y)
    moved = frechet(many, Y).value - found.value
    assert moved == pytest.approx(found.of_first[0] / 2001, rel=0.02)


def test_manifolds_and_nearest_vectors_are_those_of_loops():
    k, distances = 3, lambda a, b: np.linalg.norm(a - b)
    radius = [sorted(distances(y, other) for other in Y)[k] for y in Y]
    want = [any(distances(x, y) <= r for y, r in zip(Y, radius)) for x in X]
    assert 0 < np.mean(want) < 1
    np.testing.assert_array_equal(inside(X, Y, k), want)
    assert inside(Y, Y, k).all()
    want = [min(np.sqrt(np.mean((x - y) ** 2)) for y in Y) for x in X]
    np.testing.assert_allclose(nearest(X, Y), want)
    assert (nearest(X[:3], X) == 0).all()
