"""The nearest of many vectors by cosine, exactly: by scikit-learn, or faster by Faiss, `pip install -e '.[search]'`.

Which of them is the caller's choice; neither stands in for the other.
"""

import importlib.util

import numpy as np

from fmjax.errors import InputError
from fmjax.layers.checks import check_choice

NEIGHBOURS = ("sklearn", "faiss")


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int, neighbours: str = "sklearn"):
    """(places int [Q, count] in `vectors`, cosines float32 [Q, count], of six decimals), nearest first.

    Args:
      vectors: float32 [N, D], of length 1.
      queries: float [Q, D], of any length but 0.
      count: how many, at most N.
      neighbours: "sklearn": `sklearn.neighbors.NearestNeighbors(algorithm="brute")`; "faiss": `faiss.IndexFlatIP`.

    Raises InputError for queries of another size or without a direction, and where Faiss is not installed.
    """
    check_choice("neighbours", neighbours, NEIGHBOURS)
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise InputError(f"queries are vectors [number, {vectors.shape[1]}] as those of the index, got {queries.shape}")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    if not np.all(lengths > 0):  # NaN among them
        raise InputError(f"query {int(np.argmin(lengths[:, 0] > 0))} has a vector without direction: 0, or not finite")
    queries = queries / lengths
    if neighbours == "faiss":
        check_installed(neighbours)
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        places = index.search(queries, count)[1]
    else:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=count, algorithm="brute", metric="cosine").fit(vectors)
        places = index.kneighbors(queries, return_distance=False)
    scores = np.einsum("qd,qkd->qk", queries.astype(np.float64), vectors[places].astype(np.float64))
    return places, np.round(scores, 6).astype(np.float32)


def check_installed(neighbours: str) -> None:
    """Raises InputError where the library is missing, saying how to install it."""
    if neighbours == "faiss" and importlib.util.find_spec("faiss") is None:
        raise InputError(
            "neighbours = 'faiss' needs Faiss: pip install -e '.[search]', or choose 'sklearn', which is as exact"
        )
