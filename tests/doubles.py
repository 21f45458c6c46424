"""Real objects that stand in for what would be dangerous, large, slow or far: engines that die, hang, or run out of
memory, and a store that is no folder.

The engines are tiny models that really run; `loading` is where workers and tests take them instead of the usual ones.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch

from llmembed.backbones import BackboneSpec
from llmembed.backbones.transformers import TransformersBackbone
from llmembed.backbones.weights import ModelFiles
from llmembed.errors import EngineError
from llmembed.storage import Entry, Stat

# A word that stands in the texts which do it.
KILLING, HANGING, FAILING = "killjoy", "stopgap", "fallacy"


class Touchy(TransformersBackbone):
    """An engine that does something to itself when it sees the tokens of a word."""

    def __init__(self, spec: BackboneSpec, files: ModelFiles, *, device: str | None = None) -> None:
        super().__init__(spec, files, device="cpu")
        self._reactions: list[tuple[list[int], Callable[[], Any]]] = []

    def react(self, word: str, reaction: Callable[[], Any]) -> None:
        # Without the special token before it.
        self._reactions.append((self.tokenize([f" {word}"]).ids[0][1:], reaction))

    def _forward(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        for tokens, reaction in self._reactions:
            if any(contains(text, tokens) for text in ids):
                reaction()
        return super()._forward(ids)


def contains(text: Sequence[int], tokens: list[int]) -> bool:
    return any(list(text[start : start + len(tokens)]) == tokens for start in range(len(text)))


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.45 GiB.")


def load_touchy(spec: BackboneSpec, files: ModelFiles, **loading: Any) -> Touchy:
    """Load an engine that kills or stops its own process, or runs out of memory, on a word each."""
    backbone = Touchy(spec, files)
    backbone.react(KILLING, lambda: os.kill(os.getpid(), signal.SIGKILL))
    backbone.react(HANGING, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    backbone.react(FAILING, out_of_memory)
    return backbone


class Cramped(TransformersBackbone):
    """An engine with memory for so many tokens at a time."""

    TOKENS = 200

    def _forward(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        if len(ids) * max(map(len, ids)) > self.TOKENS:
            out_of_memory()
        return super()._forward(ids)


def load_never(*described: Any, **loading: Any) -> None:
    """Fail as an engine does that does not find the memory it wants."""
    raise EngineError("vLLM could not start.")


class MemoryStore:
    """A store in the memory of this process, as far from a folder as an object store: no mapping, no links, no locks.

    Stores of the same URL hold the same objects.
    """

    # Of every object by its whole URL: content, stamp and time.
    objects: ClassVar[dict[str, tuple[bytes, int, float]]] = {}
    _stamps, _one_by_one = count(), threading.Lock()

    def __init__(self, url: str) -> None:
        self.url = url

    def child(self, folder: str) -> "MemoryStore":
        return MemoryStore(f"{self.url}/{folder}")

    def entries(self, folder: str) -> list[Entry]:
        above = f"{folder}/" if folder else ""
        start = f"{self.url}/{above}"
        below = [name.removeprefix(start).partition("/") for name in list(self.objects) if name.startswith(start)]
        kinds = {name: "folder" if slash else "regular" for name, slash, _ in below}
        return [Entry(f"{above}{name}", kind) for name, kind in sorted(kinds.items()) if not name.startswith(".")]

    def stat(self, name: str) -> Stat | None:
        found = self.objects.get(f"{self.url}/{name}")
        return found and Stat(len(found[0]), found[1], found[2])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        found = self.objects.get(f"{self.url}/{name}")
        if found is None:
            raise FileNotFoundError(name)
        return found[0][start:stop]

    def create(self, name: str, content: bytes | memoryview) -> bool:
        with self._one_by_one:
            if self.stat(name) is None:
                self.put(name, content)
            return self.read(name) == content

    def put(self, name: str, content: bytes | memoryview) -> None:
        self.objects[f"{self.url}/{name}"] = bytes(content), next(self._stamps), time.time()

    def delete(self, name: str) -> None:
        self.objects.pop(f"{self.url}/{name}", None)

    def delete_abandoned(self, folder: str) -> None:
        """Nothing is ever half written here."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield
