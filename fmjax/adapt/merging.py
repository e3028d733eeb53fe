"""Several models of one architecture into one, without training: averages, task vectors, SLERP, TIES.

Pure functions on flat dicts of arrays by name. What they compute is computed in float32 and comes back in the dtype of
the first model; integers must agree.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fmjax.errors import InputError

Arrays = Mapping[str, np.ndarray]
ALIKE = 0.9995
"""Cosine of two arrays from which SLERP is their mean: the angle between them cannot be divided by any more."""


def average(models: Sequence[Arrays], weights: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """Σ w_i θ_i / Σ w_i (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482); weights: one a model; None: equal."""
    weights = _weights(weights, len(models))
    total = sum(weights)
    if not total:
        raise InputError(f"weights {list(weights)} add up to 0, and an average is divided by their sum")
    return _each(models, lambda *arrays: sum(w / total * x for w, x in zip(weights, arrays)))


def task_arithmetic(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """θ_0 + Σ w_i (θ_i - θ_0) (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089); a negative weight takes a task
    away. weights: one a model; None: all 1."""
    weights = _weights(weights, len(models))
    return _each([base, *models], lambda b, *arrays: b + sum(w * (x - b) for w, x in zip(weights, arrays)))


def slerp(first: Arrays, second: Arrays, t: float, stacked: Callable[[str], bool] = lambda name: False) -> dict:
    """From `first` (t = 0) to `second` (t = 1) along the arc between them (Shoemake 1985), an array at a time:
    (sin((1 - t) ω) x + sin(t ω) y) / sin ω, with ω the angle between x and y; the mean by t where they are alike.

    stacked: whether an array of this name is one of several layers along its first axis, which each have their arc.
    """

    def one(x, y):
        sizes = np.linalg.norm(x), np.linalg.norm(y)
        cosine = float(np.vdot(x, y) / (sizes[0] * sizes[1])) if all(sizes) else 1.0
        if abs(cosine) > ALIKE:
            return (1 - t) * x + t * y
        angle = np.arccos(cosine)
        return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)

    check_alike([first, second])
    found = {}
    for name in first:
        layers = (lambda x, y: np.stack([one(*pair) for pair in zip(x, y)])) if stacked(name) else one
        found[name] = _one(name, [first, second], layers)
    return found


def ties(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float] | None = None, density: float = 0.2,
    scale: float = 1.0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708, algorithm 1): θ_0 + scale * τ.

    Of each task vector θ_i - θ_0 the `density` of largest absolute values stay, counted over all arrays together. The
    sign of a number is that of its sum over models, + where that is 0; τ is the mean of those that stayed and have this
    sign, each times its model's weight, and 0 where none has.

    Raises InputError for a density that is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise InputError(f"density = {density} must be above 0 and at most 1: the part of each task vector that stays")
    weights = _weights(weights, len(models))
    check_alike([base, *models])
    names = [name for name in base if np.issubdtype(_comparable(base[name]).dtype, np.floating)]
    vector = lambda model, name: _comparable(model[name]) - _comparable(base[name])
    edges = []
    for model in models:
        sizes = np.concatenate([np.abs(vector(model, name)).reshape(-1) for name in names])
        count = max(1, int(density * sizes.size))
        edges.append(np.partition(sizes, sizes.size - count)[sizes.size - count])

    def one(name):
        kept = [vector(model, name) for model in models]
        kept = np.stack([np.where(np.abs(x) >= edge, x, 0) for x, edge in zip(kept, edges)])
        agrees = np.sign(kept) == np.where(kept.sum(0) >= 0, 1, -1)
        total = sum(weight * x for weight, x in zip(weights, kept * agrees))
        return _comparable(base[name]) + scale * total / np.maximum(agrees.sum(0), 1)

    return {name: one(name).astype(x.dtype) if name in names else np.asarray(x) for name, x in base.items()}


def check_alike(models: Sequence[Arrays], called: Sequence[str] = ()) -> None:
    """Raises InputError naming the first array that a model lacks, or has in another shape; `called` are the models'
    names."""
    called = called or [f"model {number}" for number in range(1, len(models) + 1)]
    for name in dict.fromkeys(name for model in models for name in model):
        shapes = {one: np.shape(model[name]) if name in model else None for one, model in zip(called, models)}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{shape or 'no such array'} in {one}" for one, shape in shapes.items())
            raise InputError(f"models that are merged must have the same arrays; {name!r} is {listed}")


def _weights(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    weights = [1.0] * count if weights is None else weights
    if len(weights) != count:
        raise InputError(f"{len(weights)} weights for {count} models; give one a model")
    return weights


def _comparable(x) -> np.ndarray:
    """In float32 where it is of floats of fewer bits, which numpy does not know."""
    x = np.asarray(x)
    return x if np.issubdtype(x.dtype, np.integer) or x.dtype == bool else x.astype(np.float32)


def _each(models: Sequence[Arrays], function) -> dict[str, np.ndarray]:
    check_alike(models)
    return {name: _one(name, models, function) for name in models[0]}


def _one(name: str, models: Sequence[Arrays], function) -> np.ndarray:
    first = np.asarray(models[0][name])
    arrays = [_comparable(model[name]) for model in models]
    if np.issubdtype(arrays[0].dtype, np.floating):
        return function(*arrays).astype(first.dtype)
    if not all(np.array_equal(arrays[0], x) for x in arrays):
        raise InputError(f"{name!r} holds integers, which differ and cannot be merged")
    return first
