"""A process that runs the model on its own GPUs: it asks for blocks of texts and commits them.

In: blocks, through a pipe. Out: committed shards, and messages about them. It ends with the process that started it.
Knows no other worker.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Lock, Thread
from typing import Any

from llmembed.backbones import Backbone, BackboneSpec, load_backbone
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.embedding import Block, embed_blocks
from llmembed.errors import BackboneError, EngineError, LLMEmbedError
from llmembed.parent import die_with_parent, starting_processes
from llmembed.storage import open_store

Load = Callable[..., Backbone]


@dataclass(frozen=True)
class Assignment:
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

    It says `ready` and its engine, then `idle` or `more` when it wants a block (None: there is none for now), `batch`
    and `shard` with numbers of texts and tokens, `bad` with texts that it left out, and at its end `lost` or `failed`.
    """

    process: SpawnProcess
    connection: Connection
    sending: Thread | None = None

    def give(self, block: Block | None) -> None:
        """Send what the worker asked for, without waiting for it to be read."""

        def send() -> None:
            # A worker that has just died reads nothing; its end is seen by whoever waits for it.
            with suppress(OSError):
                self.connection.send(block)

        # A block is larger than a pipe, and a worker that was stopped would hold up its giver.
        self.sending = Thread(target=send, daemon=True)
        self.sending.start()

    def close(self) -> None:
        """Close the pipe, which ends a worker that waits for more; nothing of it where something is being sent."""
        # A number of a file that is closed under a thread that writes to it may soon be another file's.
        if self.sending is None or not self.sending.is_alive():
            self.connection.close()

    def kill(self, patience: float) -> None:
        """Kill the process, whatever it does, and wait so many seconds for its end."""
        self.process.kill()
        self.process.join(patience)
        if self.sending is not None:
            self.sending.join(patience)
        self.close()


def start_worker(gpus: str, assignment: Assignment) -> Worker:
    """Start a worker on GPUs, a value of CUDA_VISIBLE_DEVICES."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, gpus, assignment))
    with starting_processes():
        process.start()
    theirs.close()
    return Worker(process, ours)


def _work(connection: Connection, gpus: str, assignment: Assignment) -> None:
    """Run one worker: ask for blocks and commit them, until the process that deals them out closes the pipe."""
    # Before torch or vLLM is imported.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    # Ctrl-C reaches every process of a terminal; the dealing process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    die_with_parent()
    sending = Lock()

    def tell(*message: Any) -> None:
        with sending:
            connection.send(message)

    def ask(how: str) -> Block | None:
        tell(how)
        block: Block | None = connection.recv()
        return block

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            backbone = assignment.load(assignment.spec, assignment.files, **assignment.loading)
            if gpus and backbone.engine["device"] == "cpu":
                raise BackboneError(
                    "--gpus: torch can use no GPU here; `make extract` sets up an environment that can."
                )
            tell("ready", backbone.engine)
            with closing(backbone):
                while (block := ask("idle")) is not None:
                    # More may come back later, from a worker that is lost; so None is not the end, only a pause.
                    blocks = chain([block], iter(lambda: ask("more"), None))
                    embed_blocks(
                        backbone,
                        blocks,
                        Cache(open_store(assignment.url), assignment.spec),
                        lambda texts, tokens: tell("batch", texts, tokens),
                        lambda texts, tokens: tell("shard", texts, tokens),
                        lambda bad: tell("bad", bad),
                    )
        except EngineError as error:
            tell("lost", str(error))
        except LLMEmbedError as error:
            tell("failed", error)
