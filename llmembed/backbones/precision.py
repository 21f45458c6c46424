"""From what a model computed, float32, to what is kept on disk; refuses every value that would not survive it."""

import numpy as np

from llmembed.backbones import BackboneSpec
from llmembed.errors import BackboneError


class BadValueError(BackboneError):
    """A value that must not be kept; `row` says which text of the block it belongs to."""

    def __init__(self, row: int, layer: int, value: float, spec: BackboneSpec) -> None:
        remedy = "store float32 (--dtype float32)" if np.isfinite(value) else "compute in float32 (--device cpu)"
        super().__init__(f"{spec.model} gave {value:g} in layer {layer}, which {spec.dtype} cannot hold; {remedy}")
        self.row = row


def stored(embeddings: np.ndarray, spec: BackboneSpec) -> np.ndarray:
    """Cast float32 [rows, layers, dim] to the dtype on disk.

    Raises:
        BadValueError: NaN, Inf, or a value beyond the range of the dtype on disk.
    """
    # One comparison finds NaN (never <=), Inf and overflow alike.
    bad = ~(np.abs(embeddings) <= np.finfo(spec.dtype).max)
    if bad.any():
        row, layer, column = (int(axis[0]) for axis in np.nonzero(bad))
        raise BadValueError(row, spec.layers[layer], float(embeddings[row, layer, column]), spec)
    return embeddings.astype(spec.dtype, copy=False)
