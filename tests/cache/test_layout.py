"""Shards whose commit is right and whose layout is not: refused by name, taken out, never read as other numbers."""

import io
import random
from contextlib import suppress
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refused
from toy_cache import TOY, assert_same_bits, made_up, read, recommit, shard_files, write_missing

from llmembed.cache import Cache
from llmembed.cache.shard import ShardView, encode_shard
from llmembed.cache.thrift import read_struct
from llmembed.errors import CacheError

OURS = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": True}


def encoded(table, **options):
    """Encode a table with pyarrow as shards are, but for some options."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **OURS | options)
    return sink.getvalue()


def nullable(table):
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema], table.schema.metadata))


@pytest.mark.parametrize("statistics", [False, True])
def test_a_shard_that_another_writer_laid_out_alike_counts(statistics, filled):
    cache, rows = filled
    recommit(cache, encoded(pq.read_table(shard_files(cache)[0]), write_statistics=statistics))
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)
    assert cache.prepare() == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda table: encoded(table, use_dictionary=True),
        lambda table: encoded(table, compression="zstd"),
        lambda table: encoded(table, row_group_size=9),
        lambda table: encoded(table, data_page_size=64, write_batch_size=4),
        lambda table: encoded(table, data_page_version="2.0"),
        lambda table: encoded(table, write_page_index=True),
        lambda table: encoded(table, column_encoding={"tokens": "DELTA_BINARY_PACKED"}),
        lambda table: encoded(nullable(table)),
        lambda table: encoded(table.drop_columns("layer_3")),
        lambda table: encoded(table.select([0, 1, 2, 4, 3, 5])),
        lambda table: encoded(table.rename_columns([*table.column_names[:-1], "layer_5"])),
        lambda table: encoded(table.slice(1)),
        lambda table: encoded(table.take(list(reversed(range(len(table)))))),
        lambda table: encoded(table.replace_schema_metadata({})),
        lambda table: encoded(table.replace_schema_metadata({"llmembed": "[" * 9000})),
        lambda table: encoded(table)[:-8] + b"PAR1" * 3,
        lambda table: b"PAR1" + encoded(table),
    ],
)
def test_a_shard_of_another_layout_is_refused_by_name_and_taken_out(change, filled):
    cache, rows = filled
    path = shard_files(cache)[0]
    recommit(cache, change(pq.read_table(path)))
    with refused(CacheError, match=rf"1 of 3 shards .*{path.name} (has|is|holds|does) .*fix: llmembed extract"):
        Cache.open(cache.url).locate(rows.keys)
    assert cache.prepare() == 1 and not path.exists()
    write_missing(cache, rows)
    assert_same_bits(read(Cache.open(cache.url), rows.keys, TOY.layers), rows.embeddings)


def test_whatever_a_footer_says_the_rows_are_the_same_or_the_shard_is_refused(filled):
    cache, rows = filled
    path = shard_files(cache)[0]
    content, draw, refused = path.read_bytes(), random.Random(0), 0
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 4, 9])):
            changed[draw.randrange(footer, len(content))] = draw.randrange(256)
        recommit(cache, changed)
        opened = Cache.open(cache.url)
        try:
            assert_same_bits(read(opened, rows.keys, TOY.layers), rows.embeddings)
            opened.verify()
        except CacheError as error:
            refused += 1
            assert path.name in str(error)
    assert 50 < refused < 150


def test_no_byte_of_a_footer_or_page_header_ends_the_process_or_moves_a_value():
    rows = made_up([f"text {i}" for i in range(20)])
    content = bytes(encode_shard(rows, TOY.layers, TOY.fingerprint))
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")

    def look(content):
        view = ShardView(content, 20, TOY.layers, TOY.dtype, TOY.dim, TOY.fingerprint)
        return view.keys(), [view.layer(layer).tobytes() for layer in TOY.layers], view.tokens().tolist()

    before = look(content)
    # A codec that does not exist is among them, at which the parser of pyarrow aborts the process.
    for position, mask in product([*range(20), *range(footer, len(content))], (0x05, 0x80)):
        changed = bytearray(content)
        changed[position] ^= mask
        with suppress(ValueError):
            assert look(bytes(changed)) == before


DEEP, LONG = (b"\x19" * 5000, b"\x1c" * 5000), (b"\x19\xfc\xff\xff\xff\x0f", b"\x18\x7f", b"\x15", b"")


@pytest.mark.parametrize("content", [*DEEP, *LONG])
def test_a_struct_that_is_none_is_a_value_error(content):
    with pytest.raises(ValueError):
        read_struct(memoryview(content), 0)
