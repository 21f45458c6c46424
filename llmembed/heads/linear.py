"""What the linear heads share: logits X @ weight + bias, and the two arrays that are saved.

In: a fitted weight [features, classes] and bias [classes]. Out: logits; the arrays, checked when they come back. Knows
not how they are fitted.
"""

from llmembed.heads.base import BaseHead
from llmembed.heads.files import ARRAYS_FILE
from llmembed.matrix import FloatArray, Matrix, map_blocks
from llmembed.saved import Arrays, SavedFiles


class LinearHead(BaseHead):
    """A head whose logits are one linear map of the features.

    Attributes:
        weight_, bias_: float32 [features, classes] and [classes].
    """

    weight_: FloatArray
    bias_: FloatArray

    def _logits(self, features: FloatArray | Matrix) -> FloatArray:
        return map_blocks(features, lambda block: block @ self.weight_ + self.bias_, len(self.classes_))

    def _arrays(self) -> Arrays:
        return {"weight": self.weight_, "bias": self.bias_}

    def _restore(self, files: SavedFiles, arrays: Arrays) -> None:
        shapes = {"weight": (self.n_features_in_, len(self.classes_)), "bias": (len(self.classes_),)}
        files.expect_arrays(ARRAYS_FILE, arrays, shapes)
        self.weight_, self.bias_ = arrays["weight"], arrays["bias"]
