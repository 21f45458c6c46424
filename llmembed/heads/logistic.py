"""Logistic regression: features float32 [rows, features] -> class probabilities, one linear map and a softmax.

L-BFGS in coordinates in which the features are nearly uncorrelated, where it needs few steps; each is one pass over
rows that may lie on disk. The strength of the regularisation is chosen on held-out rows, from strong to weak, each fit
starting from the last. Thousands of features are projected first: their fit would take a hundred passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from llmembed.heads.base import TrainingRows, Unseen
from llmembed.heads.classes import ClassWeight
from llmembed.heads.linear import LinearHead
from llmembed.heads.parameters import Range
from llmembed.heads.principal_axes import Axes, find_axes
from llmembed.heads.projection import fit_projection
from llmembed.matrix import FloatArray, IntArray, Matrix, map_blocks, reduce_blocks
from llmembed.parallel import one_blas_thread
from llmembed.uncertainty.calibration import log_loss, softmax

# Where no more than the order of the penalties is asked for, a tenth of the precision does.
SEARCH_TOLERANCE = 10.0


class LogisticHead(LinearHead):
    """Multinomial logistic regression with an L2 penalty.

    Args:
        inverse_penalties: the values to try of what scikit-learn calls `C`, from small (strong penalty) to large.
        max_iterations: limit of L-BFGS steps per value.
        tolerance: it has converged when a step lowers the mean cross-entropy by less; `fit_info_` says if it did not.
        project_above: number of features from which on they are projected: on the logits of a linear discriminant and
            on principal components.
        components: number of those components.
        class_weight: `balanced` lets every class count alike, `sqrt` half of the way to it, None every row; a dict has
            weights by label.
        seed: fixes the rows that estimate the principal axes, and the validation rows where none are given.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "inverse_penalties": Range(float, 1e-12, items=1),
        "max_iterations": Range(int, 1),
        "tolerance": Range(float, 0),
        "project_above": Range(int, 0),
        "components": Range(int, 1),
    }

    def __init__(
        self,
        *,
        inverse_penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iterations: int = 100,
        tolerance: float = 1e-5,
        project_above: int = 4096,
        components: int = 256,
        class_weight: ClassWeight = None,
        seed: int = 0,
    ) -> None:
        self.inverse_penalties = inverse_penalties
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.project_above = project_above
        self.components = components
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, rows: TrainingRows) -> Unseen:
        projection, features, X_val = None, rows.X, rows.X_val
        self.fit_info_["projected"] = self.n_features_in_ > self.project_above
        if self.fit_info_["projected"]:
            projection, projected, info = fit_projection(
                rows.X, rows.y, rows.class_weights, groups=rows.groups, components=self.components, seed=self.seed
            )
            features, X_val = projected, projected[rows.held_out] if len(rows.held_out) else projection.apply(X_val)
            self.fit_info_ |= info
        with one_blas_thread():
            solution, unseen = self._solve(replace(rows, X=features, X_val=X_val))
        weight, bias = solution.weight, solution.bias
        if projection is not None:
            weight, bias = projection.weight @ weight, projection.offset @ weight + bias
        self.weight_, self.bias_ = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
        self.fit_info_ |= {"iterations": solution.iterations, "converged": solution.converged}
        return unseen

    def _solve(self, rows: TrainingRows) -> tuple["_Solution", Unseen]:
        """Choose the penalty without the rows held out, then fit all of them with it."""
        axes = find_axes(rows.X, seed=self.seed)
        weights = rows.class_weights[rows.y]
        fitted = weights.copy()
        # Left out by weight: to copy the other rows would double the memory.
        fitted[rows.held_out] = 0
        classes = len(self.classes_)
        chosen, logits = self._choose(_Problem(rows.X, rows.y, fitted, classes, axes), rows.X_val, rows.y_val)
        problem = _Problem(rows.X, rows.y, weights, classes, axes)
        return problem.solve(chosen, self.max_iterations, self.tolerance), Unseen(logits, rows.y_val)

    def _choose(
        self, problem: "_Problem", X_val: FloatArray | Matrix, y_val: IntArray
    ) -> tuple["_Solution", FloatArray]:
        """Return the solution with the least validation loss, and its logits of the validation rows.

        With no row to judge by, the weakest penalty is taken.
        """
        best, least, solution = problem.start(), np.inf, problem.start()
        best_logits = np.zeros((len(y_val), len(self.classes_)), np.float32)
        for inverse_penalty in self.inverse_penalties if len(y_val) else self.inverse_penalties[-1:]:
            start = replace(solution, inverse_penalty=inverse_penalty)
            solution = problem.solve(start, self.max_iterations, SEARCH_TOLERANCE * self.tolerance)
            logits = map_blocks(X_val, solution.logits, len(self.classes_))
            loss = log_loss(logits, y_val)
            # The loss has one minimum along the path, and the weakest penalties take most of the time.
            if loss >= least:
                break
            best, best_logits, least = solution, logits, loss
        self.fit_info_["inverse_penalty"] = best.inverse_penalty
        return best, best_logits


