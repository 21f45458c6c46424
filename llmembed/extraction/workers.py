"""A process that runs the model on its own GPUs: it asks for blocks of texts and commits them.

In: blocks, through a pipe. Out: committed shards, and messages about them. It exits with the process that started it.
Knows no other worker.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Lock, Thread
from typing import Any

from llmembed.backbones import Backbone, BackboneSpec, load_backbone
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.errors import BackboneError, EngineError, LLMEmbedError
from llmembed.extraction.embedding import Block, embed_blocks
from llmembed.extraction.messages import (
    Assign,
    BadTextsFound,
    BatchEmbedded,
    FromWorker,
    Idle,
    NoMore,
    Ready,
    RunFailed,
    ShardCommitted,
    ToWorker,
    WantsMore,
    WorkerLost,
)
from llmembed.parallel import exit_with_parent, starting_processes
from llmembed.storage import open_store

# Seconds that a worker has to free its GPUs before it is killed, and to be gone after that.
GRACE_SECONDS = 30.0

Load = Callable[..., Backbone]


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker of an extraction runs and where it commits.

    Attributes:
        spec, files: the model.
        url: where the cache lies.
        loading: options of `load`.
        load: what loads the backbone.
    """

    spec: BackboneSpec
    files: ModelFiles
    url: str
    loading: dict[str, Any]
    load: Load = load_backbone


@dataclass
class Worker:
    """A worker as the process sees it that started it: the process, and the pipe to it.

    Attributes:
        ready, idle: it has loaded the model; it waits for a block.
        heard: when it last said something, or was told something to work on.
    """

    process: SpawnProcess
    connection: Connection
    ready: bool = False
    idle: bool = False
    heard: float = field(default_factory=time.monotonic)
    _sending: Thread | None = field(default=None, init=False)

    def send(self, message: ToWorker) -> None:
        """Send a message without waiting for it to be read."""

        def send() -> None:
            # A worker that has just died reads nothing; its end is seen by whoever waits for it.
            with suppress(OSError):
                self.connection.send(message)

        self.heard = time.monotonic()
        # A block is larger than a pipe, and a worker that was stopped would hold up its sender.
        self._sending = Thread(target=send, daemon=True)
        self._sending.start()

    def receive(self) -> FromWorker | None:
        """Return what it said next, which is `WorkerLost` if its process ended without a word; None if nothing yet."""
        # One that died may have said something before.
        died = not self.process.is_alive()
        if self.connection.poll():
            self.heard = time.monotonic()
            try:
                message: FromWorker = self.connection.recv()
                return message
            except (EOFError, OSError):
                self.process.join(GRACE_SECONDS)
        elif not died:
            return None
        return WorkerLost(f"it ended with exit code {self.process.exitcode}.")

    def close(self) -> None:
        """Close the pipe, which ends a worker that waits for more; nothing of it where something is being sent."""
        # A number of a file that is closed under a thread that writes to it may soon be another file's.
        if self._sending is None or not self._sending.is_alive():
            self.connection.close()

    def kill(self) -> None:
        """Kill the process, whatever it does, and wait for its end."""
        self.process.kill()
        self.process.join(GRACE_SECONDS)
        if self._sending is not None:
            self._sending.join(GRACE_SECONDS)
        self.close()


def start_worker(gpus: str, setup: WorkerSetup) -> Worker:
    """Start a worker on GPUs, a value of CUDA_VISIBLE_DEVICES."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, gpus, setup))
    with starting_processes():
        process.start()
    theirs.close()
    return Worker(process, ours)


class _Dealer:
    """The dealer as its worker sees it: the other end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = Lock()

    def send(self, message: FromWorker) -> None:
        # Three threads tell of what they did: one tokenises, one embeds, one writes.
        with self._sending:
            self._connection.send(message)

    def ask(self, question: Idle | WantsMore) -> Block | None:
        self.send(question)
        answer: ToWorker = self._connection.recv()
        match answer:
            case Assign(block):
                return block
            case NoMore():
                return None


def _work(connection: Connection, gpus: str, setup: WorkerSetup) -> None:
    """Run one worker until the dealer closes the pipe."""
    # Before torch or vLLM is imported.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    # Ctrl-C reaches every process of a terminal; the dealing process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    exit_with_parent()
    dealer = _Dealer(connection)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            with closing(_load(gpus, setup)) as backbone:
                dealer.send(Ready(backbone.engine))
                _embed_assigned(backbone, Cache(open_store(setup.url), setup.spec), dealer)
        except EngineError as error:
            dealer.send(WorkerLost(str(error)))
        except LLMEmbedError as error:
            dealer.send(RunFailed(error))


def _load(gpus: str, setup: WorkerSetup) -> Backbone:
    backbone = setup.load(setup.spec, setup.files, **setup.loading)
    if gpus and backbone.engine.device == "cpu":
        raise BackboneError("`gpus`: torch can use no GPU here; `make extract` sets up an environment that can.")
    return backbone


def _embed_assigned(backbone: Backbone, cache: Cache, dealer: _Dealer) -> None:
    """Embed and commit what the dealer assigns, and say so, as long as it answers."""
    while (first := dealer.ask(Idle())) is not None:
        # More may come back later, from a worker that is lost; so None is not the end, only a pause.
        blocks = chain([first], iter(lambda: dealer.ask(WantsMore()), None))
        embed_blocks(
            backbone,
            blocks,
            cache,
            lambda texts, tokens: dealer.send(BatchEmbedded(texts, tokens)),
            lambda texts, tokens: dealer.send(ShardCommitted(texts, tokens)),
            lambda bad: dealer.send(BadTextsFound(bad)),
        )
