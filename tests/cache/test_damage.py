"""Damaged commits and shards: they never pass for embeddings, `prepare` takes them out, and what is written again reads
as before."""

import errno
import json
import mmap
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from refusals import refused
from toy_cache import (
    ENGINE,
    TOY,
    assert_same_bits,
    commit_files,
    extraction_record,
    flip_byte,
    made_up,
    new_cache,
    read,
    shard_files,
    write_missing,
)

from llmembed.cache import Cache, maintenance
from llmembed.errors import CacheError


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_truncated_shard_is_refused_when_it_is_opened(left, filled):
    cache, rows = filled
    path = shard_files(cache)[1]
    path.write_bytes(path.read_bytes()[:left])
    remedy = (
        r"1 of 3 shards .* damaged .* its commit says .*fix: llmembed extract films --backbone org/toy .*--cache .*"
    )
    with refused(CacheError, match=remedy):
        Cache.open(cache.url).locate(rows.keys)
    with refused(CacheError, match=remedy):
        Cache.open(cache.url).layer_views(1)


def test_the_fix_asks_for_what_was_asked_for_in_the_last_extraction(filled):
    cache, rows = filled
    cache.record_extraction(extraction_record("my films.csv", reading={"limit": 9}, pooling="max"))
    shard_files(cache)[0].unlink()
    with refused(
        CacheError, match=r"is missing; .*fix: llmembed extract 'my films\.csv' --limit 9 --pooling max --cache .*"
    ):
        Cache.open(cache.url).locate(rows.keys)


def test_a_shard_of_zeros_is_refused_as_damaged(filled):
    cache, rows = filled
    path = shard_files(cache)[1]
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CacheError):
        Cache.open(cache.url).locate_all(rows.keys)


def test_a_flipped_byte_is_found_and_its_rows_are_dropped_alone(filled):
    cache, rows = filled
    hit = next(path for path in shard_files(cache) if rows.keys[0] in pq.read_table(path)["key"].to_pylist())
    flip_byte(hit, rows.embeddings[:20, 1])
    opened = Cache.open(cache.url)
    for check in (opened.verify, lambda: opened.locate_all(rows.keys)):
        with refused(
            CacheError, match=rf"1 of 3 shards .*{hit.name} has another SHA-256 .*fix: llmembed extract films"
        ):
            check()
    opened.locate_all(rows.keys[20:])
    assert opened.prepare() == 1
    assert not hit.exists() and len(shard_files(cache)) == 2
    assert opened.locate(rows.keys).missing.tolist() == list(range(20))
    assert_same_bits(read(opened, rows.keys[20:], TOY.layers), rows.embeddings[20:])
    opened.verify()
    assert opened.prepare() == 0


def test_dropped_rows_can_be_written_again(filled):
    cache, rows = filled
    for path in shard_files(cache):
        path.write_bytes(path.read_bytes()[:-1])
    assert cache.prepare() == 3 and len(cache.locate(rows.keys).missing) == 63
    assert cache.write_shard(rows, ENGINE) and not cache.write_shard(rows, ENGINE)
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)


def test_a_missing_shard_file_is_found_and_its_rows_are_dropped_alone(filled):
    cache, rows = filled
    gone = pq.read_table(shard_files(cache)[2])["key"].to_pylist()
    shard_files(cache)[2].unlink()
    opened = Cache.open(cache.url)
    with refused(CacheError, match=r"1 of 3 shards .* is missing;"):
        opened.verify()
    assert opened.prepare() == 1
    assert {rows.keys[i] for i in opened.locate(rows.keys).missing} == set(gone)


@pytest.mark.parametrize("content", [b"", b'{"path": "shards/', b"{}", b"[]", b"\xff\xfe"])
def test_a_damaged_commit_is_refused_naming_the_file(content, filled):
    cache, rows = filled
    record = sorted(Path(cache.url).glob("commits/*.json"))[1]
    record.write_bytes(content)
    for use in (lambda opened: opened.locate(rows.keys), lambda opened: opened.verify()):
        with refused(CacheError, match=rf"commits/{record.name} is damaged .*fix: llmembed extract films"):
            use(Cache.open(cache.url))
    assert cache.prepare() == 1 and not record.exists()
    write_missing(cache, rows)
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)


def test_of_two_repairs_at_once_neither_takes_out_what_the_other_mended(filled, monkeypatch):
    cache, rows = filled
    flip_byte(shard_files(cache)[0], cache.layer_views(4)[0])
    other, find = Cache.open(cache.url), maintenance.find_damage

    def find_while_the_other_repairs(*arguments):
        found = find(*arguments)
        monkeypatch.setattr(maintenance, "find_damage", find)
        assert other.prepare() == 1
        write_missing(other, rows)
        return found

    monkeypatch.setattr(maintenance, "find_damage", find_while_the_other_repairs)
    assert cache.prepare() == 1
    assert not len(cache.locate(rows.keys).missing)
    cache.verify()
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)


def test_a_shard_of_another_fingerprint_is_refused_by_name_and_taken_out(filled, tmp_path):
    cache, rows = filled
    spec = TOY.model_copy(update={"pooling": "max"})
    other = new_cache(tmp_path / "other", spec=spec)
    other.write_shard(made_up(["text 9/0"], spec), ENGINE)
    for source in (*shard_files(other), *commit_files(other)):
        shutil.copy(source, Path(cache.url) / source.parent.name)
    name = shard_files(other)[0].name
    with refused(CacheError, match=rf"1 of 4 .*{name} has the fingerprint '{spec.fingerprint}', this cache"):
        Cache.open(cache.url).locate(rows.keys)
    assert cache.prepare() == 1
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)


@pytest.mark.parametrize("path", ["../../secret", "/etc/hostname", "shards/../spec.json", "commits", "", "shards/a\0b"])
def test_the_path_of_a_commit_is_never_followed_out_of_its_place(path, filled, tmp_path):
    cache, rows = filled
    (tmp_path / "secret").write_text("not ours")
    record = commit_files(cache)[1]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"path": path}))
    with refused(CacheError, match=rf"{record.name} is damaged .*which is not the path of its shard"):
        Cache.open(cache.url).locate(rows.keys)
    assert cache.prepare() == 1 and not record.exists()
    assert (tmp_path / "secret").read_text() == "not ours" and (Path(cache.url) / "spec.json").exists()
    write_missing(cache, rows)
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)


def test_a_commit_of_another_shard_does_not_count(filled):
    cache, rows = filled
    first, second, _ = commit_files(cache)
    second.write_bytes(first.read_bytes())
    with refused(CacheError, match=rf"{second.name} is damaged"):
        Cache.open(cache.url).locate(rows.keys)
    assert cache.prepare() == 1 and first.exists() and not second.exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_in_the_place_of_a_shard_counts_as_missing(make, filled):
    cache, rows = filled
    path = shard_files(cache)[1]
    path.unlink()
    make(path)
    with refused(CacheError, match=rf"1 of 3 shards .*{path.name} is missing;"):
        Cache.open(cache.url).locate(rows.keys)
    assert cache.prepare() == 1
    write_missing(cache, rows)
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)


def test_what_cannot_be_read_is_no_damage_and_nothing_is_taken_out(filled, monkeypatch):
    cache, rows = filled

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", fail)
        for use in (cache.prepare, lambda: cache.locate(rows.keys)):
            with refused(CacheError, match=r"shards/.* cannot be read: Too many open files"):
                use()
    assert cache.prepare() == 0
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)