@dataclass(frozen=True)
class _Solution:
    """weight float32 [features, classes], bias float32 [classes], for what penalty, and how the search ended."""

    weight: FloatArray
    bias: FloatArray
    inverse_penalty: float
    iterations: int
    converged: bool

    def logits(self, features: FloatArray) -> FloatArray:
        return np.asarray(features @ self.weight + self.bias, np.float32)


class _Problem:
    """Minimise the weighted mean cross-entropy of softmax(X W + b) plus |W|² / (2 C rows).

    L-BFGS searches V = R W, where R is the root of the covariance of X times (1 - 1/K) / K, plus 1 / (C rows): the
    Hessian where all K classes are equally probable. For V it is close to the identity.
    """

    def __init__(self, X: FloatArray | Matrix, y: IntArray, weights: FloatArray, classes: int, axes: Axes) -> None:
        self._X, self._y, self._weights, self._axes = X, y, weights / weights.sum(), axes
        self._shape = (X.shape[1], classes)

    def start(self) -> _Solution:
        """Return the solution of an infinite penalty."""
        return _Solution(np.zeros(self._shape, np.float32), np.zeros(self._shape[1], np.float32), 0.0, 0, True)

    def solve(self, start: _Solution, max_iterations: int, tolerance: float) -> _Solution:
        """Solve for the penalty of `start`, from there on."""
        classes = self._shape[1]
        penalty = 1 / (start.inverse_penalty * np.count_nonzero(self._weights))
        curvature = (1 - 1 / classes) / classes

        def turn(columns: NDArray[Any], power: float) -> FloatArray:
            single = columns.reshape(self._shape).astype(np.float32)
            return self._axes.apply(lambda variances: (curvature * variances + penalty) ** power, single)

        def unpack(point: NDArray[np.float64]) -> tuple[FloatArray, FloatArray]:
            return turn(point[classes:], -0.5), point[:classes].astype(np.float32)

        def loss_and_slope(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight, bias = unpack(point)
            loss, weight_slope, bias_slope = self._cross_entropy(weight, bias)
            turned = turn(weight_slope + penalty * weight, -0.5)
            loss += penalty / 2 * float(np.vdot(weight, weight))
            return loss, np.concatenate([bias_slope, turned.ravel()]).astype(np.float64)

        begin = np.concatenate([start.bias, turn(start.weight, 0.5).ravel()]).astype(np.float64)
        limits = {"maxiter": max_iterations, "gtol": 0.0, "ftol": tolerance}
        found = minimize(loss_and_slope, begin, jac=True, method="L-BFGS-B", options=limits)
        weight, bias = unpack(found.x)
        return _Solution(weight, bias, start.inverse_penalty, int(found.nit), bool(found.success))

    def _cross_entropy(self, weight: FloatArray, bias: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Return the weighted mean loss and its slopes by weight and bias."""

        def begin() -> dict[str, Any]:
            return {"loss": 0.0, "weight": np.zeros_like(weight), "bias": np.zeros_like(bias)}

        def add(sums: dict[str, Any], rows: slice, block: FloatArray) -> None:
            y, weights = self._y[rows], self._weights[rows]
            residual = softmax(block @ weight + bias)
            true = np.arange(len(y)), y
            sums["loss"] -= float(weights @ np.log(np.maximum(residual[true], 1e-30)))
            residual[true] -= 1
            residual *= weights[:, None]
            sums["weight"] += block.T @ residual
            sums["bias"] += residual.sum(axis=0)

        total = begin()
        for part in reduce_blocks(self._X, begin, add):
            for name, value in part.items():
                total[name] += value
        return total["loss"], total["weight"], total["bias"]
