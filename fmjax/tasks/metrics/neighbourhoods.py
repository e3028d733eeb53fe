"""Which vectors lie near others: within the manifold that those span, and how far from the nearest."""

from collections.abc import Iterator

import numpy as np


def inside(points: np.ndarray, manifold: np.ndarray, k: int) -> np.ndarray:
    """Whether each of points [N, D] lies no farther from some vector of manifold [M, D] than that vector's k-th nearest
    other one, bool [N] (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991, equation 1).

    Over made points in the manifold of real ones the mean is precision, over real ones in that of made ones recall.
    """
    points, manifold = (np.asarray(vectors, np.float64) for vectors in (points, manifold))
    # Each vector's own distance, 0, is the smallest.
    radii = np.concatenate([np.partition(part, k, axis=1)[:, k] for _, part in _squares(manifold, manifold)])
    return np.concatenate([(part <= radii).any(axis=1) for _, part in _squares(points, manifold)])


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference of each of points [N, D] to the nearest of others [M, D], float64 [N]."""
    points, others = (np.asarray(vectors, np.float64) for vectors in (points, others))
    found = np.concatenate([part.argmin(axis=1) for _, part in _squares(points, others)])
    return np.sqrt(((points - others[found]) ** 2).mean(axis=1))


def _squares(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, squared distances [rows, M]) of x [N, D] to y [M, D], as many rows at a time as memory is for. Those
    of a vector to itself are 0."""
    lengths, size = np.einsum("md,md->m", y, y), max(1, 2**24 // len(y))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        found = np.einsum("nd,nd->n", part, part)[:, None] + lengths - 2 * part @ y.T
        if x is y:
            found[np.arange(len(part)), start + np.arange(len(part))] = 0
        yield start, np.maximum(found, 0)
