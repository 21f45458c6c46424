"""Linear discriminant analysis: features float32 [rows, features] -> class probabilities, in closed form.

The fastest baseline: two passes over the rows, nothing to tune. How far the covariance is shrunk, and how sharp the
probabilities are, is chosen on rows that each fit had left out.
"""

from pathlib import Path
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from llmembed.heads import (
    Features,
    Rows,
    Validation,
    as_matrix,
    distinct,
    encode,
    map_rows,
    read_head,
    softmax,
    write_head,
)
from llmembed.heads.discriminant import fit_discriminant


class LDAHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear discriminant analysis with a shrunken covariance.

    Args:
        sketch: number of features above which they are first summed into so many, with random signs.
        class_weight: None takes the shares of the classes as prior probabilities, `balanced` equal ones, `sqrt` the
            roots of the shares.
        seed: fixes the folds and the signs.
    """

    def __init__(self, *, sketch: int = 4096, class_weight: str | None = None, seed: int = 0) -> None:
        self.sketch = sketch
        self.class_weight = class_weight
        self.seed = seed

    def fit(self, X: Rows, y: ArrayLike, *, validation: Validation | None = None) -> Self:
        """Fit on X [rows, features] and labels y [rows]; `validation` is not needed, every row is left out once.

        Raises:
            ClassifierError: NaN in X, or fewer than two classes.
        """
        features = as_matrix(X)
        self.classes_ = distinct(y)
        self.n_features_in_ = features.shape[1]
        fitted = fit_discriminant(
            features,
            encode(y, self.classes_),
            len(self.classes_),
            sketch=self.sketch,
            components=0,
            class_weight=self.class_weight,
            seed=self.seed,
        )
        self.weight_, self.bias_ = fitted.weight, fitted.bias
        self.notes_: dict[str, Any] = {
            "shrinkage": fitted.shrinkage,
            "out_of_fold_loss": fitted.loss,
            "sketched": self.n_features_in_ > self.sketch,
            "validation_rows": len(features),
        }
        return self

    def predict_proba(self, X: Rows) -> Features:
        """Give the class probabilities, float32 [rows, classes].

        Raises:
            ClassifierError: another number of features than in training, or NaN.
        """
        features = as_matrix(X, self.n_features_in_)
        return softmax(map_rows(features, lambda block: block @ self.weight_ + self.bias_, len(self.classes_)))

    def predict(self, X: Rows) -> NDArray[Any]:
        """Give the most probable label of each row [rows]."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def save(self, folder: Path) -> None:
        """Write `head.json` and `head.safetensors` into `folder`."""
        write_head(folder, self, {"weight": self.weight_, "bias": self.bias_}, features=self.n_features_in_)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a head that `save` wrote.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays, _ = read_head(folder, cls)
        head.weight_, head.bias_ = arrays["weight"], arrays["bias"]
        return head
