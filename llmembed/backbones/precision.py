"""From what a model computed, float32, to what is kept on disk; refuses every value that would not survive it."""

from collections.abc import Sequence

import numpy as np

from llmembed.backbones import BackboneSpec
from llmembed.errors import BackboneError


def stored(embeddings: np.ndarray, spec: BackboneSpec, texts: Sequence[str]) -> np.ndarray:
    """Cast the float32 embeddings [rows, layers, dim] of texts [rows] to the dtype on disk.

    Raises:
        BackboneError: NaN, Inf, or a value beyond the range of the dtype on disk, with text, layer and remedy.
    """
    # One comparison finds NaN (never <=), Inf and overflow alike.
    bad = ~(np.abs(embeddings) <= np.finfo(spec.dtype).max)
    if bad.any():
        row, layer, column = (int(axis[0]) for axis in np.nonzero(bad))
        value = float(embeddings[row, layer, column])
        remedy = "extract with --dtype float32" if np.isfinite(value) else "compute in float32 with --device cpu"
        raise BackboneError(
            f"{spec.model} gave {value:g} in layer {spec.layers[layer]}, which {spec.dtype} cannot hold, for the text "
            f"{texts[row][:80]!r}; {remedy}. Nothing of its block was kept."
        )
    return embeddings.astype(spec.dtype, copy=False)
