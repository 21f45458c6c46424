"""Logistic regression: features float32 [rows, features] -> class probabilities, one linear map and a softmax.

The strength of the regularisation is chosen on validation rows, from strong to weak, each fit starting from the last.
Knows no texts, layers or fusion.
"""

import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from llmembed.heads import (
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


class LogisticHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Multinomial logistic regression with an L2 penalty.

    Args:
        inverse_penalties: the values of scikit-learn's `C` to try, from small (strong penalty) to large.
        max_iterations: limit of L-BFGS iterations per value.
        seed: fixes the validation rows where none are given; the fit itself draws nothing.
    """

    def __init__(
        self,
        *,
        inverse_penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0),
        max_iterations: int = 100,
        seed: int = 0,
    ) -> None:
        self.inverse_penalties = inverse_penalties
        self.max_iterations = max_iterations
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: Validation | None = None) -> Self:
        """Fit on X [rows, features] and labels y [rows].

        Without `validation`, a tenth of the rows chooses the penalty; then all rows are fitted with it.

        Raises:
            ClassifierError: NaN in X, or fewer than two classes.
        """
        features = as_features(X)
        self.classes_ = distinct(y)
        self.n_features_in_ = features.shape[1]
        codes = encode(y, self.classes_)
        if validation is not None:
            chosen = self._choose(features, codes, as_features(validation[0], features.shape[1]), validation[1])
        else:
            train, held = hold_out(codes, seed=self.seed)
            labels = self.classes_[codes[held]]
            chosen = self._choose(features[train], codes[train], features[held], labels)
            chosen = self._solve(features, codes, self.notes_["inverse_penalty"], start=chosen)
        self._keep(chosen)
        return self

    def _choose(self, features: Features, codes: NDArray[Any], X_val: Features, y_val: ArrayLike) -> LogisticRegression:
        """Give the fitted model with the least validation loss; note which, and how sharp its logits should be."""
        val_codes = encode(y_val, self.classes_)
        best, least, model = None, np.inf, None
        for inverse_penalty in self.inverse_penalties:
            model = self._solve(features, codes, inverse_penalty, start=model)
            self._keep(model)
            logits = self._logits(X_val)
            loss = log_loss(logits, val_codes)
            # The loss has one minimum along the path, and the weakest penalties take most of the time.
            if best is not None and loss >= least:
                break
            best, least = model, loss
            self.sharpness_ = fit_sharpness(logits, val_codes)
            self.notes_ = {"inverse_penalty": inverse_penalty, "validation_rows": len(val_codes)}
        return best

    def _solve(
        self, features: Features, codes: NDArray[Any], inverse_penalty: float, *, start: LogisticRegression | None
    ) -> LogisticRegression:
        model = LogisticRegression(C=inverse_penalty, max_iter=self.max_iterations, warm_start=True)
        if start is not None and len(start.classes_) == len(np.unique(codes)):
            model.coef_, model.intercept_ = start.coef_.copy(), start.intercept_.copy()
        with warnings.catch_warnings():
            # A fit that stops at the limit is an early-stopped one: validation judges it like any other.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(features, codes)

    def _keep(self, model: LogisticRegression) -> None:
        """Take the weights over as [classes, features], also for two classes, where scikit-learn holds one row."""
        if len(self.classes_) == 2:
            self.weight_ = np.vstack([np.zeros_like(model.coef_), model.coef_]).astype(np.float32)
            self.bias_ = np.append(0, model.intercept_).astype(np.float32)
        else:
            self.weight_ = model.coef_.astype(np.float32)
            self.bias_ = model.intercept_.astype(np.float32)

    def _logits(self, features: Features) -> Features:
        return features @ self.weight_.T + self.bias_

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
        """Write `head.json` and `head.safetensors` into `folder`."""
        arrays = {"weight": self.weight_, "bias": self.bias_}
        write_head(folder, self, arrays, features=self.n_features_in_, sharpness=self.sharpness_)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a head that `save` wrote.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays, fitted = read_head(folder, cls)
        # JSON has no tuples; equal parameters must stay equal.
        head.inverse_penalties = tuple(head.inverse_penalties)
        head.weight_, head.bias_ = arrays["weight"], arrays["bias"]
        head.sharpness_ = fitted["sharpness"]
        return head
