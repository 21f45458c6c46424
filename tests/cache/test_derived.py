"""What training keeps beside a cache, with real embeddings: found again, never trusted blindly, never needed."""

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from refusals import refused

from llmembed import fitting
from llmembed.cache.derived import DERIVED, MOST_FILES, find, identify, write_derived
from llmembed.errors import CacheError
from llmembed.features import sources as features
from llmembed.features.on_disk import Features, fit_feature_map
from llmembed.features.sources import locate_rows, open_sources, verified
from llmembed.matrix import Derived
from llmembed.requests import TrainingSpec
from llmembed.storage.local import LocalStore
from llmembed.training import train, train_on

ONES = {"ones": np.ones(3, np.float32)}


@pytest.fixture
def root(pydocs_cache, tmp_path, monkeypatch) -> Path:
    """Return a copy of the cache, without what other tests kept, whose features count as too many for memory."""
    monkeypatch.setattr(fitting, "RESIDENT_SHARE", 0)
    shutil.copytree(pydocs_cache, tmp_path / "cache", ignore=shutil.ignore_patterns(DERIVED))
    return tmp_path / "cache"


def kept_files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*/derived/*.safetensors"))


def test_a_second_training_starts_from_what_the_first_one_kept(pydocs, root, tmp_path):
    first, second = (
        train(pydocs, root=root, head="gbdt", head_options={"rounds": rounds}, out=tmp_path / "m") for rounds in (5, 5)
    )
    assert [each.fit_info["projection_memoized"] for each in (first, second)] == [False, True]
    assert first.report == second.report
    assert len(kept_files(root)) == 2
    other = train(pydocs, root=root, head="gbdt", head_options={"components": 9, "rounds": 5}, out=tmp_path / "m")
    assert not other.fit_info["projection_memoized"]


def test_what_is_kept_is_what_would_be_computed(pydocs, root):
    sources = open_sources(root, pydocs)
    rows = locate_rows(sources, pydocs.texts("train"))
    computed = fit_feature_map(sources, rows, "concat")
    for _ in range(2):
        with verified(sources, rows):
            again = fit_feature_map(sources, rows, "concat", memoize=True)
            np.testing.assert_array_equal(again.scalers[0].scale, computed.scalers[0].scale)
    assert len(kept_files(root)) == 1
    wide = Features(sources, rows, computed)
    for other in (wide.select_rows(np.arange(9)), Features(sources, rows, replace(computed, fusion="mean"))):
        with verified(sources, rows):
            assert not other.memoize({"what": 1}, lambda: Derived(ONES)).memoized
        assert other.memoize({"what": 1}, lambda: Derived(ONES)).memoized
        assert not wide.memoize({"what": 1, "of": other.shape}, lambda: Derived(ONES)).memoized


def test_a_damaged_kept_file_is_made_again(tmp_path):
    store, made = LocalStore(tmp_path), Derived({"values": np.arange(5.0)}, {"why": "a test"})
    write_derived(store, "name", made)
    (file,) = tmp_path.glob("derived/*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"abc")
    assert find(store, "name") is None and not file.exists()
    write_derived(store, "name", made)
    again = find(store, "name")
    np.testing.assert_array_equal(again.arrays["values"], made.arrays["values"])
    assert (again.info, again.memoized) == ({"why": "a test"}, True)


def test_what_a_killed_run_left_half_written_is_deleted_by_the_next_one(tmp_path):
    store, identity = LocalStore(tmp_path), identify({"rows": 3})
    assert find(store, identity) is None
    write_derived(store, identity, Derived(ONES))
    (whole,) = (tmp_path / DERIVED).iterdir()
    left = whole.with_name(f".{whole.name}.0123abcd")
    left.write_bytes(b"half")
    assert find(store, identity).memoized
    assert not left.exists() and whole.exists()


def test_only_the_last_files_stay(tmp_path):
    store = LocalStore(tmp_path)
    for number in range(MOST_FILES + 3):
        write_derived(store, str(number), Derived(ONES))
        for file in tmp_path.glob("derived/*"):
            os.utime(file, (file.stat().st_mtime - 1,) * 2)
    assert len(list(tmp_path.glob("derived/*"))) == MOST_FILES
    assert find(store, "0") is None and find(store, str(MOST_FILES)) is not None


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(13, "Permission denied")])
def test_a_kept_file_that_vanishes_or_cannot_be_deleted_is_no_error(error, tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    write_derived(store, "name", Derived(ONES))
    (file,) = tmp_path.glob("derived/*")
    file.write_bytes(b"damaged")

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        assert find(store, "name") is None
        patch.setattr(os, "open", fail)
        assert find(store, "name") is None


def test_what_older_versions_kept_is_not_found():
    what = {"scaler": {"fingerprint": "abc", "layers": [1], "rows": "def"}}
    of_format_1 = sha256(json.dumps({**what, "format": 1}, sort_keys=True).encode()).hexdigest()[:24]
    assert identify(what) != of_format_1


def change_values(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 2000):
        content[i] ^= 0x5A
    shard.write_bytes(content)


def test_of_damaged_rows_nothing_is_kept_and_after_their_repair_all_is_as_before(pydocs, root, tmp_path):
    options = {"root": root, "head": "gbdt", "head_options": {"rounds": 5}, "out": tmp_path / "m"}
    before = train(pydocs, **options).report
    for file in kept_files(root):
        file.unlink()
    (shard,) = root.glob("*/*/shards/*.parquet")
    whole = shard.read_bytes()
    change_values(shard)
    with refused(CacheError, match=r"has another SHA-256 than its commit says"):
        train(pydocs, **options)
    assert kept_files(root) == []
    shard.write_bytes(whole)
    assert train(pydocs, **options).report == before and len(kept_files(root)) == 2


def test_a_shard_that_is_written_to_after_it_was_hashed_is_hashed_again(pydocs, root, monkeypatch):
    sources, hashed, verify = open_sources(root, pydocs), Event(), features._verify
    rows = locate_rows(sources, pydocs.texts("train"))
    monkeypatch.setattr(features, "_verify", lambda *arguments: (verify(*arguments), hashed.set()))
    with refused(CacheError, match=r"has another SHA-256"), verified(sources, rows):
        assert hashed.wait(60)
        change_values(next(root.glob("*/*/shards/*.parquet")))
        fit_feature_map(sources, rows, "concat", memoize=True)
    assert kept_files(root) == []


def test_a_cache_that_may_only_be_read_is_trained_from(pydocs, root, tmp_path):
    # A file where the folder should be fails for every user, root too.
    for folder in root.glob("*/*"):
        (folder / "derived").write_text("")
    assert train(pydocs, root=root, head="gbdt", head_options={"rounds": 5}, out=tmp_path / "m").fit_info["rounds"] > 0


@pytest.mark.parametrize("head", ["mlp", "lda"])
def test_a_shard_that_goes_missing_while_it_is_trained_on_is_named_and_nothing_is_written(head, pydocs, root, tmp_path):
    sources = open_sources(root, pydocs)
    locate_rows(sources, pydocs.texts())
    next(root.glob("*/*/shards/*.parquet")).unlink()
    with refused(CacheError, match=r"1 of 1 shards .* damaged .*is missing.*fix: llmembed extract pydocs"):
        train_on(pydocs, sources, TrainingSpec(fusion="concat", head=head), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
