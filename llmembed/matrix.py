"""Matrices of features [rows, features] whose rows may lie on disk: read in blocks, mapped and reduced block by block.

In: an array, or a `Matrix` whose rows are read when they are asked for. Out: arrays, float32. Blocks, shares and the
order of their sums depend on the matrix alone, so that every number of threads gives the same bits. Knows no labels and
not where the rows come from.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmembed.parallel import in_threads, one_blas_thread

# 128 MB in float32: what is in memory at a time of a matrix on disk.
READ_AHEAD_VALUES = 2**25
# Values of a block that one thread reduces, up to 32 MB in float32: rows enough for quick products, and a few such
# blocks are little memory. Of a small matrix less, so that there is one for every core.
BLOCK_VALUES = 2**23
SMALL_BLOCK_VALUES = 2**19
# Runs of neighbouring blocks that are added up by themselves: more than most machines have cores.
SHARES = 64

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Derived:
    """What was computed from rows: arrays by name, plain values beside them, and whether an earlier run computed it."""

    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any] = field(default_factory=dict)
    memoized: bool = False


@runtime_checkable
class Matrix(Protocol):
    """Features [rows, features] whose rows are read when they are asked for, such as those of a cache."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, features)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> FloatArray:
        """Read the rows of a slice or an integer index, float32 [rows, features]."""
        ...

    def select_rows(self, rows: IntArray) -> "Matrix":
        """Return some rows as a matrix, without reading them."""
        ...

    def memoize(self, what: Mapping[str, Any], make: Callable[[], Derived]) -> Derived:
        """Return what `what`, JSON values, and this matrix determine: of an earlier run, or made now."""
        ...


# What a head is fitted on: an array, or a matrix whose rows may lie on disk.
MatrixLike = ArrayLike | Matrix


def select_rows(X: FloatArray | Matrix, rows: IntArray) -> FloatArray | Matrix:
    """Return some rows, without reading those that lie on disk."""
    return X[rows] if isinstance(X, np.ndarray) else X.select_rows(rows)


def row_blocks(X: FloatArray | Matrix, values: int = READ_AHEAD_VALUES) -> Iterator[tuple[slice, FloatArray]]:
    """Read the rows in order, so many that they hold `values` values at a time; the next block is read meanwhile.

    Yields:
        which rows, and they, float32 [rows, features].
    """
    parts = _slices(X, values)
    if isinstance(X, np.ndarray):
        yield from ((part, X[part]) for part in parts)
        return
    yield from zip(parts, read_ahead(X.__getitem__, parts), strict=True)


def read_ahead(read: Callable[[Any], FloatArray], parts: Iterable[Any]) -> Iterator[FloatArray]:
    """Read the parts one after the other, each while the one before it is worked on."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[FloatArray]] = deque()
        for part in parts:
            waiting.append(reader.submit(read, part))
            if len(waiting) == 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def reduce_blocks(
    X: FloatArray | Matrix, start: Callable[[], T], add: Callable[[T, slice, FloatArray], None]
) -> Iterator[T]:
    """Let `add` see all blocks: what `start` made for the share, which rows, and they, float32 [rows, features].

    Each thread reads, scales and multiplies blocks of its own, its matrix products on one thread: all that happens to a
    block happens on one core, and no core waits for another one at every product.

    Yields:
        what `start` made, once for each share, in the order of their rows, as soon as it is done: few are in memory.
    """
    parts = _slices(X, min(BLOCK_VALUES, max(SMALL_BLOCK_VALUES, len(X) * X.shape[1] // SHARES)))

    def work(share: NDArray[Any]) -> T:
        made = start()
        for number in share:
            add(made, parts[number], X[parts[number]])
        return made

    with one_blas_thread():
        yield from in_threads(work, np.array_split(np.arange(len(parts)), min(SHARES, max(1, len(parts)))))


def sum_blocks(
    X: FloatArray | Matrix, shape: tuple[int, ...], add: Callable[[FloatArray, slice, FloatArray], None]
) -> FloatArray:
    """Let `add` add every block of rows to zeros of a shape; return the sum, float32."""
    total = np.zeros(shape, np.float32)
    for share in reduce_blocks(X, lambda: np.zeros(shape, np.float32), add):
        total += share
    return total


def map_blocks(X: FloatArray | Matrix, function: Callable[[FloatArray], FloatArray], width: int) -> FloatArray:
    """Apply a function to the rows, block by block -> float32 [rows, width]."""
    values = np.empty((len(X), width), np.float32)

    def fill(_: None, rows: slice, block: FloatArray) -> None:
        values[rows] = function(block)

    deque(reduce_blocks(X, lambda: None, fill), maxlen=0)
    return values


def _slices(X: FloatArray | Matrix, values: int) -> list[slice]:
    step = max(1, values // X.shape[1])
    return [slice(start, min(start + step, len(X))) for start in range(0, len(X), step)]
