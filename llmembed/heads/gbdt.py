"""Gradient-boosted trees: features float32 [rows, features] -> class probabilities, by LightGBM.

Wide features are first projected: on the logits of a shrunken linear discriminant, from which the boosting starts, and
on principal components. Both come from a few passes over rows that may lie on disk.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightgbm
import numpy as np
from numpy.typing import NDArray

from llmembed.heads.base import BaseHead, TrainingRows, Unseen
from llmembed.heads.classes import ClassWeight, weigh_classes
from llmembed.heads.files import ARRAYS_FILE, TREES_FILE
from llmembed.heads.parameters import Range
from llmembed.heads.projection import Projection, fit_projection
from llmembed.heads.trees import check_trees, cut_trees
from llmembed.matrix import FloatArray, IntArray, Matrix, select_rows
from llmembed.parallel import count_threads
from llmembed.saved import Arrays, SavedFiles

VALUES_PER_THREAD = 250_000


class GBDTHead(BaseHead):
    """LightGBM on narrow features; on wide ones a linear discriminant, and trees that correct it.

    Args:
        learning_rate, leaves, rows_per_leaf, l2: as LightGBM's `learning_rate`, `num_leaves`, `min_data_in_leaf` and
            `lambda_l2`.
        rounds: the most boosting rounds; each makes one tree per class.
        patience: rounds without a better validation loss before it stops.
        project_above: number of features from which on they are projected.
        components: number of principal components that the trees see beside the discriminant's logits.
        class_weight: `balanced` lets every class count alike, `sqrt` half of the way to it, None every row; a dict has
            weights by label.
        seed: fixes the folds, and the validation rows where none are given.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "learning_rate": Range(float, 1e-9, 1e3),
        "leaves": Range(int, 2, 131_072),
        "rows_per_leaf": Range(int, 1),
        "l2": Range(float, 0),
        "rounds": Range(int, 1),
        "patience": Range(int, 1),
        "project_above": Range(int, 0),
        "components": Range(int, 1),
    }

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
        class_weight: ClassWeight = None,
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
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, rows: TrainingRows) -> Unseen:
        train = np.setdiff1d(np.arange(len(rows.y)), rows.held_out)
        features, y, groups = select_rows(rows.X, train), rows.y[train], rows.groups[train]
        class_weights = weigh_classes(self.class_weight, y, np.arange(len(self.classes_)))
        self.projection_: Projection | None = None
        self.fit_info_["projected"] = self.n_features_in_ > self.project_above
        start = None
        if self.fit_info_["projected"]:
            self.projection_, inputs, info = fit_projection(
                features, y, class_weights, groups=groups, components=self.components, seed=self.seed
            )
            start = inputs[:, : len(self.classes_)]
            self.fit_info_ |= info
        else:
            inputs = features[:]
        self._boost(inputs, start, y, class_weights, rows.X_val, rows.y_val)
        return Unseen(self._logits(rows.X_val), rows.y_val)

    def _boost(
        self,
        inputs: FloatArray,
        start: FloatArray | None,
        y: IntArray,
        weights: FloatArray,
        X_val: FloatArray | Matrix,
        y_val: IntArray,
    ) -> None:
        train = lightgbm.Dataset(inputs, y, weight=weights[y], init_score=_as_scores(start))
        known = y_val >= 0
        valid_sets, callbacks = [], []
        if known.any():
            val_inputs, val_start = self._inputs(select_rows(X_val, np.flatnonzero(known)))
            own_weights, scores = weights[y_val[known]], _as_scores(val_start)
            valid_sets = [train.create_valid(val_inputs, y_val[known], weight=own_weights, init_score=scores)]
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
        self.fit_info_["rounds"] = trees

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
            "num_threads": max(1, min(count_threads(), values // VALUES_PER_THREAD)),
            "deterministic": True,
            "force_col_wise": True,
            "seed": self.seed,
            "verbose": -1,
        }

    def _inputs(self, features: FloatArray | Matrix) -> tuple[FloatArray, FloatArray | None]:
        """Return what the trees see [rows, inputs] and where the boosting starts [rows, classes]."""
        if self.projection_ is None:
            return features[:], None
        inputs = self.projection_.apply(features)
        return inputs, inputs[:, : len(self.classes_)]

    def _logits(self, features: FloatArray | Matrix) -> FloatArray:
        if not len(features):
            return np.zeros((0, len(self.classes_)), dtype=np.float32)
        inputs, start = self._inputs(features)
        raw = self.booster_.predict(inputs, raw_score=True)
        return np.asarray(raw if start is None else raw + start, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the files of the fitted head into `folder`: also `head.txt`, LightGBM's own text."""
        super().save(folder)
        (folder / TREES_FILE).write_text(cut_trees(self.booster_.model_to_string()), encoding="utf-8")

    def _arrays(self) -> Arrays:
        projection = self.projection_
        return {} if projection is None else {"projection": projection.weight, "offset": projection.offset}

    def _restore(self, files: SavedFiles, arrays: Arrays) -> None:
        self.projection_, inputs = None, self.n_features_in_
        if arrays:
            inputs = max(arrays["offset"].size if "offset" in arrays else 0, len(self.classes_))
            shapes = {"projection": (self.n_features_in_, inputs), "offset": (inputs,)}
            files.expect_arrays(ARRAYS_FILE, arrays, shapes)
            self.projection_ = Projection(arrays["projection"], arrays["offset"])
        try:
            text = files.content(TREES_FILE).decode()
            check_trees(text, inputs=inputs, classes=len(self.classes_), rounds=self.fit_info_["rounds"])
            self.booster_ = lightgbm.Booster(model_str=text)
        except (KeyError, TypeError, ValueError, lightgbm.basic.LightGBMError) as error:
            raise files.damaged(TREES_FILE, error) from error


def _as_scores(start: FloatArray | None) -> NDArray[Any] | None:
    return None if start is None else start.astype(np.float64)
