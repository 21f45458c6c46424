"""Projection of wide features: [rows, features] -> the logits of a linear discriminant, and principal components.

For heads whose fit would take minutes on thousands of features: few rows tell them as much.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from llmembed.heads.discriminant import fit_discriminant
from llmembed.matrix import Derived, FloatArray, IntArray, Matrix, map_blocks


@dataclass(frozen=True)
class Projection:
    """A linear map.

    Attributes:
        weight, offset: float32 [features, classes + components] and [classes + components].
    """

    weight: FloatArray
    offset: FloatArray

    def apply(self, X: FloatArray | Matrix) -> FloatArray:
        """Project X [rows, features] -> float32 [rows, classes + components]."""
        return map_blocks(X, lambda block: block @ self.weight + self.offset, len(self.offset))


def fit_projection(
    X: FloatArray | Matrix, y: IntArray, prior: FloatArray, *, groups: IntArray, components: int, seed: int
) -> tuple[Projection, FloatArray, dict[str, Any]]:
    """Fit on X [rows, features] and y [rows]; `prior` [classes] multiplies the shares of the classes.

    Rows of one of the `groups` [rows] are left out together.

    Of rows on disk it is memoized, so that other trees or penalties begin at once.

    Returns:
        the projection; X projected, with the logits out of fold: in-fold ones would look far better than those of
        unseen rows, and what is fitted to them would trust them; and what the discriminant chose by itself.
    """

    def make() -> Derived:
        fitted = fit_discriminant(X, y, prior, groups=groups, seed=seed)
        axes = fitted.axes.vectors[:, :components]
        arrays = {
            "weight": np.hstack([fitted.weight, axes]),
            "offset": np.append(fitted.bias, np.zeros(axes.shape[1], np.float32)),
            "projected": np.hstack([fitted.logits, map_blocks(X, lambda block: block @ axes, axes.shape[1])]),
        }
        return Derived(arrays, fitted.info)

    what = {
        "projection": {"components": components, "prior": prior.tolist(), "seed": seed},
        "y": sha256(y.astype("<i8").tobytes()).hexdigest(),
        "groups": sha256(groups.astype("<i8").tobytes()).hexdigest(),
    }
    derived = make() if isinstance(X, np.ndarray) else X.memoize(what, make)
    info = {**derived.info, "projection_memoized": derived.memoized}
    return Projection(derived.arrays["weight"], derived.arrays["offset"]), derived.arrays["projected"], info
