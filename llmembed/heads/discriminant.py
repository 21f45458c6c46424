"""Linear discriminant analysis of wide features, in two passes over rows that may lie on disk.

In: a matrix [rows, features] and codes [rows]. Out: a `Discriminant`, with the logits that it gives each row when it
was fitted without it. The `lda` head is made of it, and the `gbdt` head begins with it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh

from llmembed.heads import Codes, Features, Matrix, fit_sharpness, log_loss, row_blocks

FOLDS = 5
# Added to the diagonal of the within-class covariance of features of unit variance. Fewer rows ask for more of it: the
# out-of-fold loss chose 0.01 on 48,208 AG News rows and 1 on 7,108 MR rows, at 1,920 features.
SHRINKAGES = (0.01, 0.1, 1.0)


@dataclass
class Moments:
    """Sums over rows from which means and covariances follow; adding and subtracting adds and removes rows.

    Attributes:
        gram: X'X [features, features]. sums: of the rows of each class [classes, features]. counts: rows [classes].
    """

    gram: NDArray[Any]
    sums: NDArray[Any]
    counts: NDArray[Any]

    @classmethod
    def none(cls, features: int, classes: int) -> "Moments":
        """Give the moments of no rows."""
        return cls(np.zeros((features, features), np.float32), np.zeros((classes, features)), np.zeros(classes))

    def include(self, features: Features, codes: Codes) -> None:
        """Add rows [rows, features]."""
        one_hot = np.eye(len(self.counts), dtype=np.float32)[codes]
        self.gram += features.T @ features
        self.sums += one_hot.T @ features
        self.counts += one_hot.sum(axis=0)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.sums + other.sums, self.counts + other.counts)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.gram - other.gram, self.sums - other.sums, self.counts - other.counts)


@dataclass(frozen=True)
class Sketch:
    """Signed sums of features, as many as `width` (a count sketch: Clarkson & Woodruff 2013, section 2).

    Every `width` neighbouring features are turned by a random number of places and added to the sums with random signs.
    So they are read as they lie, and equal dimensions of neighbouring layers, which are alike, do not meet.

    Attributes:
        signs: 1 or -1 for each feature [features]. turns: for each `width` features. width: number of sums.
    """

    signs: Features
    turns: tuple[int, ...]
    width: int

    @property
    def scale(self) -> np.float32:
        """Give the factor that brings sums of features of unit variance back to it; the shrinkages are meant for it."""
        return np.float32(np.sqrt(self.width / len(self.signs)))

    def apply(self, features: Features) -> Features:
        """Give the sums, float32 [rows, width]."""
        sums = np.zeros((len(features), self.width), np.float32)
        factors = self.signs * self.scale
        for number, turn in enumerate(self.turns):
            part = slice(number * self.width, (number + 1) * self.width)
            signed = features[:, part] * factors[part]
            before = min(self.width - turn, signed.shape[1])
            sums[:, turn : turn + before] += signed[:, :before]
            sums[:, : signed.shape[1] - before] += signed[:, before:]
        return sums

    def unfold(self, projection: NDArray[Any]) -> Features:
        """Give the projection [features, outputs] that does the sketch and `projection` [width, outputs] in one."""
        turned = [np.roll(projection, -turn, axis=0) for turn in self.turns]
        unfolded = np.concatenate(turned)[: len(self.signs)]
        return np.asarray(unfolded * (self.signs * self.scale)[:, None], np.float32)


def draw_sketch(features: int, width: int, *, seed: int) -> Sketch | None:
    """Draw a sketch; None if the features are no more than `width` anyway."""
    if features <= width:
        return None
    draw = np.random.default_rng(seed)
    signs = draw.choice(np.array([-1, 1], np.float32), size=features)
    return Sketch(signs, tuple(map(int, draw.integers(0, width, -(-features // width)))), width)


@dataclass(frozen=True)
class Discriminant:
    """A shrunken linear discriminant.

    Attributes:
        weight, bias: float32 [features, classes] and [classes]; X @ weight + bias are calibrated logits.
        axes: the leading principal axes, float32 [features, components].
        logits: out of fold, float32 [rows, classes]: each row's come from a discriminant that was fitted without it.
        components: of the rows, X @ axes, float32 [rows, components].
        shrinkage: the one with the least out-of-fold loss.
        loss: that loss, in nats.
    """

    weight: Features
    bias: Features
    axes: Features
    logits: Features
    components: Features
    shrinkage: float
    loss: float


def fit_discriminant(
    X: Features | Matrix,
    codes: Codes,
    classes: int,
    *,
    sketch: int,
    components: int,
    prior: Features,
    seed: int,
) -> Discriminant:
    """Fit on X [rows, features]; more features than `sketch` are first summed into so many, with random signs.

    `prior` [classes] multiplies the shares of the classes. The Gram matrices and their solves grow with the square and
    the cube of the width.
    """
    sums = draw_sketch(X.shape[1], sketch, seed=seed)
    fold = np.random.default_rng(seed).permutation(len(codes)) % FOLDS
    parts = [Moments.none(min(X.shape[1], sketch), classes) for _ in range(FOLDS)]
    for rows, block in row_blocks(X):
        narrow = block if sums is None else sums.apply(block)
        for number, part in enumerate(parts):
            own = fold[rows] == number
            part.include(narrow[own], codes[rows][own])
    total = sum(parts[1:], start=parts[0])
    axes = _principal_axes(total.gram, components)
    candidates = [[_discriminant(total - part, shrinkage, prior) for shrinkage in SHRINKAGES] for part in parts]
    logits = np.empty((len(SHRINKAGES), len(codes), classes), np.float32)
    projected = np.empty((len(codes), axes.shape[1]), np.float32)
    for rows, block in row_blocks(X):
        narrow = block if sums is None else sums.apply(block)
        projected[rows] = narrow @ axes
        for number, fitted in enumerate(candidates):
            own = np.flatnonzero(fold[rows] == number)
            for index, (weight, bias) in enumerate(fitted):
                logits[index, rows.start + own] = narrow[own] @ weight + bias
    best, factor, loss = _choose(logits, codes)
    weight, bias = _discriminant(total, SHRINKAGES[best], prior)
    unfold = np.asarray if sums is None else sums.unfold
    return Discriminant(
        weight=unfold(factor * weight).astype(np.float32),
        bias=(factor * bias).astype(np.float32),
        axes=unfold(axes).astype(np.float32),
        logits=np.asarray(factor * logits[best], np.float32),
        components=projected,
        shrinkage=SHRINKAGES[best],
        loss=loss,
    )


def _choose(logits: NDArray[np.float32], codes: Codes) -> tuple[int, float, float]:
    factors = [fit_sharpness(each, codes) for each in logits]
    losses = [log_loss(factor * each, codes) for factor, each in zip(factors, logits, strict=True)]
    best = int(np.argmin(losses))
    return best, factors[best], losses[best]


def _discriminant(moments: Moments, shrinkage: float, prior: Features) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fit linear discriminant analysis; give weights [features, classes] and biases [classes] of its logits.

    Hastie, Tibshirani, Friedman, Elements of Statistical Learning, eq. 4.10, with the covariance regularised by
    `shrinkage` times the identity (section 4.3.1) and the shares of the classes multiplied by `prior` [classes].
    """
    counts = moments.counts
    means = (moments.sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    covariance = (moments.gram - (means.T * counts.astype(np.float32)) @ means) / np.float32(counts.sum())
    # Not under float32's resolution of the largest variance, or the Cholesky factor of outlying rows does not exist.
    covariance[np.diag_indices_from(covariance)] += max(shrinkage, 2e-6 * float(np.trace(covariance)))
    weight = cho_solve(cho_factor(covariance, overwrite_a=True, check_finite=False), means.T)
    # Half a row more per class: a class may lack rows in a fold, and the logarithm of its share must stay finite.
    shares = prior * (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return weight, np.log(shares) - 0.5 * (means.T * weight).sum(axis=0)


def _principal_axes(gram: NDArray[Any], components: int) -> NDArray[Any]:
    """Give the leading eigenvectors [features, components] of X'X: standardised features have no mean to subtract."""
    if not components:
        return np.zeros((len(gram), 0), np.float32)
    last = len(gram) - 1
    axes: NDArray[Any] = eigh(gram, subset_by_index=(max(0, last - components + 1), last))[1]
    return axes
