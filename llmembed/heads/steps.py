"""Steps of a fit by torch: networks and rows that may lie on disk -> the networks, a batch further.

In: networks, and a matrix [rows, features]. Out: batches in random order, and weights that were moved by them. Knows no
labels but their indices, and not what the networks are.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from llmembed.matrix import READ_AHEAD_VALUES, FloatArray, Matrix, read_ahead

# Weights from which on a network is shared among threads.
WEIGHTS_TO_SHARE = 2**18
# Rows that lie side by side on disk and are read together: 32 of 4,096 float16 values are 256 kB of each layer.
RUN_ROWS = 32


class Step:
    """A step of AdamW on a batch, for all members at once, along the cycle of the learning rate."""

    def __init__(self, members: nn.ModuleList, learning_rate: float, weight_decay: float, steps: int) -> None:
        self._members = members
        weights = list(self._members.parameters())
        self._optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
        )
        self._device = weights[0].device.type
        # Where a core multiplies bfloat16, it takes 0.7 (1,920 features; Zen 4) or 0.4 (20,480) of the time, and is as
        # accurate: R8, R52 and MR with three fusions and three seeds were within 0.2 points, and equal on average.
        self._bfloat16 = self._device == "cuda" or _multiplies_bfloat16()
        self.products = "bfloat16" if self._bfloat16 else "float32"

    def __call__(
        self, batch: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor, left_out: torch.Tensor
    ) -> None:
        """Train on a batch [rows, features]; the rows `left_out` do not count for the first member."""
        losses = []
        if self._bfloat16:
            batch = batch.bfloat16()
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16):
            logits = [member(batch) for member in self._members]
        for number, each in enumerate(logits):
            counts = ~left_out if number == 0 else torch.ones_like(left_out)
            loss = nn.functional.cross_entropy(each.float(), targets, class_weights, reduction="none")
            losses.append((loss * counts).sum() / counts.sum().clamp(min=1))
        self._optimiser.zero_grad(set_to_none=True)
        # Their sum: each member trains as if it were alone.
        torch.autograd.backward(losses)
        self._optimiser.step()
        self._schedule.step()


def shuffle_rows(X: FloatArray | Matrix, batch_rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return all rows once, in random order, as batches of features and the numbers of their rows.

    Of a matrix on disk, runs of neighbouring rows are drawn at random until they fill a buffer, whose rows are then
    shuffled: each row is read once, in pieces that a disk likes.
    """
    run = 1 if isinstance(X, np.ndarray) else RUN_ROWS
    starts = run * torch.randperm(math.ceil(len(X) / run)).numpy()
    rows = (starts[:, None] + np.arange(run)).ravel()
    rows = rows[rows < len(X)]
    size = batch_rows * max(1, READ_AHEAD_VALUES // X.shape[1] // batch_rows)
    buffers = [np.sort(part) for part in np.split(rows, range(size, len(rows), size))]
    for buffer, chosen in zip(read_ahead(X.__getitem__, buffers), buffers, strict=True):
        features, numbers = torch.from_numpy(buffer), torch.from_numpy(chosen)
        for batch in torch.split(torch.randperm(len(chosen)), batch_rows):
            yield features.index_select(0, batch), numbers[batch]


def _multiplies_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(name in flags.read_text() for name in ("avx512_bf16", "amx_bf16"))


@contextmanager
def limit_threads(weights: int, *, reading: bool) -> Iterator[None]:
    """Use one thread for a network too small to share, leave a core to `reading`, and put the number back afterwards.

    Threads that wait for each other at every step are slow beside a busy neighbour: 20 passes over 1,257 rows with
    16,384 weights took 153 s with 4 threads and 7 s with one; a pass over 4.9 GB on disk, on 4 cores of which one was
    busy, 121 s with 4 threads and 30 s with 3.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - reading) if weights >= WEIGHTS_TO_SHARE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
