"""What the heads are to scikit-learn: classifiers that check what comes in at the door, and trust it from there on.

In: features as an array, or as a matrix whose rows lie on disk, and labels. Out: float32 features and codes, which a
head is fitted on; probabilities and labels, which it predicts. A head adds `fit` and `_logits`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from llmembed.errors import InputError
from llmembed.heads import (
    LARGEST,
    ClassWeight,
    Codes,
    Features,
    Matrix,
    Rows,
    Validation,
    decide,
    encode,
    softmax,
    weigh_classes,
)
from llmembed.heads.calibration import calibrate

SEEDS = 2**32


class Estimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier whose probabilities are the softmax of its calibrated logits.

    Probabilities state how often a class is right; class weights change the decision alone.

    Attributes:
        classes_: the labels [classes], sorted.
        n_features_in_: the number of features that it was fitted on.
        sharpness_: the factor on the logits that calibrates the probabilities.
        offset_: what is added to them, float32 [classes], so that classes are expected as often as they occur.
        class_weights_: how much the decision favours each class, float32 [classes]: 1 without a `class_weight`.
    """

    seed: int
    classes_: NDArray[Any]
    n_features_in_: int
    sharpness_: float
    offset_: Features
    class_weights_: Features

    def predict_proba(self, X: Rows) -> Features:
        """Give the class probabilities, float32 [rows, classes].

        Raises:
            InputError: another number of features than in training, or NaN.
        """
        check_is_fitted(self)
        return softmax(self.sharpness_ * self._logits(self._check_features(X)) + self.offset_)

    def predict(self, X: Rows) -> NDArray[Any]:
        """Give the label of each row [rows]: the most probable one, or with class weights what they make of it."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[decide(probabilities, self.class_weights_)]
        return labels

    def _calibrate(self, logits: Features, codes: Codes, training: Codes, class_weight: ClassWeight) -> None:
        """Choose sharpness and offset by rows that were left out; `training` are the codes of those that were not.

        The logits of a head that was fitted with weights decide as they are: by what the weights came to, which for
        classes that are told apart easily is less than was asked for. On R52, `balanced` had 76 % macro-F1 so, and 68 %
        where the probabilities were multiplied by the weights asked for.
        """
        counts = np.bincount(training, minlength=len(self.classes_)).clip(min=1)
        weights = weigh_classes(class_weight, training, self.classes_)
        found = calibrate(logits, codes, np.asarray(counts / counts.sum(), np.float32), weights)
        self.sharpness_, self.offset_ = found.sharpness, found.offset
        favoured = np.exp(-self.offset_) if class_weight is not None else np.ones_like(self.offset_)
        self.class_weights_ = np.asarray(favoured / favoured.mean(), np.float32)

    def _logits(self, features: Features | Matrix) -> Features:
        raise NotImplementedError

    def check_parameters(self) -> None:
        """Refuse parameters that no fit can work with, before it reads or allocates anything.

        Raises:
            InputError: the seed is none that every generator of random numbers takes.
            UsageError: the device that was asked for is not here.
        """
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < SEEDS:
            raise InputError(f"seed is {self.seed!r}; expected a whole number from 0 to {SEEDS - 1}.")

    def _check_training(
        self, X: Rows, y: ArrayLike, groups: ArrayLike | None
    ) -> tuple[Features | Matrix, Codes, Codes]:
        """Give the features, the codes of the labels and the groups of the rows, and take note of the classes.

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

    def _check_validation(self, validation: Validation) -> tuple[Features | Matrix, Codes]:
        """Give the features and the codes of the labels, -1 for a label that no training row has.

        Raises:
            InputError: as `_check_features`; or y is no column of labels, as long as X, with one that training has.
        """
        X, y = validation
        with _input_errors():
            labels = column_or_1d(y)
            check_consistent_length(X, labels)
        codes = encode(labels, self.classes_)
        if not (codes >= 0).any():
            raise InputError(
                f"None of the {len(codes):,} validation rows has a label of the training rows: "
                f"{np.unique(labels).tolist()} against {self.classes_.tolist()}."
            )
        return self._check_features(X), codes

    def _check_features(self, X: Rows, *, reset: bool = False) -> Features | Matrix:
        """Give an array as float32, limited to +-1000 so that no later square overflows; rows on disk as they are.

        Raises:
            InputError: not [rows, features]; NaN or infinity in an array; or, without `reset`, not as many features as
                in training.
        """
        with _input_errors():
            if isinstance(X, Matrix):
                matrix: Matrix = validate_data(self, X, reset=reset, skip_check_array=True)
                return matrix
            features: Features = validate_data(
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
