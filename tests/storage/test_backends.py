"""What every storage backend must do, and a cache on each: a folder, and a store that can neither map nor lock."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from doubles import MemoryStore
from refusals import refused
from toy_cache import ENGINE, TOY, assert_same_bits, extraction_record, fill, made_up, read, write_missing

from llmembed.cache import Cache
from llmembed.cache.content import Ranges
from llmembed.cache.derived import Derived
from llmembed.cache.shard import ShardView, encode_shard
from llmembed.classifier import Classifier
from llmembed.errors import CacheError, UsageError
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.identity import text_key
from llmembed.prediction import predict_dataset
from llmembed.storage import BACKENDS, Entry, Mappable, list_names, open_store, size_of
from llmembed.training import train


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Let `memory://` name stores in memory, which are empty at first."""
    monkeypatch.setitem(BACKENDS, "memory", MemoryStore)
    monkeypatch.setattr(MemoryStore, "objects", {})
    return "memory://room"


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path, memory):
    return str(tmp_path / "cache") if request.param == "folder" else memory


@pytest.fixture
def stored(root):
    """A cache of three shards on each backend, what they hold in one piece, and the store of it."""
    cache, rows = fill(root)
    return cache, rows, open_store(cache.url)


def change(store, name, place):
    """Flip a bit of an object."""
    content = bytearray(store.read(name))
    content[place] ^= 1
    store.put(name, bytes(content))


def test_an_object_is_read_whole_or_by_ranges(root):
    store = open_store(root)
    store.put("a/b", memoryview(b"0123456789"))
    assert (store.read("a/b"), store.read("a/b", 7), store.read("a/b", 0, 3)) == (b"0123456789", b"789", b"012")
    assert (store.read("a/b", 8, 99), store.read("a/b", 4, 4), store.read("a/b", 10)) == (b"89", b"", b"")
    for name in ("a", "a/c", "c"):
        with pytest.raises(FileNotFoundError):
            store.read(name)


def test_a_name_is_created_once_and_put_replaces_it(root):
    store = open_store(root)
    assert store.create("a", b"first") and store.create("a", b"first") and not store.create("a", b"second")
    before = store.stat("a")
    assert (store.read("a"), before.size) == (b"first", 5)
    store.put("a", b"third")
    assert store.read("a") == b"third" and store.stat("a").stamp != before.stamp
    assert abs(store.stat("a").modified - before.modified) < 60
    for _ in range(2):
        store.delete("a")
        assert (store.stat("a"), size_of(store, "a"), store.entries("")) == (None, None, [])


def test_a_store_lists_what_lies_in_one_folder_and_opens_a_folder_as_a_store(root):
    store = open_store(root)
    for name in ("top", "b/two", "b/one", "b/below/three", "c/four", "b/.hidden"):
        store.put(name, b"")
    assert store.entries("") == [Entry("b", "folder"), Entry("c", "folder"), Entry("top", "regular")]
    assert store.entries("b") == [Entry("b/below", "folder"), Entry("b/one", "regular"), Entry("b/two", "regular")]
    assert list_names(store, "b") == ["b/one", "b/two"] and store.entries("nothing") == store.entries("top") == []
    assert list_names(store.child("b"), "") == ["one", "two"]
    assert list_names(open_store(store.child("b").url), "below") == ["below/three"]
    with store.child("b").lock():
        store.delete_abandoned("b")
    assert list_names(store, "b") == ["b/one", "b/two"]


