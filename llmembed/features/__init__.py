"""Features: embeddings [rows, layers, dim] of each backbone -> scaled and fused, float32 [rows, features].

Here: the `FeatureMap`, which training makes, a classifier keeps, and whoever predicts applies. Knows no cache, no
labels and no head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.choices import Fusion
from llmembed.features.fusion import Layout, fuse, fused_width
from llmembed.features.scaling import Scaler, load_scalers, save_scalers
from llmembed.saved import SavedFiles


@dataclass(frozen=True)
class FeatureMap:
    """What stands between embeddings and a head: a scaler for each backbone, and the fusion.

    Attributes:
        scalers: training statistics, one for each backbone, in the order in which they are fused.
        fusion: how the layers become one vector.
    """

    scalers: tuple[Scaler, ...]
    fusion: Fusion

    @property
    def layout(self) -> Layout:
        """Return the number of layers and the dim of each backbone."""
        return tuple((scaler.mean.shape[0], scaler.mean.shape[1]) for scaler in self.scalers)

    @property
    def width(self) -> int:
        """Count the features."""
        return fused_width(self.fusion, self.layout)

    def apply(self, embeddings: Sequence[np.ndarray]) -> np.ndarray:
        """Scale and fuse [rows, layers, dim] of each backbone -> float32 [rows, features]."""
        scaled = [scaler.apply(each) for scaler, each in zip(self.scalers, embeddings, strict=True)]
        return fuse(scaled, self.fusion)

    def identify(self) -> dict[str, Any]:
        """Return, as JSON values, what determines the features of given embeddings."""
        scales = sha256(b"".join(each.mean.tobytes() + each.scale.tobytes() for each in self.scalers))
        return {"scalers": scales.hexdigest(), "fusion": self.fusion}

    def save(self, folder: Path) -> None:
        """Write the scalers into a folder; the fusion stands in the record of whatever keeps the map."""
        save_scalers(self.scalers, folder)

    @classmethod
    def load(cls, files: SavedFiles, fusion: Fusion, layout: Layout) -> "FeatureMap":
        """Make the map of which `save` wrote the file.

        Raises:
            ClassifierError: the file is missing, damaged, or of another layout.
        """
        return cls(load_scalers(files, layout), fusion)
