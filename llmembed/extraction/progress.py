"""How far an extraction is: what is embedded, what is committed, and what it cost. Knows no text and no model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmembed.backbones import EngineInfo


@dataclass(frozen=True)
class Progress:
    """Where an extraction stands: texts embedded of all that are missing, and what they cost so far."""

    done: int
    total: int
    tokens: int
    bytes: int
    seconds: float


class Tally:
    """Counts what is embedded, from the moment when the model is loaded; of several processes the first one.

    `done` reaches the total only when every missing text is committed.
    """

    def __init__(self, total: int, row_bytes: int, on_progress: Callable[[Progress], None]) -> None:
        self.embedded = self.committed = 0
        self.engine: EngineInfo | None = None
        self._last = Progress(0, total, 0, 0, 0.0)
        self._start = 0.0
        self._row_bytes = row_bytes
        self._on_progress = on_progress

    def ready(self, engine: EngineInfo) -> None:
        """Take the engine of a process that has loaded the model."""
        if self.engine is None:
            self.engine, self._start = engine, time.perf_counter()

    def batch(self, texts: int, tokens: int) -> None:
        """Count what was embedded; what of it was lost or cannot be stored comes again with negative numbers."""
        self.embedded += texts
        last, seconds = self._last, time.perf_counter() - self._start
        held_back = last.total if self.committed == last.total else last.total - 1
        done = min(self.embedded, held_back)
        self._last = Progress(done, last.total, last.tokens + tokens, self.embedded * self._row_bytes, seconds)
        self._on_progress(self._last)

    def shard(self, texts: int, tokens: int) -> None:
        """Count what was committed."""
        self.committed += texts

    def finish(self) -> Progress:
        """Return how much was committed in the end."""
        if self.embedded:
            self._last = replace(self._last, done=self.committed, bytes=self.committed * self._row_bytes)
            self._on_progress(self._last)
        return self._last
