"""Linear discriminant analysis of features as wide as those of an LLM, whose rows may lie on disk.

In: a matrix [rows, features] and codes [rows]. Out: a `Discriminant`, with the logits that it gives each row when it
was fitted without it. The `lda` head is made of it, and the `gbdt` head begins with it.

The covariance of 20,480 features would fill 1.7 GB, and as much again for every fold. It is never written down: the
equations of all folds and all strengths of the shrinkage are solved side by side by conjugate gradients, in a few
passes over the rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmembed.folds import deal_folds
from llmembed.heads import Codes, Features, Matrix
from llmembed.heads.axes import Axes, find_axes
from llmembed.heads.calibration import fit_sharpness, log_loss
from llmembed.heads.sweep import one_thread_each, sum_rows

FOLDS = 5
# To choose from. Fewer rows ask for more: the out-of-fold loss chose 0.01 on 48,208 AG News rows and 1 on 7,108 MR
# rows, at 1,920 features.
SHRINKAGES = (0.01, 0.1, 1.0)
# The search ends when two steps together lower the out-of-fold loss by less, in nats.
TOLERANCE = 1e-3
MOST_STEPS = 20
# Rows by which that is judged: every so-manieth, for the loss of all is needed but once.
JUDGED_ROWS = 20_000


@dataclass(frozen=True)
class Discriminant:
    """A shrunken linear discriminant.

    Attributes:
        weight, bias: float32 [features, classes] and [classes]; X @ weight + bias are calibrated logits.
        logits: out of fold, float32 [rows, classes]: each row's come from a discriminant that was fitted without it.
        axes: the principal axes of the features.
        notes: the shrinkage with the least out-of-fold loss, that loss in nats, and the steps that the search took.
    """

    weight: Features
    bias: Features
    logits: Features
    axes: Axes
    notes: dict[str, Any]


def fit_discriminant(
    X: Features | Matrix,
    codes: Codes,
    prior: Features,
    *,
    groups: Codes,
    shrinkages: tuple[float, ...] = SHRINKAGES,
    seed: int,
) -> Discriminant:
    """Fit on X [rows, features], standardised, and codes [rows]; the out-of-fold loss chooses one of the shrinkages.

    A shrinkage is added to the diagonal of the covariance within classes, whose mean is at most 1. `prior` [classes]
    multiplies the shares of the classes. Rows of one of the `groups` [rows] are left out together.
    Hastie, Tibshirani, Friedman, Elements of Statistical Learning, eq. 4.10, with the covariance regularised by the
    shrinkage times the identity (section 4.3.1).
    """
    with one_thread_each():
        return _fit(X, codes, prior, deal_folds(codes, groups, folds=FOLDS, seed=seed), shrinkages, seed)


def _fit(
    X: Features | Matrix, codes: Codes, prior: Features, fold: Codes, shrinkages: tuple[float, ...], seed: int
) -> Discriminant:
    axes = find_axes(X, seed=seed)
    search = _Search(X, codes, fold, axes, prior, shrinkages)
    judged = slice(None, None, -(-len(codes) // JUDGED_ROWS))
    losses = [np.inf]
    while len(losses) <= MOST_STEPS and (len(losses) < 4 or losses[-3] - losses[-1] >= TOLERANCE):
        search.step()
        losses.append(_choose(search.logits(judged), codes[judged])[2])
    logits = search.logits(slice(None))
    best, factor, loss = _choose(logits, codes)
    weight, bias = search.solution(best)
    return Discriminant(
        weight=factor * weight,
        bias=(factor * bias).astype(np.float32),
        logits=np.asarray(factor * logits[best], np.float32),
        axes=axes,
        notes={"shrinkage": shrinkages[best], "out_of_fold_loss": loss, "steps": len(losses) - 1},
    )


class _Search:
    """Conjugate gradients for (C + s) w = m: C the covariance within classes, m the mean of a class, s a shrinkage.

    The unknowns are [features, shrinkages, groups, classes]: group g leaves the rows of fold g out, the last one none.
    They are preconditioned by the axes (Nocedal & Wright, Numerical Optimization, algorithm 5.3).
    """

    def __init__(
        self,
        X: Features | Matrix,
        codes: Codes,
        fold: Codes,
        axes: Axes,
        prior: Features,
        shrinkages: tuple[float, ...],
    ) -> None:
        self._X, self._fold, self._axes = X, fold, axes
        classes, groups, width = len(prior), FOLDS + 1, X.shape[1]
        self._counts, self._means = _class_means(X, codes, fold, classes)
        # Half a row more per class: a class may lack rows in a fold, and the logarithm of its share must stay finite.
        shares = self._counts + 0.5
        self._log_prior = np.log(prior * shares / shares.sum(axis=1, keepdims=True))
        self._shape = (width, len(shrinkages), groups, classes)
        self._shrinkages = np.broadcast_to(np.array(shrinkages, np.float32)[:, None, None], self._shape[1:])
        self._weight = np.zeros(self._shape, np.float32)
        self._products = np.zeros((len(codes), len(shrinkages), classes), np.float32)
        self._residual = np.empty(self._shape, np.float32)
        self._residual[:] = self._means.transpose(2, 0, 1)[:, None]
        self._direction = self._precondition(self._residual)
        self._size = _dots(self._residual, self._direction)

    def step(self) -> None:
        """Take one step of all unknowns, in one pass over the rows."""
        change, products = self._multiply(self._direction)
        length = _divide(self._size, _dots(self._direction, change))
        self._weight += length * self._direction
        self._products += products * length[:, self._fold].transpose(1, 0, 2)
        self._residual -= length * change
        ahead = self._precondition(self._residual)
        size = _dots(self._residual, ahead)
        self._direction *= _divide(size, self._size)
        self._direction += ahead
        self._size = size

    def logits(self, rows: slice) -> Features:
        """Give the logits of rows that each group left out, float32 [shrinkages, rows, classes]."""
        bias = self._bias()[:, self._fold[rows]]
        return np.asarray(self._products[rows].transpose(1, 0, 2) + bias, np.float32)

    def solution(self, shrinkage: int) -> tuple[Features, Features]:
        """Give weight [features, classes] and bias [classes] of the group that leaves nothing out."""
        return np.ascontiguousarray(self._weight[:, shrinkage, -1]), self._bias()[shrinkage, -1]

    def _bias(self) -> Features:
        """Give the biases, [shrinkages, groups, classes]."""
        heights = np.einsum("gcp,psgc->sgc", self._means, self._weight, optimize=True)
        return np.asarray(self._log_prior - heights / 2, np.float32)

    def _multiply(self, columns: Features) -> tuple[Features, Features]:
        """Multiply by the covariance of each group plus its shrinkage; give X @ columns where they left the row out."""
        left_out = np.empty_like(self._products)
        flat = columns.reshape(len(columns), -1)

        def add(product: Features, rows: slice, block: Features) -> None:
            values = (block @ flat).reshape(-1, *self._shape[1:])
            own = np.arange(len(values)), slice(None), self._fold[rows]
            left_out[rows] = values[own]
            values[own] = 0
            product += block.T @ values.reshape(len(values), -1)

        product = sum_rows(self._X, flat.shape, add).reshape(self._shape)
        for group, (counts, means) in enumerate(zip(self._counts, self._means, strict=True)):
            between = means.T @ (counts[:, None] * (means @ columns[:, :, group].reshape(len(columns), -1)))
            product[:, :, group] -= between.reshape(product[:, :, group].shape)
            product[:, :, group] /= counts.sum()
        product += self._shrinkages * columns
        return product, left_out

    def _precondition(self, columns: Features) -> Features:
        shrinkages = self._shrinkages.reshape(1, -1)
        flat = self._axes.apply(lambda variances: 1 / (variances + shrinkages), columns.reshape(len(columns), -1))
        return flat.reshape(columns.shape)


def _class_means(X: Features | Matrix, codes: Codes, fold: Codes, classes: int) -> tuple[Features, Features]:
    """Give rows per class [groups, classes] and their means [groups, classes, features] of what each group holds."""
    cell = fold * classes + codes

    def add(sums: Features, rows: slice, block: Features) -> None:
        member = np.zeros((len(sums), len(block)), np.float32)
        member[cell[rows], np.arange(len(block))] = 1
        sums += member @ block

    sums = sum_rows(X, (FOLDS * classes, X.shape[1]), add)
    by_fold = sums.reshape(FOLDS, classes, -1)
    counts = np.bincount(cell, minlength=len(sums)).reshape(FOLDS, classes).astype(np.float32)
    held = np.append(counts.sum(axis=0) - counts, counts.sum(axis=0)[None], axis=0)
    totals = np.append(by_fold.sum(axis=0) - by_fold, by_fold.sum(axis=0)[None], axis=0)
    return held, totals / held.clip(min=1)[:, :, None]


def _choose(logits: Features, codes: Codes) -> tuple[int, float, float]:
    """Give the best shrinkage of logits [shrinkages, rows, classes], the factor that calibrates them, and the loss."""
    factors = [fit_sharpness(each, codes) for each in logits]
    losses = [log_loss(factor * each, codes) for factor, each in zip(factors, logits, strict=True)]
    best = int(np.argmin(losses))
    return best, factors[best], losses[best]


def _dots(left: Features, right: Features) -> Features:
    """Give the products of columns, [shrinkages, groups, classes]."""
    products: Features = np.einsum("psgc,psgc->sgc", left, right)
    return products


def _divide(dividend: Features, divisor: Features) -> Features:
    """Divide; 0 where both are: a class of which a group holds no row has nothing to solve."""
    return np.divide(dividend, divisor, out=np.zeros_like(dividend), where=divisor > 0)
