"""Dealing blocks of texts out to workers, one process for each GPU or group of GPUs, until all are committed.

In: blocks, and which GPUs. Out: committed shards, and counts of them while they are made. Lost workers are started
again as long as something comes of it, and one from which nothing is heard is lost. Knows no data set and no labels;
which block comes next is the schedule's to say.
"""

import math
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

from llmembed.backbones import BackboneSpec, EngineInfo, OnBatch, ignore_batch, load_backbone
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.errors import EngineError
from llmembed.extraction.embedding import Block, OnBad
from llmembed.extraction.messages import Assign, FromWorker, Idle, NoMore, Ready, RunFailed, WantsMore, WorkerLost
from llmembed.extraction.schedule import Schedule, Slot
from llmembed.extraction.workers import GRACE_SECONDS, Load, Worker, WorkerSetup, start_worker

# Seconds without a word after which a worker counts as hung: while it loads a model, perhaps a large one from a slow
# disk, and while it has work, of which it tells batch by batch.
LOADING_SECONDS = 3600.0
SILENT_SECONDS = 600.0


def embed_on_gpus(
    spec: BackboneSpec,
    files: ModelFiles,
    blocks: Sequence[Block],
    cache: Cache,
    groups: Sequence[str],
    *,
    on_ready: Callable[[EngineInfo], None],
    on_batch: OnBatch,
    on_worker_lost: Callable[[str], None],
    on_shard: OnBatch = ignore_batch,
    on_bad: OnBad = lambda _: None,
    silent_seconds: float = SILENT_SECONDS,
    load: Load = load_backbone,
    **loading: Any,
) -> None:
    """Embed blocks with one process for each group of GPUs, which is a value of CUDA_VISIBLE_DEVICES.

    `loading` are the options of `load`. `on_ready` is told the engine of every process that loaded the model,
    `on_batch` of every batch (with negative numbers of what was lost), `on_shard` of every commit, `on_bad` which texts
    have no embeddings and why, `on_worker_lost` which process was lost and why.

    Raises:
        BackboneError: a worker cannot use the model.
        EngineError: every group of GPUs was given up.
    """
    schedule = Schedule(blocks, [Slot(gpus) for gpus in groups], on_batch, on_shard, on_bad)
    setup = WorkerSetup(spec, files, cache.url, loading, load)
    _Dealer(schedule, setup, silent_seconds, on_ready, on_worker_lost).run()


class _Dealer:
    """Runs a worker in every slot of a schedule until that is finished."""

    def __init__(
        self,
        schedule: Schedule,
        setup: WorkerSetup,
        silent_seconds: float,
        on_ready: Callable[[EngineInfo], None],
        on_worker_lost: Callable[[str], None],
    ) -> None:
        self._schedule, self._setup, self._silent_seconds = schedule, setup, silent_seconds
        self._on_ready, self._on_worker_lost = on_ready, on_worker_lost
        self._workers: dict[Slot, Worker] = {}
        self._last_lost = ""

    def run(self) -> None:
        try:
            for slot in self._schedule.slots:
                self._workers[slot] = start_worker(slot.gpus, self._setup)
            while not self._schedule.is_finished:
                if not self._workers:
                    raise EngineError(f"{self._last_lost} No other process runs the model; what was committed is kept.")
                self._assign_to_idle()
                self._wait()
                self._listen()
        except BaseException:
            for worker in self._workers.values():
                worker.process.terminate()
            raise
        finally:
            _end(list(self._workers.values()))

    def _assign_to_idle(self) -> None:
        for slot, worker in self._workers.items():
            if worker.idle and (block := self._schedule.assign(slot)) is not None:
                worker.idle = False
                worker.send(Assign(block))

    def _wait(self) -> None:
        deadline = min(map(self._deadline, self._workers))
        timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()) + 0.01
        workers = self._workers.values()
        wait([each for worker in workers for each in (worker.connection, worker.process.sentinel)], timeout)

    def _listen(self) -> None:
        for slot, worker in list(self._workers.items()):
            if (message := worker.receive()) is not None:
                self._handle(slot, message)
            elif time.monotonic() > self._deadline(slot):
                self._replace(slot, f"nothing was heard of it for {time.monotonic() - worker.heard:,.0f} s.")

    def _deadline(self, slot: Slot) -> float:
        worker = self._workers[slot]
        if not worker.ready:
            return worker.heard + LOADING_SECONDS
        return worker.heard + self._silent_seconds if slot.in_work else math.inf

    def _handle(self, slot: Slot, message: FromWorker) -> None:
        worker = self._workers[slot]
        match message:
            case Ready(engine):
                worker.ready = slot.ever_ready = True
                self._on_ready(engine)
            case Idle():
                worker.idle = True
            case WantsMore():
                block = self._schedule.assign_ahead(slot)
                worker.send(NoMore() if block is None else Assign(block))
            case WorkerLost(reason):
                self._replace(slot, reason)
            case RunFailed(error):
                raise error
            case done:
                self._schedule.record(slot, done)

    def _replace(self, slot: Slot, reason: str) -> None:
        self._last_lost = f"The process on GPU {slot.gpus} was lost: {reason}"
        self._on_worker_lost(self._last_lost)
        self._workers[slot].kill()
        self._schedule.requeue(slot, reason)
        if slot.is_given_up:
            del self._workers[slot]
        else:
            self._workers[slot] = start_worker(slot.gpus, self._setup)


def _end(workers: Sequence[Worker]) -> None:
    """End all workers, and those that do not want to."""
    try:
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in workers:
            # Ends a worker that waits for more.
            worker.close()
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()
