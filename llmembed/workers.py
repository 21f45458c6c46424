"""What embeds missing texts and commits them: this process, or one process for each GPU or group of GPUs.

In: blocks of texts. Out: committed shards. Tokenising the next block and writing the last one run beside the model.
With several GPUs this process deals the blocks out, and its workers commit them; the blocks of a worker that dies go to
the others. Knows no data set and no labels.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Lock
from typing import Any

from llmembed.backbones import Backbone, BackboneSpec, OnBatch, Tokens, ignore_batch, load_backbone
from llmembed.backbones.precision import stored
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.cache.shard import Rows
from llmembed.errors import BackboneError, EngineError, LLMEmbedError

# The texts of one shard by key, in its order.
Block = Mapping[bytes, str]
# Seconds that a worker has to free its GPU before it is killed.
PATIENCE = 30.0


def embed_blocks(
    backbone: Backbone, blocks: Iterable[Block], cache: Cache, on_batch: OnBatch, on_shard: OnBatch = ignore_batch
) -> None:
    """Embed blocks with a loaded backbone and commit each as a shard.

    `on_batch` and `on_shard` are told the number of texts and of tokens of what was embedded and of what was committed.

    Raises:
        BackboneError: a value that must not be stored; its block is not committed.
        EngineError: the engine died or ran out of memory.
    """

    def write(rows: Rows) -> None:
        cache.write_shard(rows, backbone.engine)
        on_shard(len(rows.keys), int(rows.tokens.sum()))

    in_work: deque[tuple[Block, Tokens]] = deque()
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as tokenizing, ThreadPoolExecutor(1) as writing:
        for embeddings in backbone.embed(_tokenized(backbone, blocks, tokenizing, in_work), on_batch):
            block, tokens = in_work.popleft()
            kept = stored(embeddings, backbone.spec, list(block.values()))
            if written is not None:
                written.result()
            written = writing.submit(write, Rows(list(block), tokens.lengths, tokens.truncated, kept))
        if written is not None:
            written.result()


def _tokenized(
    backbone: Backbone,
    blocks: Iterable[Block],
    tokenizing: ThreadPoolExecutor,
    in_work: deque[tuple[Block, Tokens]],
) -> Iterator[Tokens]:
    waiting = iter(blocks)

    def tokenize_next() -> tuple[Block, Tokens] | None:
        block = next(waiting, None)
        return None if block is None else (block, backbone.tokenize(list(block.values())))

    following = tokenizing.submit(tokenize_next)
    while (ready := following.result()) is not None:
        following = tokenizing.submit(tokenize_next)
        in_work.append(ready)
        yield ready[1]


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
    **loading: Any,
) -> None:
    """Embed blocks with one process for each group of GPUs, which is a value of CUDA_VISIBLE_DEVICES.

    `loading` are the options of `load_backbone`. `on_ready` is told the engine of every process that loaded the model,
    `on_batch` of every batch (with negative numbers of what was lost), `on_loss` which process was lost and why.

    Raises:
        BackboneError: a worker met a value that must not be stored, or cannot use the model.
        EngineError: every worker was lost.
    """
    workers = [_start(gpus, spec, files, cache.folder, loading) for gpus in groups]
    try:
        _Dealer(workers, blocks, on_ready, on_batch, on_loss).run()
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            # Ends a worker that waits for more.
            worker.connection.close()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()


@dataclass(eq=False)
class _Worker:
    """A process that runs the model, as the dealing process sees it.

    Attributes:
        gpus: its CUDA_VISIBLE_DEVICES.
        process, connection: the process, and the pipe to it.
        uncommitted: numbers of the blocks that it was given and has not committed, in their order.
        texts, tokens: what it embedded and has not committed.
        idle: it waits for a block.
    """

    gpus: str
    process: SpawnProcess
    connection: Connection
    uncommitted: deque[int] = field(default_factory=deque)
    texts: int = 0
    tokens: int = 0
    idle: bool = False


class _Dealer:
    """Deals blocks out until all are committed."""

    def __init__(
        self,
        workers: Sequence[_Worker],
        blocks: Sequence[Block],
        on_ready: Callable[[dict[str, str]], None],
        on_batch: OnBatch,
        on_loss: Callable[[str], None],
    ) -> None:
        self._alive = {worker.connection: worker for worker in workers}
        self._blocks = blocks
        self._waiting = deque(range(len(blocks)))
        self._on_ready, self._on_batch, self._on_loss = on_ready, on_batch, on_loss
        self._reason = ""

    def run(self) -> None:
        while self._waiting or any(worker.uncommitted for worker in self._alive.values()):
            if not self._alive:
                raise EngineError(f"{self._reason} No other process runs the model; what was committed is kept.")
            for worker in self._alive.values():
                if worker.idle and self._waiting:
                    self._give_next(worker)
            wait([*self._alive, *(worker.process.sentinel for worker in self._alive.values())])
            for worker in list(self._alive.values()):
                # One that died may have said something before.
                died = not worker.process.is_alive()
                if worker.connection.poll():
                    self._listen(worker)
                elif died:
                    self._lose(worker, f"it ended with exit code {worker.process.exitcode}.")

    def _listen(self, worker: _Worker) -> None:
        try:
            message, *content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(PATIENCE)
            message, content = "lost", [f"it ended with exit code {worker.process.exitcode}."]
        if message == "ready":
            self._on_ready(*content)
        elif message == "idle":
            worker.idle = True
        elif message == "more" and len(self._waiting) > self._without_work():
            self._give_next(worker)
        elif message == "more":
            # A worker takes some blocks ahead; not those that another would have nothing without.
            self._give(worker, None)
        elif message == "batch":
            self._count(worker, *content)
        elif message == "shard":
            worker.uncommitted.popleft()
            worker.texts, worker.tokens = worker.texts - content[0], worker.tokens - content[1]
        elif message == "failed":
            raise content[0]
        else:
            self._lose(worker, *content)

    def _without_work(self) -> int:
        return sum(not worker.uncommitted for worker in self._alive.values())

    def _give_next(self, worker: _Worker) -> None:
        worker.uncommitted.append(self._waiting.popleft())
        self._give(worker, self._blocks[worker.uncommitted[-1]])

    def _give(self, worker: _Worker, block: Block | None) -> None:
        worker.idle = False
        # A worker that has just died reads nothing; its end is seen next.
        with suppress(OSError):
            worker.connection.send(block)

    def _count(self, worker: _Worker, texts: int, tokens: int) -> None:
        worker.texts, worker.tokens = worker.texts + texts, worker.tokens + tokens
        self._on_batch(texts, tokens)

    def _lose(self, worker: _Worker, reason: str) -> None:
        self._reason = f"The process on GPU {worker.gpus} was lost: {reason}"
        self._on_loss(self._reason)
        self._count(worker, -worker.texts, -worker.tokens)
        self._waiting.extendleft(reversed(worker.uncommitted))
        del self._alive[worker.connection]


def _start(gpus: str, spec: BackboneSpec, files: ModelFiles, folder: Path, loading: dict[str, Any]) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, gpus, spec, files, folder, loading))
    process.start()
    theirs.close()
    return _Worker(gpus, process, ours)


def _work(
    connection: Connection, gpus: str, spec: BackboneSpec, files: ModelFiles, folder: Path, loading: dict[str, Any]
) -> None:
    """Run one worker: ask for blocks and commit them, until the dealing process closes the pipe."""
    # Before torch or vLLM is imported.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    # Ctrl-C reaches every process of a terminal; the dealing process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
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
            backbone = load_backbone(spec, files, **loading)
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
                        Cache(folder, spec),
                        lambda texts, tokens: tell("batch", texts, tokens),
                        lambda texts, tokens: tell("shard", texts, tokens),
                    )
        except EngineError as error:
            tell("lost", str(error))
        except LLMEmbedError as error:
            tell("failed", error)
