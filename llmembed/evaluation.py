"""Evaluation: true classes, class probabilities and decisions -> a Report. Knows no model and no data set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from llmembed.matrix import IntArray

# Bins of the calibration error, as in Guo et al. 2017.
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassReport:
    """Precision, recall and F1 of one class, each in 0 ... 1, and its number of true rows."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True)
class Report:
    """How good probabilities are; equal input gives an equal report.

    Attributes:
        rows: rows judged.
        accuracy: share of rows that were given their true class.
        macro_f1: mean F1 of the classes that have test rows or were given to some, each counted alike.
        calibration_error: expected calibration error: the mean gap between the probability of the class given and
            accuracy over 15 bins of that probability, weighted by rows (Guo et al. 2017, "On Calibration of Modern
            Neural Networks", eq. 3).
        log_loss: mean negative log probability of the true class, in nats; rows of an unknown class count 1e-12.
        per_class: one entry per class, in the order of `confusion`.
        confusion: rows of true class i that were given class j, [classes, classes].
    """

    rows: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    log_loss: float
    per_class: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...]


def evaluate(truth: IntArray, probabilities: np.ndarray, predicted: IntArray, labels: Sequence[str]) -> Report:
    """Judge predicted classes [rows], and probabilities [rows, classes], against the true classes [rows].

    `labels` name the classes and, behind them, true labels that are none of them: their rows are errors, and each that
    occurs gets its own line in the report.
    """
    correct = predicted == truth
    classes = probabilities.shape[1]
    listed = [*range(classes), *np.unique(truth[truth >= classes]).tolist()]
    scores = precision_recall_fscore_support(truth, predicted, labels=listed, zero_division=0.0)
    per_class = tuple(
        ClassReport(labels[index], _rounded(precision), _rounded(recall), _rounded(f1), int(rows))
        for index, precision, recall, f1, rows in zip(listed, *scores, strict=True)
    )
    confusion = confusion_matrix(truth, predicted, labels=listed)
    confidence = probabilities[np.arange(len(truth)), predicted]
    return Report(
        rows=len(truth),
        accuracy=_rounded(correct.mean()),
        macro_f1=_rounded(scores[2][(confusion.sum(axis=0) + confusion.sum(axis=1)) > 0].mean()),
        calibration_error=_rounded(_calibration_error(confidence, correct)),
        log_loss=_rounded(_log_loss(truth, probabilities)),
        per_class=per_class,
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, correct - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(correct))


def _log_loss(truth: IntArray, probabilities: np.ndarray) -> float:
    known = truth < probabilities.shape[1]
    chosen = np.where(known, probabilities[np.arange(len(truth)), np.where(known, truth, 0)], 0.0)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def _rounded(value: float) -> float:
    return round(float(value), 6)
