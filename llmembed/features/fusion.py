"""Fusion: the layers of a text, of one backbone or several -> one feature vector, [rows, features].

In: for each backbone its layers [rows, layers, dim]; the dims may differ. Nothing here has weights: the fusions in
`LEARNED` only lay the layers side by side here, and the head learns the rest. Training and prediction go through the
same `fuse`.
"""

from collections.abc import Sequence

import numpy as np

from llmembed.choices import Fusion

# Their weights are in the mlp head (heads/learned.py).
LEARNED = ("weighted", "cooccurrence")
# Layers and dim of each backbone.
Layout = tuple[tuple[int, int], ...]


def fused_layers(fusion: Fusion, layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers that a fusion reads of those of a backbone: `last` the highest one, the others all."""
    return tuple(layers) if fusion != "last" or not layers else (max(layers),)


def fused_width(fusion: Fusion, layout: Layout) -> int:
    """Count the features that a fusion makes."""
    if fusion == "gram":
        return sum(dim + layers * (layers + 1) // 2 for layers, dim in layout)
    if fusion in ("mean", "max"):
        return sum(dim for _, dim in layout)
    return sum(layers * dim for layers, dim in layout)


def fuse(embeddings: Sequence[np.ndarray], fusion: Fusion) -> np.ndarray:
    """Fuse float32 [rows, layers, dim] of each backbone -> float32 [rows, features], the backbones side by side.

    `mean` and `max` run over the layers of a backbone and give `dim` features; `gram` adds to the mean how alike the
    layers are; `last`, `concat` and the learned fusions lay the layers side by side.
    """
    fused = [_fuse_one(each, fusion) for each in embeddings]
    return fused[0] if len(fused) == 1 else np.concatenate(fused, axis=1)


def _fuse_one(embeddings: np.ndarray, fusion: Fusion) -> np.ndarray:
    if fusion == "mean":
        return np.asarray(embeddings.mean(axis=1))
    if fusion == "max":
        return np.asarray(embeddings.max(axis=1))
    if fusion == "gram":
        return gram(embeddings)
    return embeddings.reshape(len(embeddings), -1)


def gram(embeddings: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Pool standardised layers by their co-occurrence -> float32 [rows, dim + layers * (layers + 1) / 2].

    With the layers of a text as X [layers, dim], the Gram matrix G = X Xᵀ / dim, power-normalised to
    2 · sigmoid(σ · G) - 1, stands beside the mean of the layers (LLMEmbed, ACL 2024, section 3). Divided by `dim`, the
    entries are about 1 for standardised layers, where the sigmoid is far from flat. G is symmetric: the upper triangle
    and the diagonal are kept. The paper compresses the layers before, with weights that are learned: that is
    `cooccurrence`; here are none.
    """
    layers, dim = embeddings.shape[1:]
    rows, columns = np.triu_indices(layers)
    products = (embeddings @ embeddings.swapaxes(1, 2))[:, rows, columns] / dim
    # 2 · sigmoid(x) - 1 = tanh(x / 2), which cannot overflow.
    return np.concatenate([embeddings.mean(axis=1), np.tanh(sigma / 2 * products)], axis=1)
