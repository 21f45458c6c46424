"""Dealing blocks of texts out to workers, one process for each GPU or group of GPUs, until all are committed.

What a lost worker had is tried again on another one, alone; a block that loses a second one is halved, and so on down
to the text that does it. Lost workers are started again as long as something comes of it, and one from which nothing
is heard is lost. Knows no data set and no labels.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from llmembed.backbones import BackboneSpec, BadText, OnBatch, ignore_batch, load_backbone
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.embedding import Block, OnBad
from llmembed.errors import EngineError
from llmembed.workers import Assignment, Load, Worker, start_worker

# Seconds that the workers have to free their GPUs before they are killed.
PATIENCE = 30.0
# Seconds without a word after which a worker counts as hung: while it loads a model, perhaps a large one from a slow
# disk, and while it has work, of which it tells batch by batch.
LOADING_SECONDS = 3600.0
SILENT_SECONDS = 600.0
# Losses of one group of GPUs without a commit in between: the fault is its own. Work that lost one before may lose
# more; one bad text of 4,096 loses up to three in a row, several of them more.
MOST_LOSSES = 3
MOST_SUSPECT_LOSSES = 12
# Processes that a block or text may lose.
MOST_DEATHS = 2


def embed_on_gpus(
    spec: BackboneSpec,
    files: ModelFiles,
    blocks: Sequence[Block],
    cache: Cache,
    groups: Sequence[str],
    *,
    on_ready: Callable[[dict[str, str]], None],
    on_batch: OnBatch,
    on_loss: Callable[[str], None],
    on_shard: OnBatch = ignore_batch,
    on_bad: OnBad = lambda _: None,
    silent_seconds: float = SILENT_SECONDS,
    load: Load = load_backbone,
    **loading: Any,
) -> None:
    """Embed blocks with one process for each group of GPUs, which is a value of CUDA_VISIBLE_DEVICES.

    `loading` are the options of `load`. `on_ready` is told the engine of every process that loaded the model,
    `on_batch` of every batch (with negative numbers of what was lost), `on_shard` of every commit, `on_bad` which texts
    have no embeddings and why, `on_loss` which process was lost and why.

    Raises:
        BackboneError: a worker cannot use the model.
        EngineError: every group of GPUs was given up.
    """
    assignment = Assignment(spec, files, cache.url, loading, load)
    seats: list[_Seat] = []
    try:
        seats += [_Seat(gpus, start_worker(gpus, assignment)) for gpus in groups]
        _Dealer(seats, blocks, assignment, silent_seconds, on_ready, on_batch, on_shard, on_bad, on_loss).run()
    except BaseException:
        for seat in seats:
            seat.worker.process.terminate()
        raise
    finally:
        _end(seats)


@dataclass(eq=False)
class _Task:
    """Texts to be embedded; `deaths` counts the processes that they may have lost, `died_at` says where."""

    block: Block
    deaths: int = 0
    suspect: bool = False
    died_at: "_Seat | None" = None

    def halves(self) -> list["_Task"]:
        keys = list(self.block)
        middle = len(keys) // 2
        parts = [{key: self.block[key] for key in part} for part in (keys[:middle], keys[middle:])]
        # A single text must lose two of its own.
        return [_Task(part, MOST_DEATHS - 1 if len(part) > 1 else 0, suspect=True) for part in parts]


@dataclass(eq=False)
class _Seat:
    """A group of GPUs and the process that runs the model on it now.

    Attributes:
        gpus: its CUDA_VISIBLE_DEVICES.
        worker: the process.
        uncommitted: what it was given and has not committed, in order.
        texts, tokens: what it embedded and has not committed.
        idle: it waits for a block.
        ready, ever_ready: this process, or one of this group, has loaded the model.
        losses, suspect_losses: processes lost since the last commit, the latter with work that had lost one before.
        heard: when it last said something.
    """

    gpus: str
    worker: Worker
    uncommitted: deque[_Task] = field(default_factory=deque)
    texts: int = 0
    tokens: int = 0
    idle: bool = False
    ready: bool = False
    ever_ready: bool = False
    losses: int = 0
    suspect_losses: int = 0
    heard: float = field(default_factory=time.monotonic)

    @property
    def given_up(self) -> bool:
        return not self.ever_ready or self.losses >= MOST_LOSSES or self.suspect_losses >= MOST_SUSPECT_LOSSES


class _Dealer:
    """Deals blocks out until all are committed."""

    def __init__(
        self,
        seats: Sequence[_Seat],
        blocks: Sequence[Block],
        assignment: Assignment,
        silent_seconds: float,
        on_ready: Callable[[dict[str, str]], None],
        on_batch: OnBatch,
        on_shard: OnBatch,
        on_bad: OnBad,
        on_loss: Callable[[str], None],
    ) -> None:
        self._alive = list(seats)
        self._fresh = deque(_Task(block) for block in blocks)
        # Those that may have lost a process come last and are embedded alone, so that it is known which one does it.
        self._suspects: deque[_Task] = deque()
        self._assignment, self._silent_seconds = assignment, silent_seconds
        self._on_ready, self._on_batch, self._on_shard = on_ready, on_batch, on_shard
        self._on_bad, self._on_loss = on_bad, on_loss
        self._reason = ""

    def run(self) -> None:
        while self._fresh or self._suspects or any(seat.uncommitted for seat in self._alive):
            if not self._alive:
                raise EngineError(f"{self._reason} No other process runs the model; what was committed is kept.")
            for seat in self._alive:
                if seat.idle and (task := self._next_for(seat)) is not None:
                    self._give(seat, task)
            self._wait()
            for seat in list(self._alive):
                # One that died may have said something before.
                died = not seat.worker.process.is_alive()
                if seat.worker.connection.poll():
                    self._listen(seat)
                elif died:
                    self._lose(seat, f"it ended with exit code {seat.worker.process.exitcode}.")
                elif time.monotonic() > self._deadline(seat):
                    self._lose(seat, f"nothing was heard of it for {time.monotonic() - seat.heard:,.0f} s.")

    def _wait(self) -> None:
        deadline = min(map(self._deadline, self._alive))
        timeout = None if deadline == float("inf") else max(0.0, deadline - time.monotonic()) + 0.01
        workers = [seat.worker for seat in self._alive]
        wait([each for worker in workers for each in (worker.connection, worker.process.sentinel)], timeout)

    def _deadline(self, seat: _Seat) -> float:
        if not seat.ready:
            return seat.heard + LOADING_SECONDS
        return seat.heard + self._silent_seconds if seat.uncommitted else float("inf")

    def _listen(self, seat: _Seat) -> None:
        seat.heard = time.monotonic()
        try:
            message, *content = seat.worker.connection.recv()
        except (EOFError, OSError):
            seat.worker.process.join(PATIENCE)
            message, content = "lost", [f"it ended with exit code {seat.worker.process.exitcode}."]
        if message == "ready":
            seat.ready = seat.ever_ready = True
            self._on_ready(*content)
        elif message == "idle":
            seat.idle = True
        elif message == "more":
            self._give(seat, self._more_for(seat))
        elif message == "batch":
            self._count(seat, *content)
        elif message == "bad":
            self._on_bad(*content)
        elif message == "shard":
            self._commit(seat, *content)
        elif message == "failed":
            raise content[0]
        else:
            self._lose(seat, *content)

    def _next_for(self, seat: _Seat) -> _Task | None:
        if self._fresh:
            return self._fresh.popleft()
        for task in self._suspects:
            # Elsewhere than where it lost one: a broken GPU would make any text look guilty.
            if task.died_at is not seat or len(self._alive) == 1:
                self._suspects.remove(task)
                return task
        return None

    def _more_for(self, seat: _Seat) -> _Task | None:
        # A worker takes some blocks ahead; not those that another would have nothing without.
        without_work = sum(not other.uncommitted for other in self._alive)
        alone = any(task.suspect for task in seat.uncommitted)
        return self._fresh.popleft() if not alone and len(self._fresh) > without_work else None

    def _give(self, seat: _Seat, task: _Task | None) -> None:
        seat.idle, seat.heard = False, time.monotonic()
        if task is not None:
            seat.uncommitted.append(task)
        seat.worker.give(None if task is None else task.block)

    def _count(self, seat: _Seat, texts: int, tokens: int) -> None:
        seat.texts, seat.tokens = seat.texts + texts, seat.tokens + tokens
        self._on_batch(texts, tokens)

    def _commit(self, seat: _Seat, texts: int, tokens: int) -> None:
        seat.uncommitted.popleft()
        seat.texts, seat.tokens = seat.texts - texts, seat.tokens - tokens
        if texts:
            seat.losses = seat.suspect_losses = 0
        self._on_shard(texts, tokens)

    def _lose(self, seat: _Seat, reason: str) -> None:
        self._reason = f"The process on GPU {seat.gpus} was lost: {reason}"
        self._on_loss(self._reason)
        seat.worker.kill(PATIENCE)
        self._count(seat, -seat.texts, -seat.tokens)
        if any(task.suspect for task in seat.uncommitted):
            seat.suspect_losses += 1
        else:
            seat.losses += 1
        self._suspect(seat, reason)
        if seat.given_up:
            self._alive.remove(seat)
            return
        seat.idle = seat.ready = False
        seat.worker, seat.heard = start_worker(seat.gpus, self._assignment), time.monotonic()

    def _suspect(self, seat: _Seat, reason: str) -> None:
        alone = len(seat.uncommitted) == 1
        for task in seat.uncommitted:
            task.suspect, task.died_at = True, seat
            if alone or len(task.block) > 1:
                task.deaths += 1
            if task.deaths < MOST_DEATHS:
                self._suspects.append(task)
            elif len(task.block) > 1:
                self._suspects += task.halves()
            else:
                self._on_bad({key: BadText(f"lost its process twice: {reason}") for key in task.block})
        seat.uncommitted.clear()


def _end(seats: Sequence[_Seat]) -> None:
    """End all workers, and those that do not want to."""
    try:
        deadline = time.monotonic() + PATIENCE
        for seat in seats:
            # Ends a worker that waits for more.
            seat.worker.close()
        for seat in seats:
            seat.worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for seat in seats:
            seat.worker.kill(PATIENCE)
