"""Linear discriminant analysis: features float32 [rows, features] -> class probabilities.

The fastest baseline: linear equations, nothing to tune. How far the covariance is shrunk, and how sharp the
probabilities are, is chosen on rows that each fit had left out.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from llmembed.heads.base import TrainingRows, Unseen
from llmembed.heads.classes import ClassWeight
from llmembed.heads.discriminant import SHRINKAGES, fit_discriminant
from llmembed.heads.linear import LinearHead
from llmembed.heads.parameters import Range
from llmembed.matrix import IntArray


class LDAHead(LinearHead):
    """Linear discriminant analysis with a shrunken covariance.

    Args:
        shrinkages: what may be added to the diagonal of the covariance of standardised features.
        class_weight: what the decision takes for prior probabilities: the shares of the classes (None), equal ones
            (`balanced`), the roots of the shares (`sqrt`), or, with a dict, the shares times what it has for the label.
        seed: fixes the folds, and the rows that estimate the principal axes.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"shrinkages": Range(float, 1e-9, items=1)}

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

    def _hold_out(self, y_encoded: IntArray, groups: IntArray) -> IntArray:
        # Every row is left out once.
        return np.zeros(0, np.int64)

    def _fit(self, rows: TrainingRows) -> Unseen:
        fitted = fit_discriminant(
            rows.X, rows.y, rows.class_weights, groups=rows.groups, shrinkages=self.shrinkages, seed=self.seed
        )
        self.weight_, self.bias_ = fitted.weight, fitted.bias
        self.fit_info_ |= fitted.info
        return Unseen(fitted.logits, rows.y)
