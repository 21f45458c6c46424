"""Fusion: several layers of a text -> one feature vector, [rows, layers, dim] -> [rows, features].

Nothing here has weights. Training and prediction go through the same `fuse`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Fusion = Literal["last", "mean", "max", "concat"]


def fused_layers(fusion: Fusion, layers: Sequence[int]) -> tuple[int, ...]:
    """Give the layers that a fusion reads of those offered: `last` the highest one, the others all."""
    return (max(layers),) if fusion == "last" else tuple(layers)


def fused_width(fusion: Fusion, layers: int, dim: int) -> int:
    """Count the features that a fusion makes of so many layers of width `dim`."""
    return dim if fusion in ("mean", "max") else layers * dim


def fuse(embeddings: np.ndarray, fusion: Fusion) -> np.ndarray:
    """Fuse float32 [rows, layers, dim] -> float32 [rows, features].

    `mean` and `max` run over the layers and give `dim` features; `concat` and `last` lay the layers side by side.
    """
    if fusion == "mean":
        return np.asarray(embeddings.mean(axis=1))
    if fusion == "max":
        return np.asarray(embeddings.max(axis=1))
    return embeddings.reshape(len(embeddings), -1)
