"""Linear discriminant analysis: features float32 [rows, features] -> class probabilities.

The fastest baseline: linear equations, nothing to tune. How far the covariance is shrunk, and how sharp the
probabilities are, is chosen on rows that each fit had left out.
"""

from pathlib import Path
from typing import Any, Self

from numpy.typing import ArrayLike

from llmembed.heads import (
    ARRAYS_FILE,
    ClassWeight,
    Features,
    Matrix,
    Rows,
    Validation,
    read_head,
    weigh_classes,
    write_head,
)
from llmembed.heads.discriminant import SHRINKAGES, fit_discriminant
from llmembed.heads.estimator import Estimator
from llmembed.heads.sweep import map_rows
from llmembed.saved import SavedFiles


class LDAHead(Estimator):
    """Linear discriminant analysis with a shrunken covariance.

    Args:
        shrinkages: what may be added to the diagonal of the covariance of standardised features.
        class_weight: what the decision takes for prior probabilities: the shares of the classes (None), equal ones
            (`balanced`), the roots of the shares (`sqrt`), or, with a dict, the shares times what it has for the label.
        seed: fixes the folds, and the rows that estimate the principal axes.
    """

    def __init__(
        self,
        *,
        shrinkages: tuple[float, ...] = SHRINKAGES,
        class_weight: ClassWeight = None,
        seed: int = 0,
    ) -> None:
        self.shrinkages = shrinkages
        self.class_weight = class_weight
        self.seed = seed

    def fit(
        self, X: Rows, y: ArrayLike, *, validation: Validation | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit on X [rows, features] and labels y [rows]; `validation` is not needed, every row is left out once.

        Rows of one of the `groups` [rows] are left out together, as copies of a text must be.

        Raises:
            InputError: X or y cannot be used: NaN in X, for instance, or fewer than two classes in y.
        """
        features, codes, groups = self._check_training(X, y, groups)
        prior = weigh_classes(self.class_weight, codes, self.classes_)
        fitted = fit_discriminant(features, codes, prior, groups=groups, shrinkages=self.shrinkages, seed=self.seed)
        self.weight_, self.bias_ = fitted.weight, fitted.bias
        self._calibrate(fitted.logits, codes, codes, self.class_weight)
        self.notes_: dict[str, Any] = {**fitted.notes, "validation_rows": len(features)}
        return self

    def _logits(self, features: Features | Matrix) -> Features:
        return map_rows(features, lambda block: block @ self.weight_ + self.bias_, len(self.classes_))

    def save(self, folder: Path) -> None:
        """Write `head.json` and `head.safetensors` into `folder`."""
        write_head(folder, self, {"weight": self.weight_, "bias": self.bias_})

    @classmethod
    def load(cls, files: SavedFiles) -> Self:
        """Make the head of which `save` wrote the files.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays = read_head(files, cls)
        shapes = {"weight": (head.n_features_in_, len(head.classes_)), "bias": (len(head.classes_),)}
        files.expect_arrays(ARRAYS_FILE, arrays, shapes)
        head.weight_, head.bias_ = arrays["weight"], arrays["bias"]
        return head
