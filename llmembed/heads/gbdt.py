"""Gradient-boosted trees: features float32 [rows, features] -> class probabilities, by LightGBM.

Wide features are first projected: on the logits of a shrunken linear discriminant, from which the boosting starts, and
on principal components. Both come from a few passes over rows that may lie on disk.
"""

from pathlib import Path
from typing import Any, Self

import lightgbm
import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmembed.cores import count_threads
from llmembed.folds import hold_out
from llmembed.heads import (
    ARRAYS_FILE,
    TREES_FILE,
    ClassWeight,
    Codes,
    Features,
    Matrix,
    Rows,
    Validation,
    read_head,
    select_rows,
    weigh_classes,
    write_head,
)
from llmembed.heads.estimator import Estimator
from llmembed.heads.projection import Projection, fit_projection
from llmembed.heads.trees import check_trees, cut_trees
from llmembed.saved import SavedFiles

VALUES_PER_THREAD = 250_000


class GBDTHead(Estimator):
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

    def fit(
        self, X: Rows, y: ArrayLike, *, validation: Validation | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit on X [rows, features] and labels y [rows]; without `validation`, a tenth of the rows is held out for it.

        Rows of one of the `groups` [rows] are held out together, as copies of a text must be.

        Raises:
            InputError: X, y or `validation` cannot be used: NaN in X, for instance, or fewer than two classes in y.
        """
        features, codes, groups = self._check_training(X, y, groups)
        if validation is None:
            train, held = hold_out(codes, groups, seed=self.seed)
            X_val, val_codes = select_rows(features, held), codes[held]
            features, codes, groups = select_rows(features, train), codes[train], groups[train]
        else:
            X_val, val_codes = self._check_validation(validation)
        self.projection_: Projection | None = None
        self.notes_: dict[str, Any] = {"projected": self.n_features_in_ > self.project_above}
        start = None
        if self.notes_["projected"]:
            prior = weigh_classes(self.class_weight, codes, self.classes_)
            self.projection_, inputs, notes = fit_projection(
                features, codes, prior, groups=groups, components=self.components, seed=self.seed
            )
            start = inputs[:, : len(self.classes_)]
            self.notes_ |= notes
        else:
            inputs = features[:]
        self._boost(inputs, start, codes, X_val, val_codes)
        self._calibrate(self._logits(X_val), val_codes, codes, self.class_weight)
        return self

    def _boost(
        self, inputs: Features, start: Features | None, codes: Codes, X_val: Features | Matrix, val_codes: Codes
    ) -> None:
        weights = weigh_classes(self.class_weight, codes, self.classes_)
        train = lightgbm.Dataset(inputs, codes, weight=weights[codes], init_score=_as_scores(start))
        known = val_codes >= 0
        valid_sets, callbacks = [], []
        if known.any():
            val_inputs, val_start = self._inputs(select_rows(X_val, np.flatnonzero(known)))
            own_weights, scores = weights[val_codes[known]], _as_scores(val_start)
            valid_sets = [train.create_valid(val_inputs, val_codes[known], weight=own_weights, init_score=scores)]
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
            "num_threads": max(1, min(count_threads(), values // VALUES_PER_THREAD)),
            "deterministic": True,
            "force_col_wise": True,
            "seed": self.seed,
            "verbose": -1,
        }

    def _inputs(self, features: Features | Matrix) -> tuple[Features, Features | None]:
        """Give what the trees see [rows, inputs] and where the boosting starts [rows, classes]."""
        if self.projection_ is None:
            return features[:], None
        inputs = self.projection_.apply(features)
        return inputs, inputs[:, : len(self.classes_)]

    def _logits(self, features: Features | Matrix) -> Features:
        if not len(features):
            return np.zeros((0, len(self.classes_)), dtype=np.float32)
        inputs, start = self._inputs(features)
        raw = self.booster_.predict(inputs, raw_score=True)
        return np.asarray(raw if start is None else raw + start, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write `head.json`, `head.safetensors` (the projection) and `head.txt` (LightGBM's own text) into `folder`."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.projection_ is not None:
            arrays = {"projection": self.projection_.weight, "offset": self.projection_.offset}
        write_head(folder, self, arrays)
        (folder / TREES_FILE).write_text(cut_trees(self.booster_.model_to_string()), encoding="utf-8")

    @classmethod
    def load(cls, files: SavedFiles) -> Self:
        """Make the head of which `save` wrote the files.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays = read_head(files, cls)
        head.projection_, inputs = None, head.n_features_in_
        if arrays:
            inputs = max(arrays["offset"].size if "offset" in arrays else 0, len(head.classes_))
            shapes = {"projection": (head.n_features_in_, inputs), "offset": (inputs,)}
            files.expect_arrays(ARRAYS_FILE, arrays, shapes)
            head.projection_ = Projection(arrays["projection"], arrays["offset"])
        try:
            text = files.content(TREES_FILE).decode()
            check_trees(text, inputs=inputs, classes=len(head.classes_), rounds=head.notes_["rounds"])
            head.booster_ = lightgbm.Booster(model_str=text)
        except (KeyError, TypeError, ValueError, lightgbm.basic.LightGBMError) as error:
            raise files.damaged(TREES_FILE, error) from error
        return head


def _as_scores(start: Features | None) -> NDArray[Any] | None:
    return None if start is None else start.astype(np.float64)
