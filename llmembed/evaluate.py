"""Evaluation: true labels and class probabilities -> a Report. Knows no model and no data set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

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
        accuracy: share of rows whose most probable class is the true one.
        macro_f1: mean F1 of the classes that have test rows or were given to some, each counted alike.
        calibration_error: expected calibration error: the mean gap between confidence and accuracy over 15 bins of
            confidence, weighted by rows (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
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


def evaluate(truth: Sequence[str], probabilities: np.ndarray, classes: Sequence[str]) -> Report:
    """Judge probabilities [rows, classes] against the true labels [rows].

    A true label that is not among `classes` is an error in every row and gets its own line in the report.
    """
    guessed = np.asarray(classes)[probabilities.argmax(axis=1)]
    true = np.asarray(truth)
    right = guessed == true
    labels = [*classes, *sorted(set(truth) - set(classes))]
    scores = precision_recall_fscore_support(true, guessed, labels=labels, zero_division=0.0)
    per_class = tuple(
        ClassReport(label, _rounded(precision), _rounded(recall), _rounded(f1), int(rows))
        for label, precision, recall, f1, rows in zip(labels, *scores, strict=True)
    )
    confusion = confusion_matrix(true, guessed, labels=labels)
    return Report(
        rows=len(true),
        accuracy=_rounded(right.mean()),
        macro_f1=_rounded(scores[2][(confusion.sum(axis=0) + confusion.sum(axis=1)) > 0].mean()),
        calibration_error=_rounded(_calibration_error(probabilities.max(axis=1), right)),
        log_loss=_rounded(_log_loss(true, probabilities, classes)),
        per_class=per_class,
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, right - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(right))


def _log_loss(true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> float:
    column = {label: index for index, label in enumerate(classes)}
    columns = np.array([column.get(label, -1) for label in true])
    chosen = np.where(columns < 0, 0.0, probabilities[np.arange(len(true)), columns])
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def _rounded(value: float) -> float:
    return round(float(value), 6)
