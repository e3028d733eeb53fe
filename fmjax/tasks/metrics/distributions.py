"""How far two sets of vectors lie apart as samples of distributions, and how sure that is."""

from typing import NamedTuple

import numpy as np


class Distance(NamedTuple):
    """A distance, with what each vector has in it.

    Attributes:
      value: the distance.
      of_first, of_second: float64 [N] and [M], with means of 0: the distance's influence function at each vector, of
        the first set and the second. If a vector counted dt more, and the others of its set less, `value` would grow by
        dt times this, so the variance of a set's influences, divided by their number, is that of `value` by the draw of
        the set (the infinitesimal jackknife; no resample, whose equal vectors would be nearer than any drawn ones).
    """

    value: float
    of_first: np.ndarray
    of_second: np.ndarray


def frechet(first: np.ndarray, second: np.ndarray) -> Distance:
    """The Fréchet distance of the normal distributions that have the means and covariances of [N, D] and [M, D]:
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson & Landau 1982). It is too large for few vectors, the more so the
    larger D: compare it between equal numbers alone.
    """
    (x, mean, covariance), (y, other_mean, other_covariance) = map(_moments, (first, second))
    root, gradient = _product_root(covariance, other_covariance)
    _, other_gradient = _product_root(other_covariance, covariance)
    apart = mean - other_mean
    value = apart @ apart + np.trace(covariance) + np.trace(other_covariance) - 2 * root
    return Distance(float(value), _influence(x, apart, gradient), _influence(y, -apart, other_gradient))


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centred, mean, covariance without bias), float64."""
    vectors = np.asarray(vectors, np.float64)
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    return centred, mean, centred.T @ centred / (len(vectors) - 1)


def _product_root(covariance: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """(tr (C1 C2)^(1/2), half of its gradient by C1 less the identity's: I - C2^(1/2) (C2^(1/2) C1 C2^(1/2))^(-1/2)
    C2^(1/2)); where that product has no inverse, its pseudoinverse."""
    half = _power(other, 0.5)
    product = half @ covariance @ half
    values = np.maximum(np.linalg.eigvalsh(product), 0)
    return float(np.sqrt(values).sum()), np.eye(len(covariance)) - half @ _power(product, -0.5) @ half


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric matrix without negative eigenvalues; of those that are rounding, 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    is_there = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
    powers = np.where(is_there, np.where(is_there, values, 1.0) ** exponent, 0.0)
    return (vectors * powers) @ vectors.T


def _influence(centred: np.ndarray, apart: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    count = len(centred)
    squares = np.einsum("nd,nd->n", centred @ gradient, centred) * count / (count - 1)
    return 2 * centred @ apart + squares - squares.mean()


def kernel_distance(first: np.ndarray, second: np.ndarray) -> Distance:
    """The squared maximum mean discrepancy of [N, D] and [M, D], without bias, with the kernel (x.y / D + 1)^3
    (Binkowski et al. 2018, https://arxiv.org/abs/1801.01401, section 4), over all pairs. It may be negative."""
    x, y = (np.asarray(vectors, np.float64) for vectors in (first, second))
    within, across = _mean_kernels(x, x, skip_same=True), _mean_kernels(x, y)
    other_within, other_across = _mean_kernels(y, y, skip_same=True), _mean_kernels(y, x)
    value = within.mean() - 2 * across.mean() + other_within.mean()
    centred = lambda a, b: 2 * ((a - a.mean()) - (b - b.mean()))
    return Distance(float(value), centred(within, across), centred(other_within, other_across))


def _mean_kernels(x: np.ndarray, y: np.ndarray, skip_same: bool = False) -> np.ndarray:
    """For each of x [N, D] the mean kernel with all y [M, D], or, of the same vectors, with all but itself."""
    kernel = lambda products: (products / x.shape[1] + 1) ** 3
    size = max(1, 2**24 // len(y))
    sums = np.concatenate([kernel(x[i : i + size] @ y.T).sum(axis=1) for i in range(0, len(x), size)])
    if not skip_same:
        return sums / len(y)
    return (sums - kernel(np.einsum("nd,nd->n", x, x))) / (len(y) - 1)
