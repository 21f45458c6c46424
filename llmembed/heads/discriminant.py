"""Linear discriminant analysis of features as wide as those of an LLM, whose rows may lie on disk.

In: a matrix [rows, features] and y [rows]. Out: a `Discriminant`, with the logits that it gives each row when it
was fitted without it. The `lda` head is made of it, and the `gbdt` head begins with it.

The covariance of 20,480 features would fill 1.7 GB, and as much again for every fold. It is never written down: the
equations of all folds and all strengths of the shrinkage are solved side by side by conjugate gradients, in a few
passes over the rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmembed.folds import deal_folds
from llmembed.heads.principal_axes import Axes, find_axes
from llmembed.matrix import FloatArray, IntArray, Matrix, sum_blocks
from llmembed.parallel import one_blas_thread
from llmembed.uncertainty.calibration import fit_temperature, log_loss

SHRINKAGE_FOLDS = 5
# To choose from. Fewer rows ask for more: the out-of-fold loss chose 0.01 on 48,208 AG News rows and 1 on 7,108 MR
# rows, at 1,920 features.
SHRINKAGES = (0.01, 0.1, 1.0)
# The search ends when two steps together lower the out-of-fold cross-entropy by less.
LEAST_GAIN = 1e-3
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
        info: the shrinkage with the least out-of-fold cross-entropy, that value, and the steps that the search took.
    """

    weight: FloatArray
    bias: FloatArray
    logits: FloatArray
    axes: Axes
    info: dict[str, Any]


def fit_discriminant(
    X: FloatArray | Matrix,
    y: IntArray,
    prior: FloatArray,
    *,
    groups: IntArray,
    shrinkages: tuple[float, ...] = SHRINKAGES,
    seed: int,
) -> Discriminant:
    """Fit on X [rows, features], standardised, and y [rows]; the out-of-fold loss chooses one of the shrinkages.

    A shrinkage is added to the diagonal of the covariance within classes, whose mean is at most 1. `prior` [classes]
    multiplies the shares of the classes. Rows of one of the `groups` [rows] are left out together.
    Hastie, Tibshirani, Friedman, Elements of Statistical Learning, eq. 4.10, with the covariance regularised by the
    shrinkage times the identity (section 4.3.1).
    """
    with one_blas_thread():
        return _fit(X, y, prior, deal_folds(y, groups, folds=SHRINKAGE_FOLDS, seed=seed), shrinkages, seed)


