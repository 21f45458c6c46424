"""What the tests of every head share: their names, options that make them quick, and rows that may not be loaded."""

import pytest

from llmembed.heads import HEADS

# Few passes and rounds: these tests are about behaviour, the benchmarks about accuracy.
QUICK = {"logistic": {"inverse_penalties": (0.01, 0.1)}, "gbdt": {"rounds": 20}, "mlp": {"epochs": 8}, "lda": {}}
each_head = pytest.mark.parametrize("name", list(HEADS))


class OnDisk:
    """Rows that can only be read in pieces, as `llmembed.features.on_disk.Features` gives them."""

    def __init__(self, X):
        self.X, self.shape = X, X.shape

    def __len__(self):
        return len(self.X)

    def __getitem__(self, rows):
        return self.X[rows]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("Rows on disk are made an array.")

    def select_rows(self, rows):
        return OnDisk(self.X[rows])

    def memoize(self, what, make):
        return make()
