"""Gradient-boosted trees: features float32 [rows, features] -> class probabilities, by LightGBM.

Wide features are first projected: on the logits of a shrunken linear discriminant, from which the boosting starts, and
on principal components. Both come from one pass of Gram matrices. Knows no texts, layers or fusion.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import lightgbm
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, eigh
from sklearn.base import BaseEstimator, ClassifierMixin

from llmembed.errors import ClassifierError
from llmembed.heads import (
    Codes,
    Features,
    Validation,
    as_features,
    distinct,
    encode,
    fit_sharpness,
    hold_out,
    log_loss,
    read_head,
    softmax,
    write_head,
)

TREES_FILE = "head.txt"
FOLDS = 5
VALUES_PER_THREAD = 250_000
# Added to the diagonal of the within-class covariance of features of unit variance. Fewer rows ask for more of it: the
# out-of-fold loss chose 0.01 on 48,208 AG News rows and 1 on 7,108 MR rows, at 1,920 features.
SHRINKAGES = (0.01, 0.1, 1.0)
SKETCH_ROWS = 4096


@dataclass
class Moments:
    """Sums over rows from which means and covariances follow; adding and subtracting adds and removes rows.

    Attributes:
        gram: X'X [features, features]. sums: of the rows of each class [classes, features]. counts: rows [classes].
    """

    gram: NDArray[Any]
    sums: NDArray[Any]
    counts: NDArray[Any]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.sums + other.sums, self.counts + other.counts)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.gram - other.gram, self.sums - other.sums, self.counts - other.counts)


class GBDTHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """LightGBM on narrow features; on wide ones a linear discriminant, and trees that correct it.

    Args:
        learning_rate, leaves, rows_per_leaf, l2: as LightGBM's `learning_rate`, `num_leaves`, `min_data_in_leaf` and
            `lambda_l2`.
        rounds: the most boosting rounds; each makes one tree per class.
        patience: rounds without a better validation loss before it stops.
        project_above: number of features from which on they are projected.
        components: number of principal components that the trees see beside the discriminant's logits.
        sketch: number of features above which they are first summed into so many, with random signs: the Gram matrices
            and their solves grow with the square and the cube of the width.
        seed: fixes the folds, and the validation rows where none are given.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 0.1,
        leaves: int = 31,
        rows_per_leaf: int = 20,
        l2: float = 10.0,
        rounds: int = 300,
        patience: int = 15,
        project_above: int = 256,
        components: int = 64,
        sketch: int = 4096,
        seed: int = 0,
    ) -> None:
        self.learning_rate = learning_rate
        self.leaves = leaves
        self.rows_per_leaf = rows_per_leaf
        self.l2 = l2
        self.rounds = rounds
        self.patience = patience
        self.project_above = project_above
        self.components = components
        self.sketch = sketch
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: Validation | None = None) -> Self:
        """Fit on X [rows, features] and labels y [rows]; without `validation`, a tenth of the rows is held out for it.

        Raises:
            ClassifierError: NaN in X, or fewer than two classes.
        """
        features = as_features(X)
        self.classes_ = distinct(y)
        self.n_features_in_ = features.shape[1]
        codes = encode(y, self.classes_)
        if validation is None:
            train, held = hold_out(codes, seed=self.seed)
            features, codes, X_val, val_codes = features[train], codes[train], features[held], codes[held]
        else:
            X_val = as_features(validation[0], self.n_features_in_)
            val_codes = encode(validation[1], self.classes_)
        self.projection_: Features | None = None
        self.offset_: Features | None = None
        self.notes_: dict[str, Any] = {"projected": self.n_features_in_ > self.project_above}
        if self.notes_["projected"]:
            inputs, start = self._fit_projection(features, codes)
        else:
            inputs, start = features, None
        self._boost(inputs, start, codes, X_val, val_codes)
        self.sharpness_ = fit_sharpness(self._logits(X_val), val_codes)
        return self

    def _fit_projection(self, features: Features, codes: Codes) -> tuple[Features, Features]:
        """Fit the projection; give its values [rows, classes + components] and where boosting starts [rows, classes].

        The logits that the trees see are out of fold: each row's come from a discriminant that was fitted without it.
        In-fold ones would look far better than those of unseen rows, and the trees would trust them.
        """
        sketch = _draw_sketch(self.n_features_in_, self.sketch, seed=self.seed)
        narrow = features if sketch is None else sketch.apply(features)
        fold = np.random.default_rng(self.seed).permutation(len(narrow)) % FOLDS
        parts = [_moments(narrow[fold == k], codes[fold == k], len(self.classes_)) for k in range(FOLDS)]
        total = sum(parts[1:], start=parts[0])
        candidates = [_out_of_fold(narrow, fold, parts, total, shrinkage) for shrinkage in SHRINKAGES]
        factors = [fit_sharpness(logits, codes) for logits in candidates]
        losses = [log_loss(factor * logits, codes) for factor, logits in zip(factors, candidates, strict=True)]
        best = int(np.argmin(losses))
        weight, bias = _discriminant(total, SHRINKAGES[best])
        axes = _principal_axes(total.gram, self.components)
        projection = np.hstack([factors[best] * weight, axes]).astype(np.float32)
        self.projection_ = projection if sketch is None else sketch.unfold(projection)
        self.offset_ = np.append(factors[best] * bias, np.zeros(axes.shape[1])).astype(np.float32)
        self.notes_ |= {"shrinkage": SHRINKAGES[best], "out_of_fold_loss": losses[best]}
        logits = (factors[best] * candidates[best]).astype(np.float32)
        return np.hstack([logits, narrow @ projection[:, len(self.classes_) :]]), logits

    def _boost(self, inputs: Features, start: Features | None, codes: Codes, X_val: Features, val_codes: Codes) -> None:
        train = lightgbm.Dataset(inputs, codes, init_score=_as_scores(start))
        known = val_codes >= 0
        valid_sets, callbacks = [], []
        if known.any():
            val_inputs, val_start = self._inputs(X_val[known])
            valid_sets = [train.create_valid(val_inputs, val_codes[known], init_score=_as_scores(val_start))]
            callbacks = [lightgbm.early_stopping(self.patience, verbose=False)]
        booster = lightgbm.train(
            self._booster_params(inputs.size),
            train,
            self.rounds if valid_sets else 100,
            valid_sets,
            callbacks=callbacks,
        )
        trees = booster.best_iteration if valid_sets else booster.current_iteration()
        self.booster_ = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=trees))
        self.notes_ |= {"rounds": trees, "validation_rows": len(val_codes)}

    def _booster_params(self, values: int) -> dict[str, Any]:
        # No `use_quantized_grad`: with it LightGBM 4.7 died of "Check failed: best_split_info.right_count > 0" on MR.
        return {
            "objective": "multiclass",
            "num_class": len(self.classes_),
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.rows_per_leaf,
            # Without it the leaves of sure rows, whose Hessian is near 0, explode: R52 fell from 95 % to 19 %.
            "lambda_l2": self.l2,
            "max_bin": 63,
            # More threads than work wait for each other: beside a busy neighbour, 30 rounds on 80,000 values took 52 s
            # with 4 threads and under 5 s with one.
            "num_threads": max(1, min(os.cpu_count() or 1, values // VALUES_PER_THREAD)),
            "deterministic": True,
            "force_col_wise": True,
            "seed": self.seed,
            "verbose": -1,
        }

    def _inputs(self, features: Features) -> tuple[Features, Features | None]:
        """Give what the trees see [rows, inputs] and where the boosting starts [rows, classes]."""
        if self.projection_ is None or self.offset_ is None:
            return features, None
        inputs = features @ self.projection_ + self.offset_
        return inputs, inputs[:, : len(self.classes_)]

    def _logits(self, features: Features) -> Features:
        if not len(features):
            return np.zeros((0, len(self.classes_)), dtype=np.float32)
        inputs, start = self._inputs(features)
        raw = self.booster_.predict(inputs, raw_score=True)
        return np.asarray(raw if start is None else raw + start, dtype=np.float32)

    def predict_proba(self, X: ArrayLike) -> Features:
        """Give the class probabilities, float32 [rows, classes].

        Raises:
            ClassifierError: another number of features than in training, or NaN.
        """
        return softmax(self.sharpness_ * self._logits(as_features(X, self.n_features_in_)))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the most probable label of each row [rows]."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def save(self, folder: Path) -> None:
        """Write `head.json`, `head.safetensors` (the projection) and `head.txt` (LightGBM's own text) into `folder`."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.projection_ is not None and self.offset_ is not None:
            arrays = {"projection": self.projection_, "offset": self.offset_}
        write_head(folder, self, arrays, features=self.n_features_in_, sharpness=self.sharpness_)
        (folder / TREES_FILE).write_text(self.booster_.model_to_string(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a head that `save` wrote.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays, fitted = read_head(folder, cls)
        head.projection_, head.offset_ = arrays.get("projection"), arrays.get("offset")
        head.sharpness_ = fitted["sharpness"]
        try:
            head.booster_ = lightgbm.Booster(model_str=(folder / TREES_FILE).read_text(encoding="utf-8"))
        except (OSError, lightgbm.basic.LightGBMError) as error:
            raise ClassifierError(f"The head in {folder} is damaged ({error}). Train the classifier again.") from error
        return head


def _moments(features: Features, codes: Codes, classes: int) -> Moments:
    one_hot = np.eye(classes, dtype=np.float32)[codes]
    return Moments(features.T @ features, one_hot.T @ features, one_hot.sum(axis=0))


def _discriminant(moments: Moments, shrinkage: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fit linear discriminant analysis; give weights [features, classes] and biases [classes] of its logits.

    Hastie, Tibshirani, Friedman, Elements of Statistical Learning, eq. 4.10, with the covariance regularised by
    `shrinkage` times the identity (section 4.3.1).
    """
    counts = moments.counts
    means = moments.sums / np.maximum(counts, 1)[:, None]
    covariance = (moments.gram - (means.T * counts) @ means) / counts.sum()
    # Not under float32's resolution of the largest variance, or the Cholesky factor of outlying rows does not exist.
    covariance[np.diag_indices_from(covariance)] += max(shrinkage, 2e-6 * float(np.trace(covariance)))
    weight = cho_solve(cho_factor(covariance, overwrite_a=True), means.T)
    # Half a row more per class: a class may lack rows in a fold, and the logarithm of its share must stay finite.
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return weight, np.log(shares) - 0.5 * (means.T * weight).sum(axis=0)


def _out_of_fold(
    features: Features, fold: NDArray[Any], parts: list[Moments], total: Moments, shrinkage: float
) -> NDArray[Any]:
    logits = np.empty((len(features), len(total.counts)), dtype=np.float32)
    for k, part in enumerate(parts):
        weight, bias = _discriminant(total - part, shrinkage)
        logits[fold == k] = features[fold == k] @ weight + bias
    return logits


def _principal_axes(gram: NDArray[Any], components: int) -> NDArray[Any]:
    """Give the leading eigenvectors [features, components] of X'X: standardised features have no mean to subtract."""
    last = len(gram) - 1
    axes: NDArray[Any] = eigh(gram, subset_by_index=(max(0, last - components + 1), last))[1]
    return axes


@dataclass
class Sketch:
    """A count sketch (Clarkson & Woodruff 2013, section 2): feature i is added with `sign[i]` to sum `target[i]`."""

    target: NDArray[Any]
    sign: NDArray[Any]
    width: int

    @property
    def scale(self) -> np.float32:
        """Give the factor that brings sums of features of unit variance back to it; the shrinkages are meant for it."""
        return np.float32(np.sqrt(self.width / len(self.target)))

    def apply(self, features: Features) -> Features:
        """Give the sums, float32 [rows, width]."""
        order = np.argsort(self.target, kind="stable")
        first = np.searchsorted(self.target[order], np.arange(self.width))
        narrow = np.empty((len(features), self.width), dtype=np.float32)
        for start in range(0, len(features), SKETCH_ROWS):
            signed = features[start : start + SKETCH_ROWS, order] * (self.sign[order] * self.scale)
            np.add.reduceat(signed, first, axis=1, out=narrow[start : start + SKETCH_ROWS])
        return narrow

    def unfold(self, projection: Features) -> Features:
        """Give the projection [features, outputs] that does the sketch and `projection` [width, outputs] in one."""
        return np.asarray(projection[self.target] * (self.sign * self.scale)[:, None], dtype=np.float32)


def _draw_sketch(features: int, width: int, *, seed: int) -> Sketch | None:
    if features <= width:
        return None
    generator = np.random.default_rng(seed)
    signs = generator.choice(np.array([-1, 1], dtype=np.float32), size=features)
    return Sketch(generator.permutation(features) % width, signs, width)


def _as_scores(start: Features | None) -> NDArray[Any] | None:
    return None if start is None else start.astype(np.float64)
