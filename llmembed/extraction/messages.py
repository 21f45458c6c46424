"""What a dealer and each of its workers say to each other: one frozen dataclass for each message.

    worker                                    dealer
    Ready(engine)               ->            once, when the model is loaded
    Idle()                      ->
                                <-            Assign(block), as soon as there is one
      WantsMore()               ->            at any time before all it has is embedded
                                <-            Assign(block) or NoMore(), at once
      BatchEmbedded(1.., 7..)   ->            as the engine goes; negative where texts come again or are bad
      BadTextsFound(texts)      ->            before the commit of their block
      ShardCommitted(1.., 7..)  ->            once for each block, in the order of assignment
    Idle()                      ->            when all it had is committed, and so on
    WorkerLost(reason)          ->            its last word if its engine died; the dealer's own if it says none
    RunFailed(error)            ->            its last word if no other worker would do better

The dealer ends it by closing the pipe. Knows no pipe and no process; messages are pickled on their way.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmembed.backbones import BadText, EngineInfo
from llmembed.errors import LLMEmbedError
from llmembed.extraction.embedding import Block


@dataclass(frozen=True)
class Ready:
    """The worker has loaded the model; `engine` is what embeds with it, as `Backbone.engine` says it."""

    engine: EngineInfo


@dataclass(frozen=True)
class Idle:
    """The worker has committed all it had and waits for a block."""


@dataclass(frozen=True)
class WantsMore:
    """The worker would take another block while it works, and waits for the answer."""


@dataclass(frozen=True)
class BatchEmbedded:
    """So many texts and tokens were embedded; negative numbers of what comes again or cannot be stored."""

    texts: int
    tokens: int


@dataclass(frozen=True)
class BadTextsFound:
    """Texts, by key, that the worker leaves out of their block, and why."""

    texts: Mapping[bytes, BadText]


@dataclass(frozen=True)
class ShardCommitted:
    """The first block that was not committed now is, with so many texts and tokens."""

    texts: int
    tokens: int


@dataclass(frozen=True)
class WorkerLost:
    """The worker embeds no more; another one may."""

    reason: str


@dataclass(frozen=True)
class RunFailed:
    """The worker cannot use the model, nor could another one."""

    error: LLMEmbedError


@dataclass(frozen=True)
class Assign:
    """A block is the worker's to embed and commit."""

    block: Block


@dataclass(frozen=True)
class NoMore:
    """There is no block to take ahead; the worker finishes what it has and is idle then."""


WorkDone = BatchEmbedded | BadTextsFound | ShardCommitted
FromWorker = Ready | Idle | WantsMore | WorkDone | WorkerLost | RunFailed
ToWorker = Assign | NoMore
