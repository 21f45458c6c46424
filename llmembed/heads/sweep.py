"""Sweeps: work on all rows of a matrix that may lie on disk, block by block, with a thread on every core.

Each thread reads, scales and multiplies blocks of its own, its matrix products on one thread: all that happens to a
block happens on one core, and no core waits for another one at every product. Blocks, shares and the order of their
sums depend on the matrix alone, so that every number of threads gives the same bits.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from llmembed.cores import in_threads
from llmembed.heads import Features, Matrix

# Values of a block, up to 32 MB in float32: rows enough for quick products, and a few such blocks are little memory. Of
# a small matrix less, so that there is one for every core.
BLOCK_VALUES = 2**23
SMALL_BLOCK_VALUES = 2**19
# Runs of neighbouring blocks that are added up by themselves: more than most machines have cores.
SHARES = 64

T = TypeVar("T")


def sweep(X: Features | Matrix, start: Callable[[], T], visit: Callable[[T, slice, Features], None]) -> Iterator[T]:
    """Let `visit` see all blocks: what `start` made for the share, which rows, and they, float32 [rows, features].

    Yields:
        what `start` made, once for each share, in the order of their rows, as soon as it is done: few are in memory.
    """
    values = min(BLOCK_VALUES, max(SMALL_BLOCK_VALUES, len(X) * X.shape[1] // SHARES))
    step = max(1, values // X.shape[1])
    parts = [slice(row, min(row + step, len(X))) for row in range(0, len(X), step)]

    def work(share: np.ndarray) -> T:
        made = start()
        for number in share:
            visit(made, parts[number], X[parts[number]])
        return made

    with one_thread_each():
        yield from in_threads(work, np.array_split(np.arange(len(parts)), min(SHARES, max(1, len(parts)))))


def sum_rows(
    X: Features | Matrix, shape: tuple[int, ...], add: Callable[[Features, slice, Features], None]
) -> Features:
    """Let `add` add every block of rows to zeros of a shape; give the sum, float32."""
    total = np.zeros(shape, np.float32)
    for share in sweep(X, lambda: np.zeros(shape, np.float32), add):
        total += share
    return total


def map_rows(X: Features | Matrix, function: Callable[[Features], Features], width: int) -> Features:
    """Apply a function to the rows, block by block -> float32 [rows, width]."""
    values = np.empty((len(X), width), np.float32)

    def fill(_: None, rows: slice, block: Features) -> None:
        values[rows] = function(block)

    deque(sweep(X, lambda: None, fill), maxlen=0)
    return values


def one_thread_each() -> Any:
    """Give a context in which every product takes one thread: how many share it changes its last bits."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
