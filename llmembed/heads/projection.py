"""Projection of wide features: [rows, features] -> the logits of a linear discriminant, and principal components.

For heads whose fit would take minutes on thousands of features: few rows tell them as much.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from llmembed.cache.derived import Derived
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
    X: Features | Matrix, codes: Codes, prior: Features, *, groups: Codes, components: int, seed: int
) -> tuple[Projection, Features, dict[str, Any]]:
    """Fit on X [rows, features] and codes [rows]; `prior` [classes] multiplies the shares of the classes.

    Rows of one of the `groups` [rows] are left out together.

    Of rows on disk it is memoized, so that other trees or penalties begin at once.

    Returns:
        the projection; X projected, with the logits out of fold: in-fold ones would look far better than those of
        unseen rows, and what is fitted to them would trust them; and what the discriminant chose by itself.
    """

    def make() -> Derived:
        fitted = fit_discriminant(X, codes, prior, groups=groups, seed=seed)
        axes = fitted.axes.vectors[:, :components]
        arrays = {
            "weight": np.hstack([fitted.weight, axes]),
            "offset": np.append(fitted.bias, np.zeros(axes.shape[1], np.float32)),
            "projected": np.hstack([fitted.logits, map_rows(X, lambda block: block @ axes, axes.shape[1])]),
        }
        return Derived(arrays, fitted.notes)

    what = {
        "projection": {"components": components, "prior": prior.tolist(), "seed": seed},
        "codes": sha256(codes.astype("<i8").tobytes()).hexdigest(),
        "groups": sha256(groups.astype("<i8").tobytes()).hexdigest(),
    }
    derived = make() if isinstance(X, np.ndarray) else X.memoize(what, make)
    notes = {**derived.notes, "projection_kept": derived.memoized}
    return Projection(derived.arrays["weight"], derived.arrays["offset"]), derived.arrays["projected"], notes
