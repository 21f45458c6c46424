"""Sweeps: work on all rows of a matrix that may lie on disk, block by block, with a thread on every core.

Each thread reads, scales and multiplies blocks of its own, its matrix products on one thread: all that happens to a
block happens on one core, and no core waits for another one at every product.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from llmembed.cores import count_threads, in_threads
from llmembed.heads import Features, Matrix

# Values of a block, 32 MB in float32: rows enough for quick products, and a few such blocks are little memory.
BLOCK_VALUES = 2**23

T = TypeVar("T")


def sweep(X: Features | Matrix, start: Callable[[], T], visit: Callable[[T, slice, Features], None]) -> list[T]:
    """Let `visit` see all blocks: what `start` made for the thread, which rows, and they, float32 [rows, features].

    Each thread has neighbouring blocks, always the same ones for the same number of threads, so that sums do not depend
    on chance.

    Returns:
        what `start` made, once for each thread, in the order of their rows.
    """
    step = max(1, BLOCK_VALUES // X.shape[1])
    parts = [slice(row, min(row + step, len(X))) for row in range(0, len(X), step)]
    threads = min(count_threads(), len(parts))

    def work(share: np.ndarray) -> T:
        made = start()
        for number in share:
            visit(made, parts[number], X[parts[number]])
        return made

    shares = np.array_split(np.arange(len(parts)), max(1, threads))
    if threads <= 1:
        return [work(shares[0])]
    with _blas().limit(limits=1, user_api="blas"):
        return list(in_threads(work, shares))


def sum_rows(
    X: Features | Matrix, shape: tuple[int, ...], add: Callable[[Features, slice, Features], None]
) -> Features:
    """Let `add` add every block of rows to zeros of a shape; give the sum, float32."""
    total, *others = sweep(X, lambda: np.zeros(shape, np.float32), add)
    for other in others:
        total += other
    return total


def map_rows(X: Features | Matrix, function: Callable[[Features], Features], width: int) -> Features:
    """Apply a function to the rows, block by block -> float32 [rows, width]."""
    values = np.empty((len(X), width), np.float32)

    def fill(_: None, rows: slice, block: Features) -> None:
        values[rows] = function(block)

    sweep(X, lambda: None, fill)
    return values


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
