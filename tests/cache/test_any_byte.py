"""Any changed byte and any truncation of any file of a cache: the same answer, or a refusal that names the file.

And whatever it was, an extraction brings the same answer back.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_cache import TOY, assert_same_bits, extraction_record, fill, write_missing

from llmembed.cache import Cache
from llmembed.errors import CacheError
from llmembed.matrix import Derived

REPORT = extraction_record(reading={"limit": 9}, pooling="mean")
FILES = {
    "spec": "spec.json",
    "commit": "commits/*.json",
    "record": "extractions/*.json",
    "shard": "shards/*.parquet",
    "derived": "derived/*.safetensors",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A root with a cache that has one file of each kind and more, and what the cache holds."""
    root = tmp_path_factory.mktemp("whole")
    cache, rows = fill(root)
    cache.derived.memoize({"what": 1}, lambda: Derived({"mean": np.arange(9.0)}, {"why": "a test"}))
    cache.derived.write()
    cache.record_extraction(REPORT)
    return root, rows


def assert_answers(root, rows):
    """Read all that a training reads, and compare it with what was written."""
    cache = Cache.latest(root, "films")
    located = cache.locate_all(rows.keys)
    assert_same_bits(cache.read(located, TOY.layers), rows.embeddings)
    np.testing.assert_array_equal(cache.tokens(located), rows.tokens)
    np.testing.assert_array_equal(cache.truncated(located), rows.truncated)
    kept = cache.derived.memoize({"what": 1}, lambda: Derived({"mean": np.arange(9.0)}, {"why": "a test"}))
    assert kept.arrays["mean"].tolist() == list(range(9)) and kept.info == {"why": "a test"}
    return cache.last_extraction()


def extract_again(root, rows):
    cache = Cache.at(root, "films", "toy", TOY)
    cache.prepare()
    write_missing(cache, rows)
    cache.record_extraction(REPORT)


def check(whole, kind, change):
    """Change one file of a copy: the answer, the refusal, and the answer after an extraction."""
    root, rows = whole
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "cache"
        shutil.copytree(root, copy)
        path = sorted(copy.glob(f"*/*/{FILES[kind]}"))[0]
        path.write_bytes(change(path.read_bytes()))
        try:
            assert assert_answers(copy, rows) == REPORT
        except CacheError as error:
            assert path.name in str(error)
        try:
            extract_again(copy, rows)
        except CacheError as error:
            # A number changed into that of another format is never taken for damage.
            assert kind == "spec" and "Install the llmembed that wrote it" in str(error)
        else:
            assert assert_answers(copy, rows) == REPORT
            Cache.latest(copy).verify()


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=100, deadline=None, database=None)
@given(where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_changed_byte_gives_the_same_answer_or_is_named_and_mended(whole, kind, where, mask):
    def change(content):
        changed = bytearray(content)
        changed[int(where * len(content))] ^= mask
        return changed

    check(whole, kind, change)


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=40, deadline=None, database=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_any_truncation_gives_the_same_answer_or_is_named_and_mended(whole, kind, where):
    check(whole, kind, lambda content: content[: int(where * len(content))])


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=40, deadline=None, database=None)
@given(content=st.binary(max_size=300))
def test_any_other_content_gives_the_same_answer_or_is_named_and_mended(whole, kind, content):
    check(whole, kind, lambda _: content)
