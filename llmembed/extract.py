"""Stage 1: which texts of a data set are missing from the cache? Embed those and commit them shard by shard.

In: a data set and what fixes the numbers. Out: a cache that covers the data set, and an `Extraction` that says what was
done. Tokenising the next block and writing the last one run beside the model. Knows no labels, no fusion, no head.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.backbones import Backbone, BackboneSpec, OnBatch, StoredDtype, Tokens, describe_backbone, load_backbone
from llmembed.backbones.precision import stored
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.cache.shard import Rows
from llmembed.dataset import Dataset, text_key
from llmembed.job import Pooling

# One shard: what a kill can cost (16 s with MiniLM on a laptop) against the number of files (250 for a million texts).
SHARD_ROWS = 4096
# The timed sample of a dry run.
SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Progress:
    """Where an extraction stands: texts embedded of all that are missing, and what they cost so far."""

    done: int
    total: int
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes:
        rows: rows of the data set; each was either embedded or reused.
        embedded: distinct texts that the model read in this run.
        reused: rows whose embeddings were there already, or belong to an equal text.
        truncated: rows whose text is longer than the length limit.
        tokens: tokens that the model read in this run.
        seconds: wall time of the run, loading the model included.
        texts_per_second: embedded texts per second of embedding.
        bytes: size of all shards of the cache.
        repaired: damaged shards that were found and made again.
        cache: folder of the cache.
        dataset: the words of a command line that name the data set.
        options: the words that say how it was extracted, where that differs from its job.
        reading: the arguments of `load_dataset` that read it.
        backbone: where the backbone was found: a name, a hub id or a folder.
    """

    rows: int
    embedded: int
    reused: int
    truncated: int
    tokens: int
    seconds: float
    texts_per_second: float
    bytes: int
    repaired: int
    cache: str
    dataset: list[str]
    options: list[str]
    reading: dict[str, Any]
    backbone: str


@dataclass(frozen=True)
class Estimate:
    """What an extraction would do: `expected_seconds` comes from a short timed sample of the missing texts."""

    rows: int
    missing: int
    tokens: int
    truncated: int
    bytes: int
    expected_seconds: float
    cache: str


@dataclass(frozen=True)
class Plan:
    """What is to be extracted: a data set, the spec that fixes the numbers, the model's files, the cache to fill."""

    dataset: Dataset
    spec: BackboneSpec
    files: ModelFiles
    cache: Cache
    options: list[str]

    def missing(self) -> dict[bytes, str]:
        """Give the distinct texts that are not in the cache, by key, in the order of the data set."""
        text_of = {text_key(text): text for text in self.dataset.texts()}
        keys = list(text_of)
        return {keys[i]: text_of[keys[i]] for i in self.cache.locate(keys).missing}


def plan_extraction(
    dataset: Dataset,
    *,
    root: Path,
    backbone: str | None = None,
    layers: Sequence[int] | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    template: str | None = None,
    dtype: StoredDtype | None = None,
) -> Plan:
    """State what is to be extracted; what is not given comes from the data set's job. Loads no model, writes nothing.

    Raises:
        BackboneError: the model cannot be found or does not have such layers.
        CacheError: the folder of the cache holds something else.
    """
    job = dataset.job
    spec, files = describe_backbone(
        backbone or job.backbone,
        layers=layers or job.layers,
        pooling=pooling or job.pooling,
        max_length=max_length,
        at_most=job.max_length,
        template="{text}" if template is None else template,
        dtype=dtype or "float16",
    )
    options = {
        "backbone": backbone,
        "layers": layers and ",".join(map(str, layers)),
        "pooling": pooling,
        "max-length": max_length,
        "template": template,
        "dtype": dtype,
    }
    words = [word for option, value in options.items() if value is not None for word in (f"--{option}", str(value))]
    return Plan(dataset, spec, files, Cache.at(root, dataset.name, files.name, spec), words)


