"""Do both engines compute the same? A sample of texts through each of them, compared layer by layer.

In: a spec, its model and texts. Out: a `Parity`. Reads and writes no cache.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmembed.backbones import BackboneSpec, EngineInfo, load_backbone
from llmembed.backbones.weights import ModelFiles
from llmembed.choices import EngineName

# Largest relative error by what an engine computes in. Measured: 3e-6 in float32 on the CPU; bfloat16 differs from
# float32 by 0.9 %. The next layer of a model differs by ten times more than any of these.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class LayerParity:
    """How two engines agree on one layer: lowest cosine and largest relative error (L2) of a text."""

    layer: int
    cosine: float
    relative_error: float


@dataclass(frozen=True)
class Parity:
    """How two engines agree.

    Attributes:
        rows: texts that were compared.
        tokens: their tokens.
        layers: agreement by layer, in the order of the spec.
        tolerance: largest relative error that passes.
        passed: every layer is within the tolerance.
        engines: what computed, both of them.
    """

    rows: int
    tokens: int
    layers: tuple[LayerParity, ...]
    tolerance: float
    passed: bool
    engines: tuple[EngineInfo, EngineInfo]


def check_parity(
    spec: BackboneSpec,
    files: ModelFiles,
    texts: Sequence[str],
    *,
    rows: int = 64,
    tolerance: float | None = None,
    tensor_parallel: int = 1,
) -> Parity:
    """Embed a sample of texts, from the shortest to the longest, with transformers and with vLLM, and compare.

    `tolerance` is the largest relative error that passes; where None, it goes by the less exact dtype of the two.

    Raises:
        BackboneError: one of the engines cannot run the model here.
    """
    by_length = sorted(set(texts), key=lambda text: (len(text), text))
    sample = [by_length[i] for i in np.unique(np.linspace(0, len(by_length) - 1, rows).astype(int))]
    reference, ours, tokens = _embed(spec, files, sample, "transformers")
    given, theirs, _ = _embed(spec, files, sample, "vllm", tensor_parallel=tensor_parallel)
    layers = tuple(_compare(layer, given[:, column], reference[:, column]) for column, layer in enumerate(spec.layers))
    if tolerance is None:
        tolerance = max(TOLERANCE[engine.dtype] for engine in (ours, theirs))
    passed = all(layer.relative_error <= tolerance for layer in layers)
    return Parity(len(sample), tokens, layers, tolerance, passed, (ours, theirs))


def _embed(
    spec: BackboneSpec, files: ModelFiles, texts: Sequence[str], engine: EngineName, **loading: Any
) -> tuple[np.ndarray, EngineInfo, int]:
    with closing(load_backbone(spec, files, engine=engine, **loading)) as backbone:
        tokens = backbone.tokenize(texts)
        (embeddings,) = backbone.embed([tokens])
        return embeddings, backbone.engine, int(tokens.lengths.sum())


def _compare(layer: int, given: np.ndarray, reference: np.ndarray) -> LayerParity:
    norms = np.linalg.norm(given, axis=1), np.linalg.norm(reference, axis=1)
    cosine = (given * reference).sum(axis=1) / (norms[0] * norms[1])
    error = np.linalg.norm(given - reference, axis=1) / norms[1]
    # A NaN must not pass: min and max hand it on, and it is within no tolerance.
    return LayerParity(layer, float(cosine.min()), float(error.max()))