def _fit(
    X: FloatArray | Matrix, y: IntArray, prior: FloatArray, fold: IntArray, shrinkages: tuple[float, ...], seed: int
) -> Discriminant:
    axes = find_axes(X, seed=seed)
    search = _Search(X, y, fold, axes, prior, shrinkages)
    judged = slice(None, None, -(-len(y) // JUDGED_ROWS))
    losses = [np.inf]
    while len(losses) <= MOST_STEPS and (len(losses) < 4 or losses[-3] - losses[-1] >= LEAST_GAIN):
        search.step()
        losses.append(_choose(search.logits(judged), y[judged])[2])
    logits = search.logits(slice(None))
    best, temperature, loss = _choose(logits, y)
    weight, bias = search.solution(best)
    return Discriminant(
        weight=np.asarray(weight / temperature, np.float32),
        bias=np.asarray(bias / temperature, np.float32),
        logits=np.asarray(logits[best] / temperature, np.float32),
        axes=axes,
        info={"shrinkage": shrinkages[best], "out_of_fold_loss": loss, "steps": len(losses) - 1},
    )


class _Search:
    """Conjugate gradients for (C + s) w = m: C the covariance within classes, m the mean of a class, s a shrinkage.

    The unknowns are [features, shrinkages, groups, classes]: group g leaves the rows of fold g out, the last one none.
    They are preconditioned by the axes (Nocedal & Wright, Numerical Optimization, algorithm 5.3).
    """

    def __init__(
        self,
        X: FloatArray | Matrix,
        y: IntArray,
        fold: IntArray,
        axes: Axes,
        prior: FloatArray,
        shrinkages: tuple[float, ...],
    ) -> None:
        self._X, self._fold, self._axes = X, fold, axes
        classes, groups, width = len(prior), SHRINKAGE_FOLDS + 1, X.shape[1]
        self._counts, self._means = _class_means(X, y, fold, classes)
        # Half a row more per class: a class may lack rows in a fold, and the logarithm of its share must stay finite.
        shares = self._counts + 0.5
        self._log_prior = np.log(prior * shares / shares.sum(axis=1, keepdims=True))
        self._shape = (width, len(shrinkages), groups, classes)
        self._shrinkages = np.broadcast_to(np.array(shrinkages, np.float32)[:, None, None], self._shape[1:])
        self._weight = np.zeros(self._shape, np.float32)
        self._products = np.zeros((len(y), len(shrinkages), classes), np.float32)
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

    def logits(self, rows: slice) -> FloatArray:
        """Return the logits of rows that each group left out, float32 [shrinkages, rows, classes]."""
        bias = self._bias()[:, self._fold[rows]]
        return np.asarray(self._products[rows].transpose(1, 0, 2) + bias, np.float32)

    def solution(self, shrinkage: int) -> tuple[FloatArray, FloatArray]:
        """Return weight [features, classes] and bias [classes] of the group that leaves nothing out."""
        return np.ascontiguousarray(self._weight[:, shrinkage, -1]), self._bias()[shrinkage, -1]

    def _bias(self) -> FloatArray:
        """Return the biases, [shrinkages, groups, classes]."""
        heights = np.einsum("gcp,psgc->sgc", self._means, self._weight, optimize=True)
        return np.asarray(self._log_prior - heights / 2, np.float32)

    def _multiply(self, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Multiply by the covariance of each group plus its shrinkage; give X @ columns where they left the row out."""
        left_out = np.empty_like(self._products)
        flat = columns.reshape(len(columns), -1)

        def add(product: FloatArray, rows: slice, block: FloatArray) -> None:
            values = (block @ flat).reshape(-1, *self._shape[1:])
            own = np.arange(len(values)), slice(None), self._fold[rows]
            left_out[rows] = values[own]
            values[own] = 0
            product += block.T @ values.reshape(len(values), -1)

        product = sum_blocks(self._X, flat.shape, add).reshape(self._shape)
        for group, (counts, means) in enumerate(zip(self._counts, self._means, strict=True)):
            between = means.T @ (counts[:, None] * (means @ columns[:, :, group].reshape(len(columns), -1)))
            product[:, :, group] -= between.reshape(product[:, :, group].shape)
            product[:, :, group] /= counts.sum()
        product += self._shrinkages * columns
        return product, left_out

    def _precondition(self, columns: FloatArray) -> FloatArray:
        shrinkages = self._shrinkages.reshape(1, -1)
        flat = self._axes.apply(lambda variances: 1 / (variances + shrinkages), columns.reshape(len(columns), -1))
        return flat.reshape(columns.shape)


def _class_means(X: FloatArray | Matrix, y: IntArray, fold: IntArray, classes: int) -> tuple[FloatArray, FloatArray]:
    """Return rows per class [groups, classes] and their means [groups, classes, features] of what each group holds."""
    cell = fold * classes + y

    def add(sums: FloatArray, rows: slice, block: FloatArray) -> None:
        member = np.zeros((len(sums), len(block)), np.float32)
        member[cell[rows], np.arange(len(block))] = 1
        sums += member @ block

    sums = sum_blocks(X, (SHRINKAGE_FOLDS * classes, X.shape[1]), add)
    by_fold = sums.reshape(SHRINKAGE_FOLDS, classes, -1)
    counts = np.bincount(cell, minlength=len(sums)).reshape(SHRINKAGE_FOLDS, classes).astype(np.float32)
    held = np.append(counts.sum(axis=0) - counts, counts.sum(axis=0)[None], axis=0)
    totals = np.append(by_fold.sum(axis=0) - by_fold, by_fold.sum(axis=0)[None], axis=0)
    return held, totals / held.clip(min=1)[:, :, None]


def _choose(logits: FloatArray, y: IntArray) -> tuple[int, float, float]:
    """Return the best shrinkage of logits [shrinkages, rows, classes], the temperature of its logits, and the loss."""
    temperatures = [fit_temperature(each, y) for each in logits]
    losses = [log_loss(each / temperature, y) for temperature, each in zip(temperatures, logits, strict=True)]
    best = int(np.argmin(losses))
    return best, temperatures[best], losses[best]


def _dots(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the products of columns, [shrinkages, groups, classes]."""
    products: FloatArray = np.einsum("psgc,psgc->sgc", left, right)
    return products


def _divide(dividend: FloatArray, divisor: FloatArray) -> FloatArray:
    """Divide; 0 where both are: a class of which a group holds no row has nothing to solve."""
    return np.divide(dividend, divisor, out=np.zeros_like(dividend), where=divisor > 0)