def extract(
    plan: Plan, *, device: str | None = None, on_progress: Callable[[Progress], None] = lambda _: None
) -> Extraction:
    """Embed what is missing and commit it, a shard of 4,096 texts at a time.

    Killed, it loses the shard in work and the one being written.

    Raises:
        BackboneError: the model cannot be loaded, or gave a value that must not be stored; its shard does not count.
    """
    start = time.perf_counter()
    repaired = plan.cache.prepare()
    done = _embed_missing(plan, device, on_progress)
    located = plan.cache.locate([text_key(text) for text in plan.dataset.texts()])
    report = Extraction(
        rows=len(plan.dataset.table),
        embedded=done.done,
        reused=len(plan.dataset.table) - done.done,
        truncated=int(plan.cache.truncated(located).sum()),
        tokens=done.tokens,
        seconds=round(time.perf_counter() - start, 3),
        texts_per_second=round(done.done / done.seconds, 1) if done.done else 0.0,
        bytes=plan.cache.size,
        repaired=repaired,
        cache=str(plan.cache.folder),
        dataset=plan.dataset.words,
        options=plan.options,
        reading=plan.dataset.reading,
        backbone=plan.files.found_as,
    )
    plan.cache.record_extraction(asdict(report))
    return report


def estimate(plan: Plan, *, device: str | None = None) -> Estimate:
    """Say what an extraction would do, from all texts tokenised and a sample of them embedded; writes nothing."""
    missing = list(plan.missing().values())
    tokens, truncated, seconds = 0, 0, 0.0
    if missing:
        backbone = load_backbone(plan.spec, plan.files, device=device)
        all_tokens = backbone.tokenize(missing)
        tokens, truncated = int(all_tokens.lengths.sum()), int(all_tokens.truncated.sum())
        sample = backbone.tokenize(missing[:: max(1, len(missing) // SAMPLE_ROWS)])
        start = time.perf_counter()
        backbone.embed(sample)
        seconds = (time.perf_counter() - start) * tokens / int(sample.lengths.sum())
    return Estimate(
        rows=len(plan.dataset.table),
        missing=len(missing),
        tokens=tokens,
        truncated=truncated,
        bytes=len(missing) * _row_bytes(plan.spec),
        expected_seconds=round(seconds, 1),
        cache=str(plan.cache.folder),
    )


def _embed_missing(plan: Plan, device: str | None, on_progress: Callable[[Progress], None]) -> Progress:
    missing = plan.missing()
    done = Progress(0, len(missing), 0, 0, 0.0)
    if not missing:
        return done
    backbone = load_backbone(plan.spec, plan.files, device=device)
    # A folder that cannot be written to shows here, not after the first shard.
    plan.cache.claim()
    start = time.perf_counter()

    def on_batch(texts: int, tokens: int) -> None:
        nonlocal done
        bytes_done = done.bytes + texts * _row_bytes(plan.spec)
        seconds = time.perf_counter() - start
        done = Progress(done.done + texts, done.total, done.tokens + tokens, bytes_done, seconds)
        on_progress(done)

    _embed_shards(backbone, missing, plan.cache, on_batch)
    return done


def _row_bytes(spec: BackboneSpec) -> int:
    return len(spec.layers) * spec.dim * np.dtype(spec.dtype).itemsize


def _embed_shards(backbone: Backbone, missing: dict[bytes, str], cache: Cache, on_batch: OnBatch) -> None:
    keys = list(missing)
    blocks = [keys[start : start + SHARD_ROWS] for start in range(0, len(keys), SHARD_ROWS)]
    with ThreadPoolExecutor(1) as tokenizing, ThreadPoolExecutor(1) as writing:
        tokenized = tokenizing.submit(_tokenize, backbone, blocks[0], missing)
        written: Future[bool] | None = None
        for number, block in enumerate(blocks):
            tokens = tokenized.result()
            if number + 1 < len(blocks):
                tokenized = tokenizing.submit(_tokenize, backbone, blocks[number + 1], missing)
            texts = [missing[key] for key in block]
            embeddings = stored(backbone.embed(tokens, on_batch), backbone.spec, texts)
            if written is not None:
                written.result()
            rows = Rows(block, tokens.lengths, tokens.truncated, embeddings)
            written = writing.submit(cache.write_shard, rows, backbone.engine)
        if written is not None:
            written.result()


def _tokenize(backbone: Backbone, block: Sequence[bytes], missing: dict[bytes, str]) -> Tokens:
    return backbone.tokenize([missing[key] for key in block])
