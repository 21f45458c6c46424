"""Pooling inside vLLM: token states [tokens, layers * dim] of one step -> one vector per text, float32, on the device.

A step holds parts of many texts. A text that is split over steps is accumulated here until its last token, and must
then have been seen whole: a prefix taken from vLLM's cache would be missing from the mean without an error.
"""

from collections.abc import Set
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from vllm.model_executor.layers.pooler import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from llmembed.choices import Pooling

COLUMNS_AT_ONCE = 4096
# What stays in the cache of a CPU while it is added.
CPU_VALUES_AT_ONCE = 1 << 22


class LayerPooler(Pooler):  # type: ignore[misc]
    """`mean`, `max`, `first` or `last` over the tokens of each text."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self._pooling = pooling
        # What is pooled so far of texts that are split over steps: a vector, and the number of tokens in it.
        self._partial: WeakKeyDictionary[PoolingStates, tuple[Tensor, int]] = WeakKeyDictionary()

    def get_supported_tasks(self) -> Set[PoolingTask]:
        """Name vLLM's task for one vector per text."""
        return {"embed"}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> Any:
        """Pool token states [tokens, layers * dim] -> float32 [texts, layers * dim]; unfinished rows are void.

        Raises:
            RuntimeError: a text ends of which some tokens were never seen.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        counts = cursor.num_scheduled_tokens_cpu.tolist()
        pooled = _reduce(hidden_states, cursor.num_scheduled_tokens_cpu, self._pooling)
        lengths, ends = cursor.prompt_lens_cpu.tolist(), cursor.seq_lens_cpu.tolist()
        for row, (count, length, end) in enumerate(zip(counts, lengths, ends, strict=True)):
            if count < length:
                self._accumulate(pooling_metadata.pooling_states[row], pooled[row], count, length, end)
        if self._pooling == "mean":
            pooled /= torch.tensor(lengths, device=pooled.device)[:, None]
        return pooled

    def _accumulate(self, text: PoolingStates, pooled: Tensor, count: int, length: int, end: int) -> None:
        # The first part of a text, also when vLLM preempted it and begins again, replaces what was there.
        before, seen = (None, 0) if end == count else self._partial.pop(text, (None, 0))
        if before is not None:
            pooled.copy_(_merge(before, pooled, self._pooling))
        seen += count
        if end < length:
            self._partial[text] = (pooled.clone(), seen)
        elif seen != length:
            raise RuntimeError(
                f"{seen} of the {length} tokens of a text were pooled; prefix caching must be off, and is it?"
            )


def _reduce(states: Tensor, counts: Tensor, pooling: Pooling) -> Tensor:
    if pooling in ("first", "last"):
        ends = counts.cumsum(0)
        rows = ends - counts if pooling == "first" else ends - 1
        return states[rows.to(states.device)].float()
    if pooling == "mean" and states.device.type == "cpu":
        return _sum_on_cpu(states, counts)
    lengths, reduction = counts.to(states.device), "sum" if pooling == "mean" else "max"
    # In float32, whatever the model computes in, and in a fixed order, which index_add_ has not on a GPU. Some columns
    # at a time: the copy of all five layers of a 7B model would take 1.3 GB.
    parts = torch.split(states, COLUMNS_AT_ONCE, dim=1)
    pooled = [torch.segment_reduce(part.float(), reduction, lengths=lengths, axis=0, unsafe=True) for part in parts]
    return torch.cat(pooled, dim=1)


def _sum_on_cpu(states: Tensor, counts: Tensor) -> Tensor:
    # segment_reduce takes 15 times as long on a CPU: 3 % of the whole engine. There index_add_ has a fixed order.
    texts = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    sums = torch.zeros(len(counts), states.shape[1])
    rows_at_once = max(1, CPU_VALUES_AT_ONCE // states.shape[1])
    for part, rows in zip(torch.split(states, rows_at_once), torch.split(texts, rows_at_once), strict=True):
        sums.index_add_(0, rows, part.float())
    return sums


def _merge(before: Tensor, pooled: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return before + pooled
    if pooling == "max":
        return torch.maximum(before, pooled)
    return before if pooling == "first" else pooled