def test_of_sixteen_who_create_a_name_exactly_one_wins(root):
    together = threading.Barrier(16)

    def create(number):
        together.wait()
        return open_store(root).create("records/a", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1 and open_store(root).read("records/a") == b"%d" % won.index(True)


@pytest.mark.parametrize("url", ["s3://bucket/cache", Path("s3://bucket/cache"), "S3://bucket"])
def test_a_scheme_without_a_backend_is_refused_by_name(url, monkeypatch):
    monkeypatch.delitem(BACKENDS, "memory")
    with refused(UsageError, match=r"bucket.*: embeddings cannot be kept in s3:// storage\. .*file:///…"):
        open_store(url)
    with refused(UsageError, match="s3://"):
        Cache.at(url, "films", "toy", TOY)


def test_a_url_of_a_folder_is_its_path(tmp_path):
    (tmp_path / "my cache").mkdir()
    path = str(tmp_path / "my cache")
    urls = [path, tmp_path / "my cache", f"file://{path}", Path(f"file://{path}"), f"file://localhost{path}"]
    assert {open_store(url).url for url in [*urls, f"file://{path.replace(' ', '%20')}"]} == {path}
    assert (open_store("cache").url, open_store("a:b/c").url) == ("cache", "a:b/c")
    with refused(UsageError, match="a folder of another machine, elsewhere"):
        open_store("file://elsewhere/cache")


def test_rows_come_back_bit_for_bit_in_any_order_and_for_any_layers(stored):
    cache, rows, _ = stored
    order = np.random.default_rng(9).integers(0, len(rows.keys), 200)
    for opened in (cache, Cache.open(cache.url)):
        for layers in ((1, 3, 4), (4,), (3, 1), (4, 4)):
            wanted = rows.embeddings[:, [TOY.layers.index(layer) for layer in layers]]
            assert_same_bits(read(opened, [rows.keys[i] for i in order], layers), wanted[order])
        located = opened.locate([rows.keys[i] for i in order])
        np.testing.assert_array_equal(opened.tokens(located), rows.tokens[order])
        np.testing.assert_array_equal(opened.truncated(located), rows.truncated[order])
        assert sum(map(len, opened.layer_views(3))) == len(rows.keys)
        opened.verify()


def test_a_few_rows_of_what_cannot_be_mapped_are_read_alone(memory, monkeypatch):
    assert not isinstance(open_store(memory), Mappable)
    cache, rows = fill(memory)
    located = cache.locate(rows.keys[3:5])
    ranges, reading = [], MemoryStore.read

    def count(store, name, start=0, stop=None):
        ranges.append(reading(store, name, start, stop))
        return ranges[-1]

    monkeypatch.setattr(MemoryStore, "read", count)
    assert_same_bits(cache.read(located, (1, 4)), rows.embeddings[3:5, [0, 2]])
    assert [len(each) for each in ranges] == [2 * TOY.dim * 2] * 2


def test_what_is_missing_is_told_with_the_place_and_the_command(stored):
    cache, rows, _ = stored
    assert cache.locate([rows.keys[0], text_key("never seen")]).missing.tolist() == [1]
    root = cache.url.rsplit("/", 2)[0]
    with refused(CacheError, match=rf"1 of 1 texts are not in {cache.url}; .*--cache {root}$"):
        cache.find_all([text_key("never seen")])


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("folder", ["shards", "commits"])
def test_damage_is_found_named_and_mended(folder, damage, stored):
    cache, rows, store = stored
    name = list_names(store, folder)[1]
    if damage == "flipped":
        change(store, name, 60)
    elif damage == "cut":
        store.put(name, store.read(name, 0, 60))
    else:
        store.delete(name)
    with refused(CacheError, match=rf"{name.partition('/')[2]} .*|not in .*fix: llmembed extract films"):
        Cache.open(cache.url).locate_all(rows.keys)
    assert cache.prepare() == (damage != "gone" or folder == "shards")
    write_missing(cache, rows)
    assert cache.prepare() == 0
    Cache.open(cache.url).verify()
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)


def test_what_cannot_be_mapped_and_changes_after_it_was_opened_is_hashed_again(memory):
    cache, store = fill(memory)[0], open_store(memory)
    cache.verify()
    change(store, f"films/{cache.name}/{cache.commits[0].path}", 60)
    with refused(CacheError, match="has another SHA-256"):
        cache.verify_again(range(3))


@pytest.mark.parametrize(("left", "fault"), [(None, "is missing"), (200, "is shorter than it was")])
def test_what_cannot_be_mapped_and_goes_while_it_is_read_is_named(left, fault, memory):
    cache, rows = fill(memory)
    store, located = open_store(cache.url), cache.locate(rows.keys)
    for commit in cache.commits:
        content = store.read(commit.path, 0, left)
        store.delete(commit.path)
        if left is not None:
            store.put(commit.path, content)
    for look in (cache.tokens, lambda located: cache.read(located, (4,))):
        with refused(CacheError, match=rf"1 of 3 shards .* damaged .*{fault}.*fix: llmembed extract films"):
            look(located)


