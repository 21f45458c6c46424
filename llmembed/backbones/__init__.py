"""Backbones: a frozen language model turns texts into embeddings [rows, layers, dim].

Here: `BackboneSpec` (everything that fixes the numbers), the protocol that every engine keeps, and the two doors:
`describe_backbone` reads a model's files and makes the spec without loading the model, `load_backbone` loads it with an
engine. Knows no data set and no cache.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from llmembed.backbones.vllm.plugin import unsuitable
from llmembed.backbones.weights import ModelFiles, find_model
from llmembed.choices import EngineName, Pooling, StorageDtype
from llmembed.errors import BackboneError, UsageError


class BackboneSpec(BaseModel):
    """Everything that fixes the numbers of an embedding; engine, device and batch size do not belong to it.

    Attributes:
        model: hub id, or the name of the local folder.
        weights: SHA-256 over the configuration and the safetensors files.
        tokenizer: SHA-256 over the tokenizer files.
        depth: number of layers of the model.
        layers: ascending indices by the convention of Hugging Face's `hidden_states`: 0 is the embedding layer, i the
            state after layer i, and the last one the state after the final norm where the model has one.
        dim: width of a layer.
        pooling: how the token states of a text become one vector.
        max_length: tokens, special tokens included; longer texts are truncated.
        template: what the model reads; `{text}` stands for the text.
        dtype: dtype on disk.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str
    tokenizer: str
    depth: int
    layers: tuple[int, ...]
    dim: int
    pooling: Pooling
    max_length: int
    template: str = "{text}"
    dtype: StorageDtype = "float16"

    @property
    def fingerprint(self) -> str:
        """Identify the numbers: 8 hex digits of a SHA-256 over the canonical JSON of the spec."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return sha256(canonical.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: `ids[i]` are the token ids of text i, `truncated` [rows] marks those that were cut."""

    ids: list[list[int]]
    truncated: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Count the tokens of each text, int32 [rows]."""
        return np.fromiter(map(len, self.ids), np.int32, len(self.ids))


@dataclass(frozen=True)
class BadText:
    """Why a text has no embedding: in words, and the first layer and value that cannot be stored, where that is it."""

    reason: str
    layer: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What embeds: the engine, its version and torch's, the device, and the dtype that it computes in."""

    engine: EngineName
    version: str
    torch: str
    device: str
    dtype: str


OnBatch = Callable[[int, int], None]


def ignore_batch(texts: int, tokens: int) -> None:
    """Take no notice of a batch."""


class Backbone(Protocol):
    """What extraction and prediction need of an engine."""

    spec: BackboneSpec
    engine: EngineInfo
    """Recorded with every shard."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Apply the template and tokenise; may run in another thread than `embed`.

        Raises:
            TextError: texts without any token.
        """
        ...

    def embed(self, blocks: Iterable[Tokens], on_batch: OnBatch = ignore_batch) -> Iterator[np.ndarray]:
        """Embed block after block -> float32 [rows, layers, dim] each, in the order given.

        An engine may ask for the next block before it hands over the last one. `on_batch` is told the number of texts
        and of tokens of every batch that is done.

        Raises:
            TextError: texts of the block that would come next, which cannot be embedded; the others can.
            EngineError: the engine died or ran out of memory.
        """
        ...

    def close(self) -> None:
        """Free the device; the backbone is of no use afterwards."""
        ...


def describe_backbone(
    name: str,
    *,
    layers: Sequence[int],
    pooling: Pooling,
    max_length: int | None,
    at_most: int | None = None,
    template: str = "{text}",
    dtype: StorageDtype = "float16",
) -> tuple[BackboneSpec, ModelFiles]:
    """Find a model by name, hub id or folder and state what it will compute; loads no weights.

    `layers` may count from the end. `max_length` must fit the model; `at_most` is cut to what the model has, and is
    the limit where `max_length` is None.

    Raises:
        BackboneError: not found, not safetensors, or layers or length that the model does not have.
    """
    files = find_model(name)
    config = files.config
    if "{text}" not in template:
        raise BackboneError(f"The template {template!r} has no {{text}}; write where the text goes.")
    spec = BackboneSpec(
        model=files.model,
        weights=files.weights_digest(),
        tokenizer=files.tokenizer_digest(),
        depth=config.depth,
        layers=resolve_layers(layers, config.depth, files.model),
        dim=config.dim,
        pooling=pooling,
        max_length=_resolve_length(max_length, at_most, config.positions, files.model),
        template=template,
        dtype=dtype,
    )
    return spec, files


def load_backbone(
    spec: BackboneSpec,
    files: ModelFiles,
    *,
    engine: EngineName | None = None,
    device: str | None = None,
    tensor_parallel: int = 1,
) -> Backbone:
    """Load the model with an engine; where none is named, with vLLM if it can run here, else with transformers.

    `device` is for transformers alone (default: a GPU where there is one), `tensor_parallel`, the number of GPUs that
    share the model, for vLLM alone.

    Raises:
        UsageError: options that the engine does not have.
        BackboneError: the model or the engine cannot be loaded.
    """
    if (engine or choose_engine(files, device=device, tensor_parallel=tensor_parallel)) == "vllm":
        if device is not None:
            raise UsageError(f"`engine='vllm'` and `device={device!r}`: vLLM runs on the GPUs that `gpus` names.")
        if find_spec("vllm") is None:
            raise BackboneError("vLLM is not installed here; `make extract DATASET=…` sets up .venv-gpu with it.")
        from llmembed.backbones.vllm.engine import VllmBackbone

        return VllmBackbone(spec, files, tensor_parallel=tensor_parallel)
    if tensor_parallel > 1:
        raise UsageError(
            f"`tensor_parallel={tensor_parallel}` and `engine='transformers'`: only vLLM can split a model."
        )
    from llmembed.backbones.transformers import TransformersBackbone

    return TransformersBackbone(spec, files, device=device)


def choose_engine(files: ModelFiles, *, device: str | None = None, tensor_parallel: int = 1) -> EngineName:
    """Choose vLLM to split a model, or where it is installed beside a GPU and knows the model; else transformers."""
    if tensor_parallel > 1:
        return "vllm"
    if device is not None or find_spec("vllm") is None or unsuitable(files):
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def resolve_layers(layers: Sequence[int], depth: int, where: str) -> tuple[int, ...]:
    """Turn layer indices, negative ones counted from the end, into ascending indices of 0 ... depth.

    Raises:
        BackboneError: an index out of range, named twice, or none at all.
    """
    outside = [layer for layer in layers if not -depth - 1 <= layer <= depth]
    if outside or not layers:
        raise BackboneError(
            f"{where} has the layers 0 to {depth} (or -{depth + 1} to -1), not {list(outside)}; change `layers`."
        )
    resolved = tuple(sorted(layer % (depth + 1) for layer in layers))
    if len(set(resolved)) < len(resolved):
        raise BackboneError(f"`layers={tuple(layers)}` names a layer of {where} twice: {list(resolved)}.")
    return resolved


def _resolve_length(max_length: int | None, at_most: int | None, positions: int, where: str) -> int:
    if max_length is not None and not 1 <= max_length <= positions:
        raise BackboneError(f"`max_length={max_length}`: {where} has {positions} positions.")
    return max_length or min(at_most or positions, positions)
