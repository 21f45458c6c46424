"""Principal axes of features that may lie on disk, from a sample of their rows: what makes iterative fits short.

In: a matrix [rows, features] of standardised features. Out: `Axes`, an estimate of their covariance that can be
inverted, or taken the root of, without ever being written down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.utils.extmath import randomized_svd

from llmembed.matrix import FloatArray, Matrix, map_blocks, sum_blocks
from llmembed.parallel import one_blas_thread

# Of 2,688 features, 256 axes of 2,048 rows brought the conjugate gradients of `discriminant` to the loss of the exact
# solution in 4 to 10 steps (AG News); 64 axes or 512 rows took half as many again.
AXES = 256
SAMPLE = 4096


@dataclass(frozen=True)
class Axes:
    """The leading eigenvectors of X'X / rows, for X without a mean; along all others the variance is taken for `rest`.

    Attributes:
        vectors: float32 [features, axes], orthonormal. variances: float32 [axes], falling. rest: the last of them.
    """

    vectors: FloatArray
    variances: FloatArray

    @property
    def rest(self) -> np.float32:
        """Return the variance along what the axes do not span: the least known one, an upper bound."""
        return np.float32(self.variances[-1])

    def apply(self, function: Callable[[FloatArray], NDArray[Any]], columns: FloatArray) -> FloatArray:
        """Multiply columns [features, columns] by a function of the covariance, such as its inverse.

        `function` gets variances [n, 1] and gives the factors, [n, 1] or [n, columns].
        """
        along, across = function(self.variances[:, None]), function(self.rest.reshape(1, 1))
        turned: FloatArray = across * columns + self.vectors @ ((along - across) * (self.vectors.T @ columns))
        return turned


def find_axes(X: FloatArray | Matrix, *, seed: int) -> Axes:
    """Find the principal axes of a random sample of the rows, by scikit-learn (Halko, Martinsson, Tropp 2011)."""
    rows = np.random.default_rng(seed).permutation(len(X))[:SAMPLE]
    sample = X[np.sort(rows)]
    # Of the two products the smaller one, whose eigenvalues are the same: 20,480 features would take 18 s themselves.
    wide = sample.shape[1] > sample.shape[0]
    gram = map_blocks(sample, lambda block: block @ sample.T, len(sample)) if wide else _sum_products(sample)
    with one_blas_thread():
        if len(gram) <= 2 * AXES:
            values, vectors = (part[..., ::-1][..., :AXES].T for part in eigh(gram))
        else:
            # QR, for LU overflows where the features are linearly dependent.
            _, values, vectors = randomized_svd(
                gram, AXES, n_iter=2, power_iteration_normalizer="QR", random_state=seed
            )
    # Not under float32's resolution of the largest one, so that rows that are all alike do not divide by 0.
    values = values.clip(1e-6 * values[0] + 1e-30)
    with one_blas_thread():
        vectors = sample.T @ (vectors.T / np.sqrt(values)) if wide else vectors.T
    return Axes(np.ascontiguousarray(vectors, np.float32), (values / len(sample)).astype(np.float32))


def _sum_products(X: FloatArray) -> FloatArray:
    """Multiply X' X -> float32 [features, features]."""

    def add(total: FloatArray, _: slice, block: FloatArray) -> None:
        total += block.T @ block

    return sum_blocks(X, (X.shape[1], X.shape[1]), add)
