"""From what a model computed, float32, to what is kept on disk; finds every value that would not survive it."""

from collections.abc import Iterable, Sequence

import numpy as np

from llmembed.backbones import BackboneSpec, BadText
from llmembed.errors import BackboneError


def find_bad(embeddings: np.ndarray, spec: BackboneSpec) -> dict[int, BadText]:
    """Find the rows of float32 embeddings [rows, layers, dim] with NaN, Inf, or values that the dtype on disk lacks."""
    # One comparison finds NaN (never <=), Inf and overflow alike.
    bad = ~(np.abs(embeddings) <= np.finfo(spec.dtype).max)
    if not bad.any():
        return {}
    found = {}
    for row in np.flatnonzero(bad.any(axis=(1, 2))).tolist():
        layer, column = (int(axis[0]) for axis in np.nonzero(bad[row]))
        found[row] = _describe(float(embeddings[row, layer, column]), spec.layers[layer], spec.dtype)
    return found


def _describe(value: float, layer: int, dtype: str) -> BadText:
    beyond = f", which {dtype} cannot hold" if np.isfinite(value) else ""
    return BadText(f"{value:g} in layer {layer}{beyond}", layer, value)


def remedy(bad: Iterable[BadText], computed_in: str = "") -> str:
    """Return how these texts may get embeddings; empty where only other texts or another model would help."""
    values = [text.value for text in bad if text.value is not None]
    ways = []
    if any(map(np.isfinite, values)):
        ways.append("extract with `dtype='float32'`")
    if not all(map(np.isfinite, values)) and computed_in != "float32":
        ways.append("compute in float32 with `device='cpu'`")
    return " and ".join(ways)


def stored(embeddings: np.ndarray, spec: BackboneSpec, texts: Sequence[str]) -> np.ndarray:
    """Cast the float32 embeddings [rows, layers, dim] of texts [rows] to the dtype on disk.

    Raises:
        BackboneError: NaN, Inf, or a value beyond the range of the dtype on disk, with text, layer and remedy.
    """
    bad = find_bad(embeddings, spec)
    if bad:
        row, first = next(iter(bad.items()))
        raise BackboneError(
            f"{spec.model} gave {first.reason}, for the text {texts[row][:80]!r}; {remedy(bad.values())}."
        )
    return embeddings.astype(spec.dtype, copy=False)
