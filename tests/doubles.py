"""Real objects that stand in for what would be dangerous, large or slow: engines that die, hang, or run out of memory.

They are tiny models that really run; `loading` is where workers and tests take them instead of the usual ones.
"""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from llmembed.backbones import BackboneSpec
from llmembed.backbones.transformers import TransformersBackbone
from llmembed.backbones.weights import ModelFiles
from llmembed.errors import EngineError

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
