"""The base of all heads: classifiers to scikit-learn that check what comes in at the boundary, and trust it from there.

In: features as an array, or as a matrix whose rows lie on disk, and labels. Out: probabilities and labels. `fit` is the
same road for every head: validate, encode, weigh the classes, hold out, fit, calibrate. A head adds `_fit`, `_logits`,
and the arrays that are its own; it knows no labels, no calibration and no files.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from llmembed.errors import InputError
from llmembed.folds import hold_out
from llmembed.heads import Validation, head_name
from llmembed.heads.classes import ClassWeight, decide, encode, weigh_classes
from llmembed.heads.files import read_head, write_head
from llmembed.heads.parameters import Range, check_ranges
from llmembed.matrix import FloatArray, IntArray, Matrix, MatrixLike, select_rows
from llmembed.saved import Arrays, SavedFiles
from llmembed.uncertainty.calibration import Calibration, calibrate

# A value standardised over n rows is at most sqrt(n): the limit touches only values that training never saw, and keeps
# squares and their sums finite in float32.
LARGEST = 1e3
SEEDS = 2**32


@dataclass(frozen=True)
class TrainingRows:
    """What a head is fitted on, and what it may choose by.

    Attributes:
        X: float32 [rows, features].
        y: class indices, int64 [rows].
        groups: int64 [rows]; rows of one group belong together.
        class_weights: of a row of each class, float32 [classes].
        held_out: which rows choose and calibrate, int64; none where validation rows were given.
        X_val, y_val: the rows held out, or the validation rows; -1 for a class that no training row has.
    """

    X: FloatArray | Matrix
    y: IntArray
    groups: IntArray
    class_weights: FloatArray
    held_out: IntArray
    X_val: FloatArray | Matrix
    y_val: IntArray


@dataclass(frozen=True)
class Unseen:
    """Logits, float32 [rows, classes], of a fit that had not seen the rows, and the classes of these, int64 [rows]."""

    logits: FloatArray
    y: IntArray


class BaseHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier whose probabilities are the softmax of its calibrated logits.

    Probabilities state how often a class is right; class weights change the decision alone.

    Attributes:
        classes_: the labels [classes], sorted.
        n_features_in_: the number of features that it was fitted on.
        calibration_: what makes probabilities of the logits.
        class_weights_: how much the decision favours each class, float32 [classes]: 1 without a `class_weight`.
        fit_info_: what the fit chose by itself, as plain JSON values.
    """

    ranges: ClassVar[Mapping[str, Range]] = {}
    """What the numbers among its parameters may be, by name; a head states its own."""
    seed: int
    class_weight: ClassWeight
    classes_: NDArray[Any]
    n_features_in_: int
    calibration_: Calibration
    class_weights_: FloatArray
    fit_info_: dict[str, Any]

    def fit(
        self,
        X: MatrixLike,
        y: ArrayLike,
        *,
        validation: Validation | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit on X [rows, features] and labels y [rows]; `validation` (X, y) chooses and calibrates.

        Without it some rows are held out for that; rows of one of the `groups` [rows] together, as copies of a text
        must be.

        Raises:
            InputError: X, y or `validation` cannot be used: NaN in X, for instance, or fewer than two classes in y.
        """
        features, y_encoded, own_groups = self._check_training(X, y, groups)
        class_weights = weigh_classes(self.class_weight, y_encoded, self.classes_)
        held_out = self._hold_out(y_encoded, own_groups) if validation is None else np.zeros(0, np.int64)
        X_val, y_val = select_rows(features, held_out), y_encoded[held_out]
        if validation is not None:
            X_val, y_val = self._check_validation(validation)
        self.fit_info_ = {}
        unseen = self._fit(TrainingRows(features, y_encoded, own_groups, class_weights, held_out, X_val, y_val))
        self.fit_info_["validation_rows"] = len(unseen.y)
        self._calibrate(unseen, y_encoded, class_weights)
        return self

    def predict_proba(self, X: MatrixLike) -> FloatArray:
        """Return the class probabilities, float32 [rows, classes].

        Raises:
            InputError: another number of features than in training, or NaN.
        """
        check_is_fitted(self)
        return self.calibration_.apply(self._logits(self._check_features(X)))

    def predict(self, X: MatrixLike) -> NDArray[Any]:
        """Return the label of each row [rows]: the most probable one, or with class weights what they make of it."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[decide(probabilities, self.class_weights_)]
        return labels

    def save(self, folder: Path) -> None:
        """Write the files of the fitted head into `folder`."""
        write_head(folder, head_name(self), self, self._arrays())

    @classmethod
    def load(cls, files: SavedFiles) -> Self:
        """Make the head of which `save` wrote the files.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays = read_head(files, cls)
        head._restore(files, arrays)
        return head

    def _fit(self, rows: TrainingRows) -> Unseen:
        """Fit on checked rows, and return logits of rows that were not fitted on, by which the head is calibrated."""
        raise NotImplementedError

    def _logits(self, features: FloatArray | Matrix) -> FloatArray:
        """Return the logits of checked rows, float32 [rows, classes]."""
        raise NotImplementedError

    def _arrays(self) -> Arrays:
        """Return the fitted arrays by name."""
        raise NotImplementedError

    def _restore(self, files: SavedFiles, arrays: Arrays) -> None:
        """Take over the arrays that `_arrays` gave, once they are checked, as a ClassifierError says if they fail."""
        raise NotImplementedError

    def _hold_out(self, y_encoded: IntArray, groups: IntArray) -> IntArray:
        """Return which rows choose and calibrate where no validation rows are given: a tenth."""
        return hold_out(y_encoded, groups, seed=self.seed)[1]

    def _calibrate(self, unseen: Unseen, y_encoded: IntArray, class_weights: FloatArray) -> None:
        """Choose the calibration by rows that the logits had not seen; `y_encoded` are the classes of all rows.

        The logits of a head that was fitted with weights decide as they are: by what the weights came to, which for
        classes that are told apart easily is less than was asked for. On R52, `balanced` had 76 % macro-F1 so, and 68 %
        where the probabilities were multiplied by the weights asked for.
        """
        counts = np.bincount(y_encoded, minlength=len(self.classes_)).clip(min=1)
        shares = np.asarray(counts / counts.sum(), np.float32)
        self.calibration_ = calibrate(unseen.logits, unseen.y, shares, class_weights)
        offset = self.calibration_.offset
        favoured = np.exp(-offset) if self.class_weight is not None else np.ones_like(offset)
        self.class_weights_ = np.asarray(favoured / favoured.mean(), np.float32)

    def check_parameters(self) -> None:
        """Refuse parameters that no fit can work with, before it reads or allocates anything.

        Raises:
            InputError: the seed is none that every generator of random numbers takes, or another one is out of range.
            UsageError: the device that was asked for is not here.
        """
        check_ranges({"seed": Range(int, 0, SEEDS - 1), **self.ranges}, self.get_params(deep=False))

    def _check_training(
        self, X: MatrixLike, y: ArrayLike, groups: ArrayLike | None
    ) -> tuple[FloatArray | Matrix, IntArray, IntArray]:
        """Return the features, the classes as indices and the groups of the rows, and take note of the classes.

        Raises:
            InputError: as `_check_features`; or y is no column of labels, as long as X, with two classes or more; or
                the groups are no column of that length.
        """
        self.check_parameters()
        with _input_errors():
            labels = validate_data(self, y=y)
            check_classification_targets(labels)
            check_consistent_length(X, labels)
            own = np.arange(len(labels))
            if groups is not None:
                check_consistent_length(X, groups)
                own = np.unique(column_or_1d(groups), return_inverse=True)[1]
        features = self._check_features(X, reset=True)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise InputError(
                f"All {len(labels):,} training rows are of one class, {self.classes_.tolist()}; expected two or more."
            )
        return features, encode(labels, self.classes_), own

    def _check_validation(self, validation: Validation) -> tuple[FloatArray | Matrix, IntArray]:
        """Return the features and the classes as indices, -1 for a label that no training row has.

        Raises:
            InputError: as `_check_features`; or y is no column of labels, as long as X, with one that training has.
        """
        X, y = validation
        with _input_errors():
            labels = column_or_1d(y)
            check_consistent_length(X, labels)
        y_encoded = encode(labels, self.classes_)
        if not (y_encoded >= 0).any():
            raise InputError(
                f"None of the {len(y_encoded):,} validation rows has a label of the training rows: "
                f"{np.unique(labels).tolist()} against {self.classes_.tolist()}."
            )
        return self._check_features(X), y_encoded

    def _check_features(self, X: MatrixLike, *, reset: bool = False) -> FloatArray | Matrix:
        """Return an array as float32, limited to +-1000 so that no later square overflows; rows on disk as they are.

        Raises:
            InputError: not [rows, features]; NaN or infinity in an array; or, without `reset`, not as many features as
                in training.
        """
        with _input_errors():
            if isinstance(X, Matrix):
                matrix: Matrix = validate_data(self, X, reset=reset, skip_check_array=True)
                return matrix
            features: FloatArray = validate_data(
                self, X, reset=reset, dtype=np.float32, order="C", ensure_all_finite=False
            )
        # Negated, so that NaN fails it too; min and max need no second matrix, as abs would.
        if not (features.min() >= -LARGEST and features.max() <= LARGEST):
            unusable = np.count_nonzero(~np.isfinite(features).all(axis=1))
            if unusable:
                raise InputError(f"{unusable:,} rows of the features hold NaN or infinity, as float32.")
            features = features.clip(-LARGEST, LARGEST)
        return features


@contextmanager
def _input_errors() -> Iterator[None]:
    """Raise what scikit-learn's checks say as an error that the command line prints."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
