"""Calibration: logits of rows that a fit left out -> what makes the logits of a head state true probabilities.

Rows that count by their class make a head expect rare classes too often, by how much depends on how far it was fitted:
the weights are hardly seen in the logits of classes that are told apart easily (Byrd & Lipton 2019). So beside the
temperature (Guo et al. 2017, section 4.2) the rows left out choose a power of the shares of the classes, and one of
their weights. Knows no features and no labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmembed.matrix import FloatArray, IntArray

# Powers are drawn to what theory says as if by one row left out, so that a few rows do not choose extreme ones.
PULL = 1.0


@dataclass(frozen=True)
class Calibration:
    """softmax(logits / temperature + offset) are probabilities.

    Attributes:
        temperature: positive.
        offset: float32 [classes]. exp(-offset) is how much more than its true share the fit made each class count.
    """

    temperature: float
    offset: FloatArray

    def apply(self, logits: NDArray[np.floating]) -> FloatArray:
        """Return the probabilities of logits [rows, classes], float32 of the same shape; each row sums to 1."""
        return softmax(logits / np.float32(self.temperature) + self.offset)


def calibrate(
    logits: NDArray[np.floating], y_encoded: IntArray, shares: FloatArray, class_weights: FloatArray
) -> Calibration:
    """Choose temperature and offset by the cross-entropy of rows that were left out: logits and classes of [rows].

    `shares` and `class_weights` [classes] are those of the training rows. Rows of unknown class (-1) do not count. With
    no row to judge by, the logits are taken for those of the weighted classes.
    """
    # It takes 0.3 s to import, and a classifier that is loaded needs nothing of it.
    from scipy.optimize import minimize

    known = np.flatnonzero(y_encoded >= 0)
    directions = np.log(np.stack([shares, class_weights]).astype(np.float64))
    theory = np.array([0.0, -1.0])
    if not len(known):
        return Calibration(1.0, np.asarray(theory @ directions, np.float32))
    z, true = np.asarray(logits, np.float64)[known], y_encoded[known]
    # In units of their size, so that one step of the search suits all three.
    unit = max(float(z.std()), 1e-12)
    # Platt 1999, section 2.2: rows left out without an error would else ask for a temperature of 0.
    smoothing = 1 / (len(known) + 2)
    target = (1 - smoothing) * z[np.arange(len(known)), true] + smoothing * z.mean(axis=1)
    wanted = np.array([target.mean() / unit, *directions[:, true].mean(axis=1)])
    pull = PULL / len(known)

    def loss_and_slope(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = point[0] / unit * z + point[1:] @ directions
        highest = scores.max(axis=1)
        normaliser = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
        probabilities = softmax(scores).astype(np.float64)
        expected = np.array([(probabilities * z).sum(axis=1).mean() / unit, *directions @ probabilities.mean(axis=0)])
        away = point[1:] - theory
        loss = normaliser.mean() - point @ wanted + pull / 2 * away @ away
        return float(loss), expected - wanted + pull * np.array([0.0, *away])

    bounds = [(1e-2 * unit, 1e2 * unit), (None, None), (None, None)]
    found = minimize(loss_and_slope, [unit, *theory], jac=True, method="L-BFGS-B", bounds=bounds).x
    return Calibration(float(unit / found[0]), np.asarray(found[1:] @ directions, np.float32))


def softmax(logits: NDArray[np.floating]) -> FloatArray:
    """Return probabilities, float32 [rows, classes], for logits [rows, classes]."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: FloatArray = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def log_loss(logits: NDArray[np.floating], y_encoded: IntArray) -> float:
    """Return the mean cross-entropy of the rows whose class is known (not -1)."""
    known = np.flatnonzero(y_encoded >= 0)
    shifted = logits[known] - logits[known].max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(shifted, dtype=np.float64).sum(axis=1))
    return float(np.mean(normaliser - shifted[np.arange(len(known)), y_encoded[known]])) if len(known) else 0.0


def fit_temperature(logits: NDArray[np.floating], y_encoded: IntArray) -> float:
    """Return the temperature of the logits with the least cross-entropy (Guo et al. 2017, section 4.2).

    Rows of unknown class (-1) do not count. Targets are smoothed by 1 / (rows + 2), as in Platt 1999, section 2.2, so
    that validation rows without errors do not ask for a temperature of 0.
    """
    known = np.flatnonzero(y_encoded >= 0)
    if not len(known):
        return 1.0
    z = np.asarray(logits, dtype=np.float64)[known]
    smoothing = 1 / (len(known) + 2)
    target = (1 - smoothing) * z[np.arange(len(known)), y_encoded[known]] + smoothing * z.mean(axis=1)
    # The loss is convex in one over the temperature: bisect the zero of its slope, the expected minus the target logit.
    low, high = np.log(1e-2), np.log(1e2)
    for _ in range(24):
        middle = (low + high) / 2
        slope = float(np.mean((softmax(np.exp(middle) * z) * z).sum(axis=1) - target))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))
