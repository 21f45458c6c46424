"""A store in the real format that stands in for Llama-2-7B on AG News: 120,000 texts x 5 layers x 4,096, 4.9 GB.

Each class has its own mean, and the layers share correlated noise of a low rank beside noise of their own, so that
accuracy means something: the classes overlap, and what tells them apart is hidden in directions of large variance.
"""

from pathlib import Path

import numpy as np
import polars as pl

from llmembed.backbones import BackboneSpec
from llmembed.cache import Cache
from llmembed.cache.records import ExtractionRecord
from llmembed.cache.shard import EmbeddedRows
from llmembed.datasets import Dataset, load_dataset
from llmembed.extraction import SHARD_ROWS
from llmembed.identity import text_key
from llmembed.requests import ExtractionRequest, Reading

LAYERS, DIM, CLASSES, RANK = (28, 29, 30, 31, 32), 4096, 4, 256


def make_store(folder: Path, rows: int = 120_000, test_rows: int = 7_600) -> tuple[Dataset, Path]:
    """Write a data set and its cache under `folder`, unless they are there; give the data set and the cache's root."""
    table, root = folder / "synthetic.parquet", folder / "cache"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        labels = np.random.default_rng(0).integers(0, CLASSES, rows + test_rows)
        _write_cache(root, labels)
        splits = ["train"] * rows + ["test"] * test_rows
        columns = {"text": _texts(len(labels)), "label": [f"class {label}" for label in labels], "split": splits}
        pl.DataFrame(columns).write_parquet(table)
    return load_dataset(str(table)), root


def _texts(rows: int) -> list[str]:
    return [f"text {row}" for row in range(rows)]


def _write_cache(root: Path, labels: np.ndarray) -> None:
    spec = BackboneSpec(
        model="synthetic-7b",
        weights="0" * 64,
        tokenizer="0" * 64,
        depth=32,
        layers=LAYERS,
        dim=DIM,
        pooling="mean",
        max_length=256,
    )
    cache = Cache.at(root, "synthetic", "synthetic-7b", spec)
    draw = np.random.default_rng(1)
    means = 0.03 * draw.standard_normal((CLASSES, len(LAYERS), DIM), np.float32)
    mixing = draw.standard_normal((RANK, len(LAYERS) * DIM), np.float32) / np.sqrt(RANK)
    scales = np.exp(draw.standard_normal((len(LAYERS), DIM), np.float32) / 2)
    texts = _texts(len(labels))
    for start in range(0, len(labels), SHARD_ROWS):
        own = labels[start : start + SHARD_ROWS]
        shared = draw.standard_normal((len(own), RANK), np.float32) @ mixing
        noise = draw.standard_normal((len(own), len(LAYERS), DIM), np.float32)
        embeddings = (means[own] + shared.reshape(noise.shape) + noise) * scales
        keys = [text_key(text) for text in texts[start : start + SHARD_ROWS]]
        tokens, truncated = np.full(len(own), 54, np.int32), np.zeros(len(own), bool)
        cache.write_shard(EmbeddedRows(keys, tokens, truncated, embeddings.astype(np.float16)), {})
    cache.record_extraction(
        ExtractionRecord(
            rows=len(labels),
            embedded=len(labels),
            reused=0,
            truncated=0,
            tokens=54 * len(labels),
            seconds=0.0,
            texts_per_second=0.0,
            tokens_per_second=0.0,
            mfu=None,
            watt_hours=None,
            engine={},
            bytes=cache.size,
            repaired=0,
            cache=cache.url,
            backbone="synthetic-7b",
            request=ExtractionRequest(reading=Reading(argument="synthetic")),
        )
    )
