"""How far a classifier's confidence is from its accuracy."""

from collections.abc import Mapping, Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.protocol import Task

NUM_BINS = 15  # Guo et al. 2017


def expected_calibration_error(confidences, correct, *, equal_mass: bool = False, num_bins: int = NUM_BINS) -> float:
    """Mean over predictions of |accuracy - mean confidence| of their bin (Naeini et al. 2015; Guo et al. 2017).

    Args:
      confidences: [N], each prediction's probability, in [0, 1].
      correct: [N], whether it is right.
      equal_mass: bins hold equally many predictions, in the order of their confidence (of equal ones the wrong come
        first, so that the result does not depend on the order given; the first bins hold one more where N does not
        divide). Otherwise bins are equally wide and hold their upper edge, the first one its lower edge too.
      num_bins: of either kind.

    Raises: InputError where there are no predictions.
    """
    if not len(confidences):
        raise InputError("a calibration error is of predictions, and there are none")
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    order = np.lexsort((correct, confidences))
    confidences, correct = confidences[order], correct[order]
    if equal_mass:
        bins = [part for part in np.array_split(np.arange(len(order)), num_bins) if part.size]
    else:
        edges = np.linspace(0, 1, num_bins + 1)[1:-1]
        place = np.searchsorted(edges, confidences)
        bins = [np.flatnonzero(place == number) for number in np.unique(place)]
    return float(sum(abs(correct[b].sum() - confidences[b].sum()) for b in bins) / len(order))


def softmax(logits: Sequence[float]) -> np.ndarray:
    """Probabilities, float64. Where all logits are -inf they are equal: nothing tells the options apart.

    Raises: InputError for NaN.
    """
    logits = np.asarray(logits, np.float64)
    if np.isnan(logits).any():
        raise InputError(f"the logits of the options are {logits.tolist()}; NaN has no probability: look at the model")
    highest = logits.max()
    shifted = np.exp(logits - highest) if highest > -np.inf else np.ones_like(logits)
    return shifted / shifted.sum()


class Calibrated(Task):
    """A classification task, with calibration errors beside the means of its other statistics.

    `ece` and `ece_mass`: `expected_calibration_error` in 15 bins of equal width and of equal mass, of the statistics
    "confidence" and "acc". They are no function of sums over documents.
    """

    def reduce_documents(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        means = super().reduce_documents(statistics)
        found = statistics["confidence"], statistics["acc"]
        return means | {
            "ece": expected_calibration_error(*found),
            "ece_mass": expected_calibration_error(*found, equal_mass=True),
        }

    def reduce(self, totals):
        own = [name for name in self.metrics if name not in ("ece", "ece_mass")]
        return {name: totals[name] / totals["documents"] for name in own}
