"""The layout of a shard: where the values of each column lie in the file, or what is not as this format has it.

In: the bytes of a Parquet file, the columns that it must have, what it must say of itself. Out: the range of each
column's values. Every footer and page header is held against what the format allows (cache/README.md), because a
range that is a few bytes off gives other numbers, not an error. Knows no value of any column.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmembed.cache.content import Content
from llmembed.cache.thrift import read_struct
from llmembed.identity import KEY_BYTES

MAGIC = b"PAR1"
# Page headers, schema and footer: some 150 bytes a column and 1 kB besides.
OVERHEAD_BYTES = 1 << 16
# Numbers of Parquet's types, and of the encoding, the codec and the repetition that this format has.
BOOLEAN, INT32, FIXED_LEN_BYTE_ARRAY = 0, 1, 7
PLAIN, UNCOMPRESSED, REQUIRED = 0, 0, 0


@dataclass(frozen=True)
class ColumnChunk:
    """A column of a shard: its name, the number of its Parquet type, and the bits of a value."""

    name: str
    type: int
    bits: int

    def size(self, rows: int) -> int:
        """Return the bytes that the values of so many rows take."""
        return -(-rows * self.bits // 8)


def list_columns(layers: Sequence[int], width: int) -> list[ColumnChunk]:
    """Return the columns of a shard, in their order; `width` is the bytes of one layer of one text."""
    return [
        ColumnChunk("key", FIXED_LEN_BYTE_ARRAY, 8 * KEY_BYTES),
        ColumnChunk("tokens", INT32, 32),
        ColumnChunk("truncated", BOOLEAN, 1),
        *(ColumnChunk(f"layer_{layer}", FIXED_LEN_BYTE_ARRAY, 8 * width) for layer in layers),
    ]


def find_columns(
    content: Content, rows: int, columns: Sequence[ColumnChunk], description: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Return first byte and end of the values of each column of a Parquet file; of the values none is read.

    Raises:
        ValueError: it is not laid out like a shard of these columns and rows, or describes itself differently.
    """
    values = sum(column.size(rows) for column in columns)
    if not 0 <= len(content) - values <= OVERHEAD_BYTES:
        raise ValueError(f"has {len(content):,} bytes, which do not fit {rows:,} rows of this cache")
    footer, metadata = _read_footer(content)
    found = _description(metadata)
    for name, value in description.items():
        if found.get(name) != value:
            raise ValueError(f"has the {name} {found.get(name)!r}, this cache has {value!r}")
    _check_schema(metadata.get(2), columns)
    groups = metadata.get(4)
    if not isinstance(groups, list) or len(groups) != 1 or (metadata.get(3), _get(groups[0], 3)) != (rows, rows):
        raise ValueError(f"has not {rows:,} rows in one row group")
    chunks = _get(groups[0], 1)
    if not isinstance(chunks, list) or len(chunks) != len(columns):
        raise ValueError(f"has not {len(columns)} columns in its row group")
    ranges, start = {}, len(MAGIC)
    for column, chunk in zip(columns, chunks, strict=True):
        # The columns lie one after the other: each begins where the last one ends.
        stop = _check_chunk(content, column, chunk, rows, start, footer)
        ranges[column.name], start = (stop - column.size(rows), stop), stop
    if start != footer:
        raise ValueError(f"has {footer - start:,} bytes that belong to no column")
    return ranges


def read_description(content: Content) -> dict[str, Any]:
    """Return what a shard says of itself, empty if it cannot be read."""
    try:
        return _description(_read_footer(content)[1])
    except ValueError:
        return {}


def _read_footer(content: Content) -> tuple[int, dict[int, Any]]:
    """Return where the footer begins, and its fields by the numbers of Parquet's Thrift definition."""
    end = memoryview(content[max(0, len(content) - OVERHEAD_BYTES) :])
    size, whole = int.from_bytes(end[-8:-4], "little"), min(len(content) - 12, len(end) - 8)
    if whole < 0 or content[: len(MAGIC)] != MAGIC or end[-4:] != MAGIC or size > whole:
        raise ValueError("is no whole Parquet file")
    try:
        fields, stop = read_struct(end[:-8], len(end) - 8 - size)
    except ValueError as error:
        raise ValueError(f"has a footer that cannot be read ({error})") from error
    if stop != len(end) - 8:
        raise ValueError("has a footer of another length than it says")
    return len(content) - 8 - size, fields


def _description(metadata: dict[int, Any]) -> dict[str, Any]:
    pairs = metadata.get(5)
    values = [_get(pair, 2) for pair in pairs if _get(pair, 1) == b"llmembed"] if isinstance(pairs, list) else []
    try:
        found = json.loads(values[0]) if len(values) == 1 and isinstance(values[0], bytes) else None
    except (ValueError, RecursionError) as error:
        raise ValueError("does not say what it holds") from error
    return found if isinstance(found, dict) else {}


def _check_schema(elements: Any, columns: Sequence[ColumnChunk]) -> None:
    if not isinstance(elements, list) or len(elements) != 1 + len(columns) or _get(elements[0], 5) != len(columns):
        raise ValueError(f"has not {len(columns)} columns")
    for element, column in zip(elements[1:], columns, strict=True):
        length = column.bits // 8 if column.type == FIXED_LEN_BYTE_ARRAY else None
        found = [_get(element, number) or None for number in (2, 5)]
        if [_get(element, number) for number in (1, 3, 4)] != [column.type, REQUIRED, column.name.encode()] or (
            found != [length, None]
        ):
            raise ValueError(f"has a column of another name or type in the place of {column.name}")


def _check_chunk(content: Content, column: ColumnChunk, chunk: Any, rows: int, start: int, footer: int) -> int:
    """Return where a column ends that begins at `start`, and is one plain page."""
    about, size = _get(chunk, 3), column.size(rows)
    total = _get(about, 7)
    expected = {
        "type": (1, column.type),
        "name": (3, [column.name.encode()]),
        "compression": (4, UNCOMPRESSED),
        "number of values": (5, rows),
        "size": (6, total),
        "place": (9, start),
        "dictionary": (11, None),
    }
    for what, (number, value) in expected.items():
        if _get(about, number) != value:
            raise ValueError(f"has a column {column.name} of another {what}")
    if _get(chunk, 1) is not None or not isinstance(total, int) or not size < total <= footer - start:
        raise ValueError(f"has a column {column.name} that does not lie in the file")
    try:
        page, end = read_struct(memoryview(content[start : start + total - size]), 0)
    except ValueError as error:
        raise ValueError(f"has a column {column.name} whose page cannot be read ({error})") from error
    # Kind, two sizes, and of the data page the number of its values and their encoding.
    header = [*(_get(page, number) for number in (1, 2, 3)), *(_get(page.get(5), number) for number in (1, 2))]
    if header != [0, size, size, rows, PLAIN] or end != total - size:
        raise ValueError(f"has a column {column.name} that is not one plain page")
    return start + total


def _get(struct: Any, number: int) -> Any:
    """Return a field of what should be a struct, None if there is none."""
    return struct.get(number) if isinstance(struct, dict) else None
