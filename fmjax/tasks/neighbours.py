"""Classification by the nearest training documents, whose votes count by how near they are: nothing is trained."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fmjax.inference.nearest import nearest
from fmjax.tasks.adaptation import vectors

COUNT, TEMPERATURE = 20, 0.07


def neighbour_logits(known, votes, model, inputs: Sequence[Any]) -> np.ndarray:
    """Float64 [N, C], the logarithms of the votes of the `COUNT` nearest by cosine, of which all together are 1.

    A neighbour's vote counts exp(cosine / TEMPERATURE) (Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4;
    Caron et al. 2021, https://arxiv.org/abs/2104.14294, appendix F.1, whose two numbers these are).

    Args:
      known: float32 [M, D], training documents' vectors, of length 1.
      votes: float32 [M, C], 1 at the class of each.
      inputs: texts or media.
    """
    places, cosines = nearest(np.asarray(known), vectors(model, inputs), min(COUNT, len(known)))
    weights = np.exp((cosines.astype(np.float64) - cosines.max(axis=1, keepdims=True)) / TEMPERATURE)
    found = np.einsum("nk,nkc->nc", weights, np.asarray(votes, np.float64)[places])
    with np.errstate(divide="ignore"):
        return np.log(found / weights.sum(axis=1, keepdims=True))


def by_neighbours(model, inputs: Sequence[Any], labels: Sequence[int], num_classes: int, seed: int):
    """The model with "class_logits" by neighbours; arguments as of `fmjax.tasks.adaptation.probe`."""
    known = vectors(model, inputs)
    known = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
    votes = np.eye(num_classes, dtype=np.float32)[np.asarray(labels)]
    function = jax.tree_util.Partial(neighbour_logits, known, votes)
    return dataclasses.replace(model, functions=model.functions | {"class_logits": function})
