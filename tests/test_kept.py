"""What training keeps beside a cache, with real embeddings: found again, never trusted blindly, never needed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmembed import train as stage
from llmembed.cache.kept import FOLDER, MOST_FILES, Kept, keep
from llmembed.cache.store import LocalStore
from llmembed.errors import CacheError
from llmembed.features import Features, fit_scalers, keep_scalers, locate_rows, open_sources
from llmembed.train import train, train_on

ONES = {"ones": np.ones(3, np.float32)}


@pytest.fixture
def root(pydocs_cache, tmp_path, monkeypatch) -> Path:
    """Give a copy of the cache, without what other tests kept, whose features count as too many for memory."""
    monkeypatch.setattr(stage, "RESIDENT_SHARE", 0)
    shutil.copytree(pydocs_cache, tmp_path / "cache", ignore=shutil.ignore_patterns(FOLDER))
    return tmp_path / "cache"


def kept_files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*/kept/*.safetensors"))


def test_a_second_training_starts_from_what_the_first_one_kept(pydocs, root, tmp_path):
    first, second = (
        train(pydocs, root=root, head="gbdt", head_options={"rounds": rounds}, out=tmp_path / "m") for rounds in (5, 5)
    )
    assert [each.notes["projection_kept"] for each in (first, second)] == [False, True]
    assert first.report == second.report
    assert len(kept_files(root)) == 2
    other = train(pydocs, root=root, head="gbdt", head_options={"components": 9, "rounds": 5}, out=tmp_path / "m")
    assert not other.notes["projection_kept"]


def test_what_is_kept_is_what_would_be_computed(pydocs, root):
    sources = open_sources(root, pydocs)
    rows = locate_rows(sources, pydocs.texts("train"), pydocs.words)
    computed = fit_scalers(sources, rows)
    for _ in range(2):
        np.testing.assert_array_equal(keep_scalers(sources, rows)[0].scale, computed[0].scale)
    features = Features(sources, rows, computed, "concat")
    for other in (features.select_rows(np.arange(9)), Features(sources, rows, computed, "mean")):
        assert not other.keep({"what": 1}, lambda: Kept(ONES)).recalled
        assert other.keep({"what": 1}, lambda: Kept(ONES)).recalled
        assert not features.keep({"what": 1, "of": other.shape}, lambda: Kept(ONES)).recalled


def test_a_damaged_kept_file_is_made_again(tmp_path):
    store, made = LocalStore(tmp_path), Kept({"values": np.arange(5.0)}, {"why": "a test"})
    keep(store, {"name": 1}, lambda: made)
    (file,) = tmp_path.glob("kept/*")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert not keep(store, {"name": 1}, lambda: made).recalled
    again = keep(store, {"name": 1}, lambda: pytest.fail("it is kept"))
    np.testing.assert_array_equal(again.arrays["values"], made.arrays["values"])
    assert (again.notes, again.recalled) == ({"why": "a test"}, True)


def test_only_the_last_files_stay(tmp_path):
    store = LocalStore(tmp_path)
    for number in range(MOST_FILES + 3):
        keep(store, {"number": number}, lambda: Kept(ONES))
        for file in tmp_path.glob("kept/*"):
            os.utime(file, (file.stat().st_mtime - 1,) * 2)
    assert len(list(tmp_path.glob("kept/*"))) == MOST_FILES
    assert not keep(store, {"number": 0}, lambda: Kept(ONES)).recalled
    assert keep(store, {"number": MOST_FILES}, lambda: Kept(ONES)).recalled


def test_a_cache_that_may_only_be_read_is_trained_from(pydocs, root, tmp_path):
    # A file where the folder should be fails for every user, root too.
    for folder in root.glob("*/*"):
        (folder / "kept").write_text("")
    assert train(pydocs, root=root, head="gbdt", head_options={"rounds": 5}, out=tmp_path / "m").notes["rounds"] > 0


@pytest.mark.parametrize("head", ["mlp", "lda"])
def test_a_shard_that_goes_missing_while_it_is_trained_on_is_named_and_nothing_is_written(head, pydocs, root, tmp_path):
    sources = open_sources(root, pydocs)
    locate_rows(sources, pydocs.texts(), pydocs.words)
    next(root.glob("*/*/shards/*.parquet")).unlink()
    with pytest.raises(CacheError, match=r"1 of 1 shards .* damaged .*is missing.*Run `llmembed extract pydocs"):
        train_on(pydocs, sources, fusion="concat", head=head, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