def test_a_spec_that_is_lost_is_written_again(root, stored):
    cache, rows, store = stored
    before = store.read("spec.json")
    store.delete("spec.json")
    with refused(CacheError, match=rf"{cache.url}/spec\.json is missing; .*fix: llmembed extract films"):
        Cache.latest(root)
    again = Cache.at(root, "films", "toy", TOY)
    assert again.prepare() == 0 and store.read("spec.json") == before
    assert_same_bits(read(Cache.latest(root), rows.keys, TOY.layers), rows.embeddings)


def test_the_cache_extracted_last_is_found_by_names_alone(root):
    for dataset in ("films", "news"):
        for backbone in ("toy", "bert"):
            cache = Cache.at(root, dataset, backbone, TOY)
            cache.claim()
            cache.record_extraction(extraction_record(dataset))
    open_store(root).put(f"news/bert-{TOY.fingerprint}/spec.json", b"damaged")
    assert Cache.latest(root, "news", "toy").url == f"{root}/news/toy-{TOY.fingerprint}"
    assert Cache.latest(root, "films").last_extraction() == extraction_record("films")
    with refused(CacheError, match=f"There are no embeddings of films by gpt in {root}"):
        Cache.latest(root, "films", "gpt")


def test_of_sixteen_writers_of_the_same_rows_exactly_one_wins(root):
    together = threading.Barrier(16)

    def write(seed):
        own = Cache.at(root, "films", "toy", TOY)
        together.wait()
        return own.write_shard(made_up(["a", "b"], seed=seed), ENGINE)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    cache, winner = Cache.latest(root), made_up(["a", "b"], seed=won.index(True))
    assert won.count(True) == len(cache.commits) == len(list_names(open_store(cache.url), "shards")) == 1
    assert_same_bits(read(cache, winner.keys, TOY.layers), winner.embeddings)


def test_derived_arrays_are_made_once(stored):
    cache, _, _ = stored
    assert not cache.derived.memoize({"a": 1}, lambda: Derived({"ones": np.ones(3)})).memoized
    cache.derived.write()
    again = Cache.open(cache.url).derived.memoize({"a": 1}, lambda: pytest.fail("it was made before"))
    assert again.memoized and again.arrays["ones"].tolist() == [1, 1, 1]


def test_whatever_byte_changes_ranges_are_refused_as_mapped_bytes_are(memory):
    rows, store = made_up([f"text {i}" for i in range(20)]), open_store(memory)
    content = bytes(encode_shard(rows, TOY.layers, TOY.fingerprint))

    def look(content):
        try:
            view = ShardView(content, 20, TOY.layers, TOY.dtype, TOY.dim, TOY.fingerprint)
            return view.keys(), [view.take(layer, np.arange(3, 9)).tobytes() for layer in TOY.layers]
        except ValueError as error:
            return str(error)

    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x85
        store.put("shard", bytes(changed))
        assert look(Ranges(store, "shard", len(content))) == look(memoryview(bytes(changed)))


def test_a_data_set_is_extracted_to_and_trained_from_what_is_no_folder(pydocs, tiny_llama, memory, tmp_path):
    reports, probabilities = [], []
    for root, out in ((memory, tmp_path / "one"), (tmp_path / "cache", tmp_path / "other")):
        assert run_extraction(plan_extraction(pydocs, root=root, backbone=str(tiny_llama))).embedded > 0
        assert run_extraction(plan_extraction(pydocs, root=root, backbone=str(tiny_llama))).embedded == 0
        reports.append(train(pydocs, root=root, head="lda", fusion="mean", out=out).report)
        probabilities.append(predict_dataset(Classifier.load(out), pydocs, root=root))
    assert reports[0] == reports[1]
    np.testing.assert_array_equal(*probabilities)
