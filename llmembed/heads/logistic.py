"""Logistic regression: features float32 [rows, features] -> class probabilities, one linear map and a softmax.

L-BFGS in coordinates in which the features are uncorrelated, where it needs few steps. The strength of the
regularisation is chosen on held-out rows, from strong to weak, each fit starting from the last.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from llmembed.heads import (
    ClassWeight,
    Codes,
    Features,
    Matrix,
    Rows,
    Validation,
    fit_sharpness,
    hold_out,
    log_loss,
    map_rows,
    read_head,
    row_blocks,
    softmax,
    weigh_classes,
    write_head,
)
from llmembed.heads.discriminant import Sketch, draw_sketch
from llmembed.heads.estimator import Estimator

# 16 MB in float32: a block is multiplied twice while it is in the processor's cache or close to it.
BLOCK_VALUES = 2**22


class LogisticHead(Estimator):
    """Multinomial logistic regression with an L2 penalty.

    Args:
        inverse_penalties: the values to try of what scikit-learn calls `C`, from small (strong penalty) to large.
        max_iterations: limit of L-BFGS steps per value.
        tolerance: it has converged when a step lowers the mean loss by less, in nats; `notes_` says if it did not.
        sketch: number of features above which they are first summed into so many, with random signs.
        class_weight: `balanced` lets every class count alike, `sqrt` half of the way to it, None every row; a dict has
            weights by label.
        seed: fixes the signs, and the validation rows where none are given.
    """

    def __init__(
        self,
        *,
        inverse_penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iterations: int = 100,
        tolerance: float = 1e-5,
        sketch: int = 4096,
        class_weight: ClassWeight = None,
        seed: int = 0,
    ) -> None:
        self.inverse_penalties = inverse_penalties
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.sketch = sketch
        self.class_weight = class_weight
        self.seed = seed

    def fit(self, X: Rows, y: ArrayLike, *, validation: Validation | None = None) -> Self:
        """Fit on X [rows, features] and labels y [rows].

        Without `validation`, a tenth of the rows chooses the penalty; then all rows are fitted with it.

        Raises:
            InputError: X, y or `validation` cannot be used: NaN in X, for instance, or fewer than two classes in y.
        """
        features, codes = self._check_training(X, y)
        sketch = draw_sketch(self.n_features_in_, self.sketch, seed=self.seed)
        narrow = _narrow(features, sketch)
        weights = weigh_classes(self.class_weight, codes, self.classes_)[codes]
        if validation is not None:
            X_val, val_codes = self._check_validation(validation)
            chosen = self._choose(narrow, codes, weights, _narrow(X_val, sketch), val_codes)
        else:
            held = hold_out(codes, seed=self.seed)[1]
            fitted = weights.copy()
            # Left out by weight: to copy the other rows would double the memory.
            fitted[held] = 0
            chosen = self._choose(narrow, codes, fitted, narrow[held], codes[held])
            chosen = self._problem(narrow, codes, weights).solve(self.notes_["inverse_penalty"], start=chosen)
        self.notes_ |= {"iterations": chosen.iterations, "converged": chosen.converged}
        self.weight_ = chosen.weight if sketch is None else sketch.unfold(chosen.weight)
        self.bias_ = chosen.bias
        return self

    def _choose(
        self, narrow: Features, codes: Codes, weights: Features, X_val: Features, val_codes: Codes
    ) -> "_Solution":
        """Give the solution with the least validation loss; note which, and how sharp its logits should be."""
        problem, best, least, solution = self._problem(narrow, codes, weights), None, np.inf, None
        for inverse_penalty in self.inverse_penalties:
            solution = problem.solve(inverse_penalty, start=solution)
            logits = map_rows(X_val, solution.logits, len(self.classes_))
            loss = log_loss(logits, val_codes)
            # The loss has one minimum along the path, and the weakest penalties take most of the time.
            if best is not None and loss >= least:
                break
            best, least = solution, loss
            self.sharpness_ = fit_sharpness(logits, val_codes)
            self.notes_: dict[str, Any] = {
                "inverse_penalty": inverse_penalty,
                "validation_rows": len(val_codes),
                "sketched": self.n_features_in_ > self.sketch,
            }
        assert best is not None
        return best

    def _problem(self, narrow: Features, codes: Codes, weights: Features) -> "_Problem":
        return _Problem(narrow, codes, weights, len(self.classes_), self.max_iterations, self.tolerance)

    def _logits(self, features: Features | Matrix) -> Features:
        return map_rows(features, lambda block: block @ self.weight_ + self.bias_, len(self.classes_))

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


@dataclass(frozen=True)
class _Solution:
    """weight float32 [features, classes], bias float32 [classes], and how the search for them ended."""

    weight: Features
    bias: Features
    iterations: int
    converged: bool

    def logits(self, features: Features) -> Features:
        return features.astype(np.float32, copy=False) @ self.weight + self.bias


class _Problem:
    """Minimise the weighted mean cross-entropy of softmax(X W + b) plus |W|² / (2 C rows).

    With L Lᵀ = X'X h / rows + 1 / (C rows), h = (1 - 1/K) / K, which is the Hessian where all K classes are equally
    probable, L-BFGS searches V = Lᵀ W: there the Hessian is close to the identity.
    """

    def __init__(
        self, X: Features, codes: Codes, weights: Features, classes: int, max_iterations: int, tolerance: float
    ) -> None:
        self._X, self._codes, self._weights, self._classes = X, codes, weights / weights.sum(), classes
        self._max_iterations, self._tolerance = max_iterations, tolerance
        self._gram = np.zeros((X.shape[1], X.shape[1]), np.float32)
        for rows, block in row_blocks(X):
            values = _float32(block) * np.sqrt(self._weights[rows])[:, None]
            self._gram += values.T @ values

    def solve(self, inverse_penalty: float, *, start: _Solution | None) -> _Solution:
        width, classes = self._X.shape[1], self._classes
        penalty = 1 / (inverse_penalty * np.count_nonzero(self._weights))
        hessian = self._gram * ((1 - 1 / classes) / classes)
        hessian[np.diag_indices(width)] += max(penalty, 1e-6 * float(np.trace(hessian)) / width)
        factor = cholesky(hessian, lower=True, overwrite_a=True, check_finite=False)

        def unpack(point: NDArray[np.float64]) -> tuple[Features, Features]:
            turned = point[classes:].reshape(width, classes).astype(np.float32)
            weight = solve_triangular(factor, turned, lower=True, trans="T", check_finite=False)
            return weight, point[:classes].astype(np.float32)

        def loss_and_slope(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight, bias = unpack(point)
            loss, weight_slope, bias_slope = self._cross_entropy(weight, bias)
            weight_slope += penalty * weight
            turned = solve_triangular(factor, weight_slope, lower=True, check_finite=False)
            return (
                loss + penalty / 2 * float(np.vdot(weight, weight)),
                np.concatenate([bias_slope, turned.ravel()]).astype(np.float64),
            )

        begin = np.zeros(classes * (width + 1))
        if start is not None:
            begin[:classes] = start.bias
            begin[classes:] = (factor.T @ start.weight).ravel()
        limits = {"maxiter": self._max_iterations, "gtol": 0.0, "ftol": self._tolerance}
        found = minimize(loss_and_slope, begin, jac=True, method="L-BFGS-B", options=limits)
        weight, bias = unpack(found.x)
        return _Solution(weight, bias, int(found.nit), bool(found.success))

    def _cross_entropy(self, weight: Features, bias: Features) -> tuple[float, Features, Features]:
        """Give the weighted mean loss and its slopes by weight and bias."""
        loss, weight_slope, bias_slope = 0.0, np.zeros_like(weight), np.zeros_like(bias)
        for rows, block in row_blocks(self._X, BLOCK_VALUES):
            values, codes, weights = _float32(block), self._codes[rows], self._weights[rows]
            residual = softmax(values @ weight + bias)
            true = np.arange(len(codes)), codes
            loss -= float(weights @ np.log(np.maximum(residual[true], 1e-30)))
            residual[true] -= 1
            residual *= weights[:, None]
            weight_slope += values.T @ residual
            bias_slope += residual.sum(axis=0)
        return loss, weight_slope, bias_slope


def _narrow(X: Features | Matrix, sketch: Sketch | None) -> Features:
    """Give the features that are fitted: an array as it is; rows on disk in float16, which halves the memory."""
    if sketch is None:
        return X if isinstance(X, np.ndarray) else X[:]
    narrow = np.empty((len(X), sketch.width), np.float32 if isinstance(X, np.ndarray) else np.float16)
    for rows, block in row_blocks(X):
        narrow[rows] = sketch.apply(block)
    return narrow


def _float32(block: Features) -> Features:
    return block.astype(np.float32, copy=False)
