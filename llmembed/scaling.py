"""Scaling: every dimension of every layer to mean 0 and deviation 1, by the statistics of the training rows.

The last layer is read after the final norm and the others are raw residuals, whose lengths grow with depth; unscaled, a
mean over layers would be the longest one. In and out: embeddings [rows, layers, dim].
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class Scaler:
    """Training statistics: `mean` and `scale` are float32 [layers, dim]."""

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, embeddings: np.ndarray) -> np.ndarray:
        """Standardise [rows, layers, dim] -> float32 of the same shape."""
        scaled = embeddings.astype(np.float32)
        scaled -= self.mean
        scaled /= self.scale
        return scaled

    def save(self, folder: Path) -> None:
        """Write scaler.safetensors."""
        save_file({"mean": self.mean, "scale": self.scale}, folder / "scaler.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Scaler":
        """Read scaler.safetensors."""
        return cls(**load_file(folder / "scaler.safetensors"))


def fit_scaler(blocks: Iterable[np.ndarray]) -> Scaler:
    """Take mean and standard deviation over blocks [rows, layers, dim], in one pass.

    The blocks' means and squared deviations are merged pairwise in float64 (Chan, Golub, LeVeque 1983), which, unlike
    sums of squares, loses nothing where a mean is large against its deviation. A constant dimension gets the scale 1.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        values = block.astype(np.float32)
        block_mean = values.mean(axis=0, dtype=np.float64)
        block_squares = np.square(values - block_mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
        total, gap = count + len(values), block_mean - mean
        mean = mean + gap * (len(values) / total)
        squares = squares + block_squares + np.square(gap) * (count * len(values) / total)
        count = total
    deviation = np.sqrt(squares / count)
    # Rounding leaves a constant dimension with a deviation of some 1e-8 of its mean; to divide by it would be noise.
    constant = deviation <= 1e-6 * np.abs(mean)
    return Scaler(mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32))
