"""Projection of wide features: [rows, features] -> the logits of a linear discriminant, and principal components.

For heads whose fit would take minutes on thousands of features: few rows tell them as much.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmembed.heads import Codes, Features, Matrix
from llmembed.heads.discriminant import fit_discriminant
from llmembed.heads.sweep import map_rows


@dataclass(frozen=True)
class Projection:
    """A linear map.

    Attributes:
        weight, offset: float32 [features, classes + components] and [classes + components].
    """

    weight: Features
    offset: Features

    def apply(self, X: Features | Matrix) -> Features:
        """Project X [rows, features] -> float32 [rows, classes + components]."""
        return map_rows(X, lambda block: block @ self.weight + self.offset, len(self.offset))


def fit_projection(
    X: Features | Matrix, codes: Codes, prior: Features, *, components: int, seed: int
) -> tuple[Projection, Features, dict[str, Any]]:
    """Fit on X [rows, features] and codes [rows]; `prior` [classes] multiplies the shares of the classes.

    Returns:
        the projection; X projected, with the logits out of fold: in-fold ones would look far better than those of
        unseen rows, and what is fitted to them would trust them; and what the discriminant chose by itself.
    """
    fitted = fit_discriminant(X, codes, prior, seed=seed)
    axes = fitted.axes.vectors[:, :components]
    offset = np.append(fitted.bias, np.zeros(axes.shape[1], np.float32))
    projected = np.hstack([fitted.logits, map_rows(X, lambda block: block @ axes, axes.shape[1])])
    return Projection(np.hstack([fitted.weight, axes]), offset), projected, fitted.notes
