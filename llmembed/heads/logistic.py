"""Logistic regression: features float32 [rows, features] -> class probabilities, one linear map and a softmax.

L-BFGS in coordinates in which the features are nearly uncorrelated, where it needs few steps; each is one pass over
rows that may lie on disk. The strength of the regularisation is chosen on held-out rows, from strong to weak, each fit
starting from the last. Thousands of features are projected first: their fit would take a hundred passes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from llmembed.folds import hold_out
from llmembed.heads import (
    ARRAYS_FILE,
    ClassWeight,
    Codes,
    Features,
    Matrix,
    Rows,
    Validation,
    read_head,
    select_rows,
    softmax,
    weigh_classes,
    write_head,
)
from llmembed.heads.axes import Axes, find_axes
from llmembed.heads.calibration import log_loss
from llmembed.heads.estimator import Estimator
from llmembed.heads.projection import fit_projection
from llmembed.heads.sweep import map_rows, one_thread_each, sweep
from llmembed.saved import SavedFiles

# Where no more than the order of the penalties is asked for, a tenth of the precision does.
SEARCH_TOLERANCE = 10.0


class LogisticHead(Estimator):
    """Multinomial logistic regression with an L2 penalty.

    Args:
        inverse_penalties: the values to try of what scikit-learn calls `C`, from small (strong penalty) to large.
        max_iterations: limit of L-BFGS steps per value.
        tolerance: it has converged when a step lowers the mean loss by less, in nats; `notes_` says if it did not.
        project_above: number of features from which on they are projected: on the logits of a linear discriminant and
            on principal components.
        components: number of those components.
        class_weight: `balanced` lets every class count alike, `sqrt` half of the way to it, None every row; a dict has
            weights by label.
        seed: fixes the rows that estimate the principal axes, and the validation rows where none are given.
    """

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

    def fit(
        self, X: Rows, y: ArrayLike, *, validation: Validation | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit on X [rows, features] and labels y [rows].

        Without `validation`, a tenth of the rows chooses the penalty; then all rows are fitted with it. Rows of one of
        the `groups` [rows] are held out together, as copies of a text must be.

        Raises:
            InputError: X, y or `validation` cannot be used: NaN in X, for instance, or fewer than two classes in y.
        """
        features, codes, groups = self._check_training(X, y, groups)
        class_weights = weigh_classes(self.class_weight, codes, self.classes_)
        held = hold_out(codes, groups, seed=self.seed)[1] if validation is None else np.zeros(0, np.int64)
        X_val, val_codes = select_rows(features, held), codes[held]
        if validation is not None:
            X_val, val_codes = self._check_validation(validation)
        self.notes_: dict[str, Any] = {"projected": self.n_features_in_ > self.project_above}
        projection = None
        if self.notes_["projected"]:
            projection, features, notes = fit_projection(
                features, codes, class_weights, groups=groups, components=self.components, seed=self.seed
            )
            X_val = features[held] if validation is None else projection.apply(X_val)
            self.notes_ |= notes
        with one_thread_each():
            solution = self._solve(features, codes, class_weights, held, X_val, val_codes)
            self.weight_, self.bias_ = solution.weight, solution.bias
            if projection is not None:
                self.weight_ = projection.weight @ solution.weight
                self.bias_ = projection.offset @ solution.weight + solution.bias
        self.notes_ |= {"iterations": solution.iterations, "converged": solution.converged}
        return self

    def _solve(
        self,
        features: Features | Matrix,
        codes: Codes,
        class_weights: Features,
        held: Codes,
        X_val: Features | Matrix,
        val_codes: Codes,
    ) -> "_Solution":
        """Choose the penalty without the rows held out, then fit all of them with it."""
        axes = find_axes(features, seed=self.seed)
        weights = class_weights[codes]
        fitted = weights.copy()
        # Left out by weight: to copy the other rows would double the memory.
        fitted[held] = 0
        chosen = self._choose(_Problem(features, codes, fitted, len(self.classes_), axes), codes, X_val, val_codes)
        problem = _Problem(features, codes, weights, len(self.classes_), axes)
        return problem.solve(chosen, self.max_iterations, self.tolerance)

    def _choose(self, problem: "_Problem", codes: Codes, X_val: Features | Matrix, val_codes: Codes) -> "_Solution":
        """Give the solution with the least validation loss; note which, and what calibrates its logits.

        With no row to judge by, the weakest penalty is taken.
        """
        best, least, solution = problem.start(), np.inf, problem.start()
        for inverse_penalty in self.inverse_penalties if len(val_codes) else self.inverse_penalties[-1:]:
            start = replace(solution, inverse_penalty=inverse_penalty)
            solution = problem.solve(start, self.max_iterations, SEARCH_TOLERANCE * self.tolerance)
            logits = map_rows(X_val, solution.logits, len(self.classes_))
            loss = log_loss(logits, val_codes)
            # The loss has one minimum along the path, and the weakest penalties take most of the time.
            if loss >= least:
                break
            best, least = solution, loss
            self._calibrate(logits, val_codes, codes, self.class_weight)
        self.notes_ |= {"inverse_penalty": best.inverse_penalty, "validation_rows": len(val_codes)}
        return best

    def _logits(self, features: Features | Matrix) -> Features:
        return map_rows(features, lambda block: block @ self.weight_ + self.bias_, len(self.classes_))

    def save(self, folder: Path) -> None:
        """Write `head.json` and `head.safetensors` into `folder`."""
        arrays = {"weight": self.weight_, "bias": self.bias_}
        write_head(folder, self, arrays)

    @classmethod
    def load(cls, files: SavedFiles) -> Self:
        """Make the head of which `save` wrote the files.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays = read_head(files, cls)
        shapes = {"weight": (head.n_features_in_, len(head.classes_)), "bias": (len(head.classes_),)}
        files.expect_arrays(ARRAYS_FILE, arrays, shapes, ("float32", "float64"))
        head.weight_, head.bias_ = arrays["weight"], arrays["bias"]
        return head


@dataclass(frozen=True)
class _Solution:
    """weight float32 [features, classes], bias float32 [classes], for what penalty, and how the search ended."""

    weight: Features
    bias: Features
    inverse_penalty: float
    iterations: int
    converged: bool

    def logits(self, features: Features) -> Features:
        return np.asarray(features @ self.weight + self.bias, np.float32)


class _Problem:
    """Minimise the weighted mean cross-entropy of softmax(X W + b) plus |W|² / (2 C rows).

    L-BFGS searches V = R W, where R is the root of the covariance of X times (1 - 1/K) / K, plus 1 / (C rows): the
    Hessian where all K classes are equally probable. For V it is close to the identity.
    """

    def __init__(self, X: Features | Matrix, codes: Codes, weights: Features, classes: int, axes: Axes) -> None:
        self._X, self._codes, self._weights, self._axes = X, codes, weights / weights.sum(), axes
        self._shape = (X.shape[1], classes)

    def start(self) -> _Solution:
        """Give the solution of an infinite penalty."""
        return _Solution(np.zeros(self._shape, np.float32), np.zeros(self._shape[1], np.float32), 0.0, 0, True)

    def solve(self, start: _Solution, max_iterations: int, tolerance: float) -> _Solution:
        """Solve for the penalty of `start`, from there on."""
        classes = self._shape[1]
        penalty = 1 / (start.inverse_penalty * np.count_nonzero(self._weights))
        curvature = (1 - 1 / classes) / classes

        def turn(columns: NDArray[Any], power: float) -> Features:
            single = columns.reshape(self._shape).astype(np.float32)
            return self._axes.apply(lambda variances: (curvature * variances + penalty) ** power, single)

        def unpack(point: NDArray[np.float64]) -> tuple[Features, Features]:
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

    def _cross_entropy(self, weight: Features, bias: Features) -> tuple[float, Features, Features]:
        """Give the weighted mean loss and its slopes by weight and bias."""

        def begin() -> dict[str, Any]:
            return {"loss": 0.0, "weight": np.zeros_like(weight), "bias": np.zeros_like(bias)}

        def add(sums: dict[str, Any], rows: slice, block: Features) -> None:
            codes, weights = self._codes[rows], self._weights[rows]
            residual = softmax(block @ weight + bias)
            true = np.arange(len(codes)), codes
            sums["loss"] -= float(weights @ np.log(np.maximum(residual[true], 1e-30)))
            residual[true] -= 1
            residual *= weights[:, None]
            sums["weight"] += block.T @ residual
            sums["bias"] += residual.sum(axis=0)

        total = begin()
        for part in sweep(self._X, begin, add):
            for name, value in part.items():
                total[name] += value
        return total["loss"], total["weight"], total["bias"]
