"""The small records of a cache, and what else lies in its folder: made again, named with a remedy, or left alone."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from toy_cache import (
    TOY,
    assert_same_bits,
    extraction_record,
    read,
    shard_files,
)

from llmembed.cache import ORPHAN_SECONDS, Cache
from llmembed.cache.shard import CACHE_FORMAT
from llmembed.errors import CacheError
from llmembed.matrix import Derived
from llmembed.requests import ExtractionRequest, Reading
from llmembed.storage import Entry
from llmembed.storage.local import LocalStore

GONE = {
    "commits": f"{'a' * 24}.json",
    "shards": f"{'a' * 24}-{'a' * 8}.parquet",
    "extractions": "20990101T000000.000000Z-abcd.json",
}
UNSEALED = {
    "rows": 3,
    "embedded": 3,
    "reused": 0,
    "truncated": 0,
    "tokens": 9,
    "seconds": 1.5,
    "texts_per_second": 2.0,
    "tokens_per_second": 6.0,
    "mfu": None,
    "watt_hours": None,
    "engine": {"engine": "toy"},
    "bytes": 99,
    "repaired": 0,
    "cache": "cache/films/toy",
    "dataset": ["films"],
    "options": ["--layers", "-2,-1", "--pooling", "max", "--max-length", "64"],
    "reading": {"argument": "films", "limit": 3},
    "backbone": "toy",
}


def test_another_format_is_refused_naming_both(filled):
    cache, _ = filled
    record = json.loads((Path(cache.url) / "spec.json").read_text())
    (Path(cache.url) / "spec.json").write_text(json.dumps(record | {"format": 2}))
    for door in (lambda: Cache.open(cache.url), lambda: Cache.at(Path(cache.url).parent.parent, "films", "toy", TOY)):
        with refused(CacheError, match=rf"format 2; .* reads format {CACHE_FORMAT}\..*fix: .* --backbone toy"):
            door()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 1, "spec": {}}', b"\xff"]
)
def test_a_damaged_spec_is_refused_naming_the_file(content, filled):
    cache, _ = filled
    (Path(cache.url) / "spec.json").write_bytes(content)
    with refused(CacheError, match=r"spec\.json is damaged .*fix: llmembed extract films --backbone toy --cache"):
        Cache.open(cache.url)


def test_another_spec_in_the_same_folder_is_refused(filled):
    cache, _ = filled
    other = TOY.model_copy(update={"pooling": "max"})
    folder = Path(cache.url).with_name(f"toy-{other.fingerprint}")
    Path(cache.url).rename(folder)
    with refused(CacheError, match=r"holds the embeddings of another backbone: .*pooling='mean'.*--cache"):
        Cache.at(folder.parent.parent, "films", "toy", other)


def test_uncommitted_shards_are_deleted_once_they_are_an_hour_old(filled):
    cache, rows = filled
    committed = shard_files(cache)
    young, old = (Path(cache.url) / "shards" / f"{name * 24}-{name * 8}.parquet" for name in "ab")
    for path, age in ((young, ORPHAN_SECONDS - 60), (old, ORPHAN_SECONDS + 60), *((path, 1e6) for path in committed)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert cache.prepare() == 0
    assert shard_files(cache) == sorted([*committed, young])
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)


def test_what_other_processes_delete_meanwhile_does_not_disturb_prepare(filled, monkeypatch):
    cache, rows = filled
    gone = {folder: f"{folder}/{name}" for folder, name in GONE.items()}
    entries = LocalStore.entries

    def with_gone(store, folder):
        return [*entries(store, folder), Entry(gone.get(folder, "gone"), "regular")]

    monkeypatch.setattr(LocalStore, "entries", with_gone)
    assert cache.prepare() == 0
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)


@pytest.mark.parametrize(
    "change",
    [{"dim": 5}, {"layers": (1, 2, 4)}, {"pooling": "max"}, {"dtype": "float32"}, {"depth": 6}, {"model": "b"}],
)
def test_a_spec_that_is_not_that_of_the_folder_is_refused_and_written_again(change, filled):
    cache, rows = filled
    path = Path(cache.url) / "spec.json"
    before = path.read_bytes()
    path.write_text(json.dumps({"format": 1, "spec": TOY.model_copy(update=change).model_dump(mode="json")}))
    with refused(CacheError, match=r"spec\.json is damaged or of another cache: .*fix: llmembed extract films"):
        Cache.open(cache.url)
    again = Cache.at(Path(cache.url).parent.parent, "films", "toy", TOY)
    assert again.prepare() == 0 and path.read_bytes() == before
    assert_same_bits(read(again, rows.keys, TOY.layers), rows.embeddings)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 1}'])
def test_a_spec_that_is_lost_beside_whole_shards_comes_back(content, filled):
    cache, _ = filled
    path = Path(cache.url) / "spec.json"
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with refused(CacheError, match=r"spec\.json is (missing|damaged).*fix: llmembed extract films --backb"):
        Cache.latest(Path(cache.url).parent.parent)
    assert Cache.at(Path(cache.url).parent.parent, "films", "toy", TOY).prepare() == 0
    assert path.read_bytes() == before and len(shard_files(cache)) == 3


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.write_text("notes")])
def test_foreign_files_and_folders_in_a_cache_are_left_alone(make, filled):
    cache, rows = filled
    cache.derived.memoize({"a": 1}, lambda: Derived({"ones": np.ones(3)}))
    cache.derived.write()
    done = extraction_record()
    cache.record_extraction(done)
    foreign = [
        Path(cache.url) / folder / "zz foreign" for folder in (".", "commits", "shards", "derived", "extractions")
    ]
    for path in foreign:
        make(path)
        os.utime(path, (0, 0))
    opened = Cache.latest(Path(cache.url).parent.parent)
    assert opened.last_extraction() == done and opened.prepare() == 0
    assert opened.derived.memoize({"a": 1}, lambda: pytest.fail("it is kept")).memoized
    assert_same_bits(read(opened, rows.keys, TOY.layers), rows.embeddings)
    assert all(path.exists() for path in foreign)


def test_hidden_files_of_dead_writers_are_deleted(filled):
    cache, _ = filled
    for folder in (".", "shards", "commits", "derived", "extractions"):
        (Path(cache.url) / folder).mkdir(exist_ok=True)
        (Path(cache.url) / folder / ".half.json.0123abcd").write_text("{")
    assert cache.prepare() == 0
    assert not list(Path(cache.url).rglob(".*"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"rows": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_extraction_record_is_named_and_an_extraction_deletes_it(content, filled):
    cache, _ = filled
    done = extraction_record(reading={"limit": 9})
    cache.record_extraction(done)
    (whole,) = Path(cache.url).glob("extractions/*")
    (record := whole.with_name(f"9{whole.name[1:]}")).write_bytes(content)
    message = rf"extractions/{record.name} is damaged .*fix: llmembed extract films --limit 9 --cache .*"
    for use in (cache.last_extraction, lambda: Cache.latest(Path(cache.url).parent.parent, "films")):
        with refused(CacheError, match=message):
            use()
    assert cache.prepare() == 0 and not record.exists()
    assert Cache.latest(Path(cache.url).parent.parent).last_extraction() == done


def test_an_extraction_record_without_a_seal_counts_if_it_is_well_formed(filled):
    cache, _ = filled
    record = Path(cache.url) / "extractions" / "20260101T000000.000000Z-abcd.json"
    record.parent.mkdir()
    record.write_text(json.dumps(UNSEALED, indent=1))
    last = cache.last_extraction()
    assert (last.tokens, last.backbone) == (9, "toy") and last.request == ExtractionRequest(
        reading=Reading(argument="films", limit=3), layers=(-2, -1), pooling="max", max_length=64
    )
    for changed in (
        UNSEALED | {"backbonf": "m"},
        UNSEALED | {"options": ["--layers", "last"]},
        UNSEALED | {"options": ["--layers"]},
        UNSEALED | {"reading": {}},
    ):
        record.write_text(json.dumps(changed))
        with refused(CacheError, match="is damaged"):
            cache.last_extraction()
