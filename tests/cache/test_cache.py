"""The cache: the same bits back by key, and one commit per shard."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from documents import ROOT
from refusals import refused
from toy_cache import ENGINE, TOY, assert_same_bits, flip_byte, made_up, new_cache, read, shard_files

from llmembed.backbones import BackboneSpec
from llmembed.cache import Cache
from llmembed.cache.shard import EmbeddedRows
from llmembed.errors import CacheError
from llmembed.identity import text_key
from llmembed.requests import Reading
from llmembed.storage import list_names
from llmembed.storage.local import LocalStore

README = ROOT / "cache" / "README.md"


@pytest.mark.parametrize("layers", [(1, 3, 4), (4,), (3, 1), (4, 4)])
def test_rows_come_back_bit_for_bit_in_any_order_and_for_any_layers(layers, filled):
    cache, rows = filled
    order = np.random.default_rng(9).integers(0, len(rows.keys), 200)
    wanted = rows.embeddings[:, [TOY.layers.index(layer) for layer in layers]]
    for opened in (cache, Cache.open(cache.url)):
        assert_same_bits(read(opened, rows.keys, layers), wanted)
        assert_same_bits(read(opened, [rows.keys[i] for i in order], layers), wanted[order])


def test_token_counts_and_truncation_marks_come_back_by_key(filled):
    cache, rows = filled
    order = np.random.default_rng(9).permutation(len(rows.keys))
    located = cache.locate([rows.keys[i] for i in order])
    np.testing.assert_array_equal(cache.tokens(located), rows.tokens[order])
    np.testing.assert_array_equal(cache.truncated(located), rows.truncated[order])
    assert (cache.tokens(located).dtype, cache.truncated(located).dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 1023, 1024, 1025, 2048, 20_001])
def test_a_shard_of_any_number_of_rows_comes_back(count, tmp_path):
    cache, rows = new_cache(tmp_path), made_up([str(i) for i in range(count)], seed=count)
    cache.write_shard(rows, ENGINE)
    located = cache.locate(rows.keys)
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)
    np.testing.assert_array_equal(cache.tokens(located), rows.tokens)
    np.testing.assert_array_equal(cache.truncated(located), rows.truncated)


def test_float32_and_foreign_memory_layouts_come_back(tmp_path):
    spec = TOY.model_copy(update={"dtype": "float32"})
    cache, rows = new_cache(tmp_path, spec=spec), made_up(["a", "b", "c"], spec)
    for shape, embeddings in enumerate((rows.embeddings, np.asfortranarray(rows.embeddings), rows.embeddings[::-1])):
        keys = [text_key(f"{shape}/{i}") for i in range(3)]
        cache.write_shard(EmbeddedRows(keys, rows.tokens, rows.truncated, embeddings), ENGINE)
        assert_same_bits(read(cache, keys, spec.layers), embeddings)


def test_missing_keys_are_told_apart(filled):
    cache, rows = filled
    located = cache.locate([text_key("never seen"), rows.keys[0], b"", rows.keys[-1]])
    assert located.missing.tolist() == [0, 2]
    assert (located.shard >= 0).tolist() == [False, True, False, True]
    assert cache.locate([]).missing.tolist() == []
    assert len(cache.read(cache.locate([]), (1,))) == 0


def test_locate_all_counts_what_is_missing_and_names_the_remedy(filled):
    cache, rows = filled
    opened = Cache.open(cache.url, Reading(argument="my films.csv"))
    with refused(
        CacheError, match=r"^2 of 64 texts are not in .*fix: llmembed extract 'my films\.csv' --back"
    ) as caught:
        opened.locate_all([text_key("a"), *rows.keys[:62], text_key("b")])
    assert (caught.value.cache, caught.value.missing, caught.value.total) == (cache.url, 2, 64)
    np.testing.assert_array_equal(cache.locate_all(rows.keys).row, cache.locate(rows.keys).row)


def test_reading_a_missing_key_is_refused(filled):
    cache, rows = filled
    with pytest.raises((CacheError, IndexError, KeyError, ValueError)):
        cache.read(cache.locate([rows.keys[0], text_key("never seen")]), (1,))


def test_layer_views_copy_nothing(filled):
    cache, rows = filled
    for position, layer in enumerate(TOY.layers):
        views = cache.layer_views(layer)
        assert sorted(view.shape for view in views) == [(20, 6), (21, 6), (22, 6)]
        assert all(view.dtype == np.float16 for view in views)
        assert not any(view.flags.writeable or view.flags.owndata for view in views)
        assert all(np.shares_memory(*pair) for pair in zip(views, cache.layer_views(layer), strict=True))
        located = cache.locate(rows.keys)
        for number, view in enumerate(views):
            inside = located.shard == number
            assert_same_bits(np.asarray(view[located.row[inside]]), rows.embeddings[inside, position])


@pytest.fixture(scope="module")
def full_shard(tmp_path_factory):
    """A shard of the size that extraction writes with MiniLM: 2,048 texts, 5 layers of 384 float16 values."""
    spec = TOY.model_copy(update={"layers": (2, 3, 4, 5, 6), "dim": 384})
    cache = new_cache(tmp_path_factory.mktemp("cache"), spec=spec)
    rows = made_up([f"text {i}" for i in range(2048)], spec)
    cache.write_shard(rows, ENGINE)
    return cache, rows, shard_files(cache)[0]


def test_a_shard_is_one_plain_uncompressed_row_group(full_shard):
    _, _, path = full_shard
    file = pq.ParquetFile(path)
    assert (file.metadata.num_row_groups, file.metadata.num_rows) == (1, 2048)
    chunks = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    assert [chunk.path_in_schema for chunk in chunks] == [
        "key",
        "tokens",
        "truncated",
        *(f"layer_{i}" for i in range(2, 7)),
    ]
    for i, chunk in enumerate(chunks):
        assert (chunk.compression, chunk.statistics, chunk.has_dictionary_page) == ("UNCOMPRESSED", None, False)
        assert set(chunk.encodings) <= {"PLAIN", "RLE"}
        assert (file.schema.column(i).max_definition_level, file.schema.column(i).max_repetition_level) == (0, 0)
    widths = {file.schema.column(i).name: file.schema.column(i).length for i in range(len(chunks))}
    assert widths == {"key": 16, "tokens": 0, "truncated": 0, **{f"layer_{i}": 768 for i in range(2, 7)}}


def test_the_values_of_a_column_are_the_end_of_its_chunk(full_shard):
    _, rows, path = full_shard
    content, group = path.read_bytes(), pq.read_metadata(path).row_group(0)
    layers = [np.ascontiguousarray(rows.embeddings[:, i]).tobytes() for i in range(5)]
    marks = np.packbits(rows.truncated, bitorder="little").tobytes()
    for i, values in enumerate([b"".join(rows.keys), rows.tokens.tobytes(), marks, *layers]):
        stop = group.column(i).data_page_offset + group.column(i).total_compressed_size
        assert content[stop - len(values) : stop] == values
        # One page: nothing but one header stands before the values.
        assert group.column(i).total_compressed_size - len(values) < 100


def test_a_shard_is_hardly_larger_than_its_embeddings(full_shard):
    cache, rows, path = full_shard
    assert path.stat().st_size == cache.size <= 1.01 * rows.embeddings.nbytes


def test_a_shard_describes_itself(full_shard):
    cache, _, path = full_shard
    about = json.loads(pq.read_schema(path).metadata[b"llmembed"])
    fingerprint = cache.spec.fingerprint
    assert about == {"format": 1, "fingerprint": fingerprint, "dtype": "float16", "dim": 384, "layers": [2, 3, 4, 5, 6]}


def test_pages_carry_checksums(full_shard, tmp_path):
    _, rows, path = full_shard
    pq.read_table(path, page_checksum_verification=True)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(path.read_bytes())
    flip_byte(copy, rows.embeddings[:, 2])
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(copy, page_checksum_verification=True)


def test_polars_and_pyarrow_read_every_shard(filled):
    cache, rows = filled
    expected = {
        key: (int(tokens), bool(cut), [layer.tobytes() for layer in embedding])
        for key, tokens, cut, embedding in zip(rows.keys, rows.tokens, rows.truncated, rows.embeddings, strict=True)
    }
    for open_table in (lambda path: pl.read_parquet(path).rows(), lambda path: pq.read_table(path).to_pylist()):
        tables = [open_table(path) for path in shard_files(cache)]
        found = [tuple(row.values()) if isinstance(row, dict) else row for table in tables for row in table]
        assert {key: (tokens, cut, layers) for key, tokens, cut, *layers in found} == expected
        assert len(found) == len(expected)


def test_the_python_of_the_readme_reads_a_cache(filled, tmp_path):
    cache, rows = filled
    (script,) = (
        block.removeprefix("python\n") for block in README.read_text().split("```") if block.startswith("python")
    )
    assert len(script.strip().splitlines()) <= 11
    cache.write_shard(made_up(["naïve ☃", "text 0/3"], seed=7), ENGINE)
    for text in ("text 0/0", "text 2/21", "naïve ☃", "text 0/3"):
        run = subprocess.run(
            [sys.executable, "-c", script, Path(cache.url), text], capture_output=True, text=True, check=True
        )
        vector = read(cache, [text_key(text)], TOY.layers)[0, -1]
        assert run.stdout == f"{len(rows.keys) + 1} {vector[:3]}\n"


def test_what_the_readme_says_of_names_holds(filled):
    cache, _ = filled
    for record in Path(cache.url).glob("commits/*.json"):
        commit = json.loads(record.read_text())
        assert set(commit) == {"path", "rows", "bytes", "sha256", "created", "engine"}
        content = (Path(cache.url) / commit["path"]).read_bytes()
        keys = pq.read_table(Path(cache.url) / commit["path"])["key"].to_pylist()
        assert record.stem == blake2b(b"".join(keys), digest_size=12).hexdigest()
        assert commit["path"].startswith(f"shards/{record.stem}-") and commit["engine"] == ENGINE
        assert (commit["rows"], commit["bytes"], commit["sha256"]) == (
            len(keys),
            len(content),
            sha256(content).hexdigest(),
        )
    assert json.loads((Path(cache.url) / "spec.json").read_text()) == {"format": 1, "spec": TOY.model_dump(mode="json")}
    assert Path(cache.url).name == f"toy-{TOY.fingerprint}"


def test_rows_without_a_commit_do_not_count(filled):
    cache, rows = filled
    record = sorted(Path(cache.url).glob("commits/*.json"))[1]
    gone = pq.read_table(Path(cache.url) / json.loads(record.read_text())["path"])["key"].to_pylist()
    record.unlink()
    opened = Cache.open(cache.url)
    assert {rows.keys[i] for i in opened.locate(rows.keys).missing} == set(gone)
    opened.verify()
    kept = [key for key in rows.keys if key not in gone]
    assert_same_bits(read(opened, kept, TOY.layers), rows.embeddings[[key not in gone for key in rows.keys]])


def test_the_second_writer_of_the_same_keys_leaves_no_file(filled):
    cache, rows = filled
    files = shard_files(cache)
    again = made_up([f"text 0/{i}" for i in range(20)], seed=99)
    assert again.keys == rows.keys[:20]
    assert cache.write_shard(again, ENGINE) is False
    assert shard_files(cache) == files and len(cache.commits) == 3
    assert_same_bits(read(cache, rows.keys, TOY.layers), rows.embeddings)


def test_of_sixteen_writers_of_the_same_keys_exactly_one_wins(tmp_path):
    texts, together = [f"text {i}" for i in range(50)], threading.Barrier(16)
    new_cache(tmp_path)

    def write(seed):
        own = Cache.at(tmp_path, "films", "toy", TOY)
        together.wait()
        return own.write_shard(made_up(texts, seed=seed), ENGINE)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    cache, winner = Cache.latest(tmp_path), made_up(texts, seed=won.index(True))
    assert won.count(True) == len(cache.commits) == len(shard_files(cache)) == 1
    assert_same_bits(read(cache, winner.keys, TOY.layers), winner.embeddings)
    assert not list(Path(cache.url).rglob(".*"))


def test_a_text_in_two_shards_counts_where_the_first_commit_has_it(tmp_path):
    cache = new_cache(tmp_path)
    for seed in range(6):
        cache.write_shard(made_up(["shared", f"own {seed}"], seed=seed), ENGINE)
    first = cache.commits[0].path
    (seed,) = (i for i in range(6) if text_key(f"own {i}") in pq.read_table(Path(cache.url) / first)["key"].to_pylist())
    expected = made_up(["shared", f"own {seed}"], seed=seed).embeddings[:1]
    assert [commit.path for commit in cache.commits] == sorted(commit.path for commit in cache.commits)
    assert_same_bits(read(Cache.open(cache.url), [text_key("shared")], TOY.layers), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: EmbeddedRows(rows.keys, rows.tokens, rows.truncated, np.float32(rows.embeddings)),
        lambda rows: EmbeddedRows(rows.keys, rows.tokens, rows.truncated, np.repeat(rows.embeddings, 2, axis=2)),
        lambda rows: EmbeddedRows(rows.keys, rows.tokens, rows.truncated, np.repeat(rows.embeddings, 2, axis=1)),
    ],
    ids=["dtype", "dim", "layers"],
)
def test_rows_that_do_not_fit_the_spec_are_refused(make, tmp_path):
    cache = new_cache(tmp_path)
    with pytest.raises((CacheError, TypeError, ValueError)):
        cache.write_shard(make(made_up(["a", "b"])), ENGINE)


def test_rows_with_too_few_or_too_short_keys_are_refused(tmp_path):
    cache, rows = new_cache(tmp_path), made_up(["a", "b"])
    for keys in (rows.keys[:1], [key[:15] for key in rows.keys]):
        with pytest.raises(ValueError):
            cache.write_shard(EmbeddedRows(keys, rows.tokens, rows.truncated, rows.embeddings), ENGINE)
    assert cache.commits == [] and shard_files(cache) == []


def test_another_spec_has_another_folder(filled, tmp_path):
    cache, rows = filled
    other = new_cache(tmp_path, spec=TOY.model_copy(update={"max_length": 17}))
    assert other.url != cache.url
    assert len(other.locate(rows.keys).missing) == len(rows.keys)


def test_naming_a_cache_writes_nothing(tmp_path):
    cache = Cache.at(tmp_path, "films", "toy", TOY)
    assert cache.locate([text_key("a")]).missing.tolist() == [0]
    assert (cache.commits, cache.size, cache.last_extraction()) == ([], 0, None)
    assert list(tmp_path.iterdir()) == []


CHANGES = {
    "model": "org/other",
    "weights": "v",
    "tokenizer": "s",
    "depth": 6,
    "layers": (1, 3),
    "dim": 7,
    "pooling": "max",
    "max_length": 17,
    "template": "Topic of {text}",
    "dtype": "float32",
}


@pytest.mark.parametrize("name", list(BackboneSpec.model_fields))
def test_every_field_of_the_spec_changes_the_fingerprint(name):
    changed = BackboneSpec(**{**TOY.model_dump(), name: CHANGES[name]})
    assert changed != TOY and changed.fingerprint != TOY.fingerprint


def test_equal_specs_have_equal_fingerprints_by_the_formula_of_the_readme():
    again = BackboneSpec.model_validate_json(json.dumps(dict(reversed(TOY.model_dump(mode="json").items()))))
    assert again == TOY and again.fingerprint == TOY.fingerprint
    canonical = (
        '{"depth":5,"dim":6,"dtype":"float16","layers":[1,3,4],"max_length":16,"model":"org/toy","pooling":"mean",'
        '"template":"{text}","tokenizer":"t","weights":"w"}'
    )
    assert TOY.fingerprint == sha256(canonical.encode()).hexdigest()[:8]


def test_the_store_names_no_file_that_is_being_created(filled):
    cache, rows = filled
    for partial in ("commits/.0123.json.9f8e", "extractions/.2099.json.9f8e", "shards/.half"):
        (Path(cache.url) / partial).parent.mkdir(exist_ok=True)
        (Path(cache.url) / partial).write_text('{"path": "shar')
    store, opened = LocalStore(Path(cache.url)), Cache.open(cache.url)
    assert [len(list_names(store, folder)) for folder in ("commits", "extractions", "shards")] == [3, 0, 3]
    assert_same_bits(read(opened, rows.keys, TOY.layers), rows.embeddings)
    assert opened.last_extraction() is None and opened.prepare() == 0
