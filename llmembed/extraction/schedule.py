"""Which slot gets which block, what becomes of the blocks of a lost worker, and what was done so far.

In: blocks, slots for workers, and what the workers say. Out: blocks to embed, counts, texts without embeddings. What a
lost worker had is tried again in another slot, alone; a block that loses a second one is halved, and so on down to the
text that does it. Knows no process, no clock, no model.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from llmembed.backbones import BadText, OnBatch
from llmembed.extraction.embedding import Block, OnBad
from llmembed.extraction.messages import BadTextsFound, BatchEmbedded, ShardCommitted, WorkDone

# Workers lost in one slot without a commit in between: the fault is the slot's own. Work that lost one before may lose
# more; one bad text of 4,096 loses up to three in a row, several of them more.
MOST_LOST = 3
MOST_LOST_TO_SUSPECTS = 12
# Workers that a block or text may lose.
MOST_LOST_TO_ONE = 2


@dataclass(eq=False)
class Slot:
    """A place for one worker at a time: GPUs, and what is in work there.

    Attributes:
        gpus: its CUDA_VISIBLE_DEVICES.
        ever_ready: a worker has loaded the model here.
        in_work: what was assigned and is not committed, in order.
        texts, tokens: what was embedded and is not committed.
        lost, lost_to_suspects: workers lost since the last commit, the latter with work that had lost one before.
    """

    gpus: str
    ever_ready: bool = False
    in_work: "deque[_Task]" = field(default_factory=deque)
    texts: int = 0
    tokens: int = 0
    lost: int = 0
    lost_to_suspects: int = 0

    @property
    def is_given_up(self) -> bool:
        """Whether no other worker should be tried here, now that one was lost."""
        return not self.ever_ready or self.lost >= MOST_LOST or self.lost_to_suspects >= MOST_LOST_TO_SUSPECTS


class Schedule:
    """Blocks on their way to being committed; of a text that nothing commits `on_bad` is told."""

    def __init__(
        self, blocks: Sequence[Block], slots: Sequence[Slot], on_batch: OnBatch, on_shard: OnBatch, on_bad: OnBad
    ) -> None:
        self.slots = list(slots)
        self._fresh = deque(_Task(block) for block in blocks)
        # Those that may have lost a worker come last and, with nothing fresh to take ahead, are embedded alone, so that
        # it is known which one does it.
        self._suspects: deque[_Task] = deque()
        self._on_batch, self._on_shard, self._on_bad = on_batch, on_shard, on_bad

    @property
    def is_finished(self) -> bool:
        """Whether every text is committed or was told to be bad."""
        return not (self._fresh or self._suspects or any(slot.in_work for slot in self.slots))

    def assign(self, slot: Slot) -> Block | None:
        """Return a block for a slot without work, which is in work there from now on; None if there is none for it."""
        return _put(self._next_for(slot), slot)

    def assign_ahead(self, slot: Slot) -> Block | None:
        """Return another block for a slot that has work, or None if it should finish that first."""
        # Not one that another slot would have nothing without.
        without_work = sum(not other.in_work for other in self.slots)
        return _put(self._fresh.popleft() if len(self._fresh) > without_work else None, slot)

    def record(self, slot: Slot, done: WorkDone) -> None:
        """Count what the worker in a slot has done, and tell of it."""
        match done:
            case BatchEmbedded(texts, tokens):
                self._count(slot, texts, tokens)
            case BadTextsFound(texts):
                self._on_bad(texts)
            case ShardCommitted(texts, tokens):
                self._commit(slot, texts, tokens)
            case _:
                assert_never(done)

    def requeue(self, slot: Slot, reason: str) -> None:
        """Take back what a slot had whose worker was lost; a slot that lost too many is one of `slots` no more."""
        self._count(slot, -slot.texts, -slot.tokens)
        if any(task.suspect for task in slot.in_work):
            slot.lost_to_suspects += 1
        else:
            slot.lost += 1
        tasks, slot.in_work = slot.in_work, deque()
        for task in tasks:
            task.suspect, task.lost_in = True, slot
            # Which one of several single texts it was is known when each has been alone.
            if len(tasks) == 1 or len(task.block) > 1:
                task.lost += 1
            self._retry(task, reason)
        if slot.is_given_up:
            self.slots.remove(slot)

    def _next_for(self, slot: Slot) -> "_Task | None":
        if self._fresh:
            return self._fresh.popleft()
        for task in self._suspects:
            # Elsewhere than where it lost one: a broken GPU would make any text look guilty.
            if task.lost_in is not slot or len(self.slots) == 1:
                self._suspects.remove(task)
                return task
        return None

    def _count(self, slot: Slot, texts: int, tokens: int) -> None:
        slot.texts, slot.tokens = slot.texts + texts, slot.tokens + tokens
        self._on_batch(texts, tokens)

    def _commit(self, slot: Slot, texts: int, tokens: int) -> None:
        slot.in_work.popleft()
        slot.texts, slot.tokens = slot.texts - texts, slot.tokens - tokens
        if texts:
            slot.lost = slot.lost_to_suspects = 0
        self._on_shard(texts, tokens)

    def _retry(self, task: "_Task", reason: str) -> None:
        if task.lost < MOST_LOST_TO_ONE:
            self._suspects.append(task)
        elif len(task.block) > 1:
            self._suspects += task.halves()
        else:
            self._on_bad({key: BadText(f"lost its process twice: {reason}") for key in task.block})


@dataclass(eq=False)
class _Task:
    """Texts to be embedded; `lost` counts the workers that they may have cost, `lost_in` says where the last one."""

    block: Block
    lost: int = 0
    suspect: bool = False
    lost_in: Slot | None = None

    def halves(self) -> "list[_Task]":
        keys = list(self.block)
        middle = len(keys) // 2
        parts = [{key: self.block[key] for key in part} for part in (keys[:middle], keys[middle:])]
        # A single text must lose two of its own.
        return [_Task(part, MOST_LOST_TO_ONE - 1 if len(part) > 1 else 0, suspect=True) for part in parts]


def _put(task: _Task | None, slot: Slot) -> Block | None:
    if task is None:
        return None
    slot.in_work.append(task)
    return task.block
