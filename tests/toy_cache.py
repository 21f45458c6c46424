"""Caches of made-up rows: random bits of the stored dtype, NaN and subnormals included, for the cache must not care."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np

from llmembed.backbones import BackboneSpec
from llmembed.cache import Cache
from llmembed.cache.records import ExtractionRecord
from llmembed.cache.shard import EmbeddedRows
from llmembed.identity import text_key
from llmembed.requests import ExtractionRequest, Reading

TOY = BackboneSpec(
    model="org/toy", weights="w", tokenizer="t", depth=5, layers=(1, 3, 4), dim=6, pooling="mean", max_length=16
)
ENGINE = {"engine": "toy"}


def made_up(texts, spec=TOY, seed=0):
    """Make rows for texts, [texts, layers, dim] of random bits."""
    draw = np.random.default_rng(seed)
    shape = (len(texts), len(spec.layers), spec.dim)
    bits = np.dtype(spec.dtype).itemsize
    return EmbeddedRows(
        keys=[text_key(text) for text in texts],
        tokens=draw.integers(1, spec.max_length, len(texts), dtype=np.int32),
        truncated=draw.random(len(texts)) < 0.3,
        embeddings=draw.integers(0, 2 ** (8 * bits), shape, dtype=f"u{bits}").view(spec.dtype),
    )


def new_cache(root, dataset="films", backbone="toy", spec=TOY):
    cache = Cache.at(root, dataset, backbone, spec)
    cache.prepare()
    cache.claim()
    return cache


def fill(root):
    """Make a cache of three shards of unequal size -> the cache, and what they hold in one piece."""
    cache = new_cache(root)
    parts = [made_up([f"text {part}/{i}" for i in range(20 + part)], seed=part) for part in range(3)]
    assert [cache.write_shard(part, ENGINE) for part in parts] == [True] * 3
    keys = [key for part in parts for key in part.keys]
    columns = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "truncated", "embeddings")
    )
    return cache, EmbeddedRows(keys, *columns)


def extraction_record(argument="films", *, reading=None, **asked):
    """Make the record of an extraction of three texts that asked for this."""
    request = ExtractionRequest(reading=Reading(argument=argument, **(reading or {})), **asked)
    counts = {"rows": 3, "embedded": 3, "reused": 0, "truncated": 0, "tokens": 9, "bytes": 99, "repaired": 0}
    rates = {"seconds": 1.25, "texts_per_second": 2.0, "tokens_per_second": 6.0, "mfu": None, "watt_hours": None}
    return ExtractionRecord(**counts, **rates, engine=ENGINE, cache="cache/films/toy", backbone="toy", request=request)


def write_missing(cache, rows):
    """Do what an extraction does after `prepare`: write what is missing, in one shard."""
    missing = cache.locate(rows.keys).missing
    if len(missing):
        columns = (column[missing] for column in (rows.tokens, rows.truncated, rows.embeddings))
        cache.write_shard(EmbeddedRows([rows.keys[i] for i in missing], *columns), ENGINE)


def read(cache, keys, layers):
    """Read keys in the order given, [keys, layers, dim]."""
    return cache.read(cache.locate(keys), layers)


def assert_same_bits(values, expected):
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))


def shard_files(cache):
    return sorted(Path(cache.url).glob("shards/*.parquet"))


def commit_files(cache):
    return sorted(Path(cache.url).glob("commits/*.json"))


def flip_byte(path, values):
    """Flip one byte in the middle of the given values of a shard."""
    content, needle = bytearray(path.read_bytes()), np.ascontiguousarray(values).tobytes()
    content[content.index(needle) + len(needle) // 2] ^= 0x01
    path.write_bytes(content)


def recommit(cache, content, number=0):
    """Write a shard anew and let its commit say its size and SHA-256, as if it had been written so."""
    record = commit_files(cache)[number]
    commit = json.loads(record.read_text()) | {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (Path(cache.url) / commit["path"]).write_bytes(content)
    record.write_text(json.dumps(commit))


def embeddings(cache, texts):
    """Return the embeddings of texts in the order given, [texts, layers, dim]."""
    located = cache.locate([text_key(text) for text in texts])
    assert not len(located.missing)
    return cache.read(located, cache.spec.layers)
