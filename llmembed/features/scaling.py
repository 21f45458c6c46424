"""Scaling: every dimension of every layer to mean 0 and deviation 1, by the statistics of the training rows.

The last layer is read after the final norm and the others are raw residuals, whose lengths grow with depth; unscaled, a
mean over layers would be the longest one. In and out: embeddings [rows, layers, dim] of one backbone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from llmembed.features.fusion import Layout
from llmembed.saved import SavedFiles

FILE = "scaler.safetensors"


@dataclass(frozen=True)
class Scaler:
    """Training statistics: `mean` and `scale` are float32 [layers, dim]."""

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, embeddings: np.ndarray) -> np.ndarray:
        """Standardise [rows, layers, dim] -> float32 of the same shape."""
        scaled = widen(embeddings)
        scaled -= self.mean
        scaled *= 1 / self.scale
        return scaled


def widen(values: np.ndarray) -> np.ndarray:
    """Return a copy in float32, exactly.

    NumPy takes 2 ns for a float16, as long as all else together; five vectorised operations take a third of it. Shifted
    by the 13 bits that float32's fraction has more, a float16 is 2^112 times too small: the exponents' biases differ.
    Infinities and NaN, which no cache holds, would become finite.
    """
    if values.dtype != np.float16:
        return values.astype(np.float32)
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    # The sign was spread over the bits below it.
    bits &= np.int32(-0x70002000)
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    return wide


def save_scalers(scalers: Sequence[Scaler], folder: Path) -> None:
    """Write scaler.safetensors: `mean.<b>` and `scale.<b>` of each backbone b."""
    arrays = {f"mean.{number}": scaler.mean for number, scaler in enumerate(scalers)}
    arrays |= {f"scale.{number}": scaler.scale for number, scaler in enumerate(scalers)}
    (folder / FILE).write_bytes(save(arrays))


def load_scalers(files: SavedFiles, layout: Layout) -> tuple[Scaler, ...]:
    """Make the scalers of which `save_scalers` wrote the file; `layout` has the layers and the dim of each backbone.

    Raises:
        ClassifierError: the file is missing, damaged, or of another layout.
    """
    arrays = files.read_arrays(FILE)
    shapes = {f"{part}.{number}": shape for number, shape in enumerate(layout) for part in ("mean", "scale")}
    files.expect_arrays(FILE, arrays, shapes)
    for number in range(len(layout)):
        # One over anything smaller is infinite.
        if not (arrays[f"scale.{number}"] >= np.finfo(np.float32).tiny).all():
            raise files.damaged(FILE, f"'scale.{number}' is not positive everywhere")
    return tuple(Scaler(arrays[f"mean.{number}"], arrays[f"scale.{number}"]) for number in range(len(layout)))


@dataclass(frozen=True)
class Moments:
    """Statistics of some rows: how many, their mean and the sum of squared deviations from it, [layers, dim]."""

    count: int
    mean: np.ndarray
    squares: np.ndarray


def moments(block: np.ndarray) -> Moments:
    """Take the statistics of a block [rows, layers, dim]."""
    values = widen(block)
    mean = values.mean(axis=0, dtype=np.float64)
    values -= mean.astype(np.float32)
    return Moments(len(values), mean, np.square(values, out=values).sum(axis=0, dtype=np.float64))


def fit_scaler(parts: Iterable[Moments]) -> Scaler:
    """Take mean and standard deviation over all rows from the statistics of their parts.

    They are merged pairwise in float64 (Chan, Golub, LeVeque 1983), which, unlike sums of squares, loses nothing where
    a mean is large against its deviation. A constant dimension gets the scale 1.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for part in parts:
        total, gap = count + part.count, part.mean - mean
        mean = mean + gap * (part.count / total)
        squares = squares + part.squares + np.square(gap) * (count * part.count / total)
        count = total
    deviation = np.sqrt(squares / count)
    # Rounding leaves a constant dimension with a deviation of some 1e-8 of its mean; to divide by it would be noise.
    constant = deviation <= 1e-6 * np.abs(mean)
    return Scaler(mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32))
