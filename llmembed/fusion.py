"""Fusion: several layers of a text -> one feature vector, [rows, layers, dim] -> [rows, features].

Nothing here has weights. Training and prediction go through the same `fuse`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Fusion = Literal["last", "mean", "max", "concat", "cooccurrence"]


def fused_layers(fusion: Fusion, layers: Sequence[int]) -> tuple[int, ...]:
    """Give the layers that a fusion reads of those offered: `last` the highest one, the others all."""
    return (max(layers),) if fusion == "last" else tuple(layers)


def fused_width(fusion: Fusion, layers: int, dim: int) -> int:
    """Count the features that a fusion makes of so many layers of width `dim`."""
    if fusion == "cooccurrence":
        return dim + layers * (layers + 1) // 2
    return dim if fusion in ("mean", "max") else layers * dim


def fuse(embeddings: np.ndarray, fusion: Fusion) -> np.ndarray:
    """Fuse float32 [rows, layers, dim] -> float32 [rows, features].

    `mean` and `max` run over the layers and give `dim` features; `concat` and `last` lay the layers side by side;
    `cooccurrence` adds to the mean how alike the layers are.
    """
    if fusion == "cooccurrence":
        return cooccurrence(embeddings)
    if fusion == "mean":
        return np.asarray(embeddings.mean(axis=1))
    if fusion == "max":
        return np.asarray(embeddings.max(axis=1))
    return embeddings.reshape(len(embeddings), -1)


def cooccurrence(embeddings: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Pool standardised layers by their co-occurrence -> float32 [rows, dim + layers * (layers + 1) / 2].

    With the layers of a text as X [layers, dim], the Gram matrix G = X Xᵀ / dim, power-normalised to
    2 · sigmoid(σ · G) - 1, stands beside the mean of the layers (LLMEmbed, ACL 2024, section 3). Divided by `dim`, the
    entries are about 1 for standardised layers, where the sigmoid is far from flat. G is symmetric: the upper triangle
    and the diagonal are kept. The paper compresses the layers before, with weights that are learned; here are none.
    """
    layers, dim = embeddings.shape[1:]
    rows, columns = np.triu_indices(layers)
    gram = (embeddings @ embeddings.swapaxes(1, 2))[:, rows, columns] / dim
    # 2 · sigmoid(x) - 1 = tanh(x / 2), which cannot overflow.
    return np.concatenate([embeddings.mean(axis=1), np.tanh(sigma / 2 * gram)], axis=1)
