"""The layout of a shard: where the values of each column lie in the file, or what is not as this format has it.

In: the bytes of a Parquet file, the columns that it must have, what it must say of itself. Out: the range of each
column's values. Every footer and page header is held against what the format allows (cache/README.md), because a
range that is a few bytes off gives other numbers, not an error. Knows no value of any column.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmembed.identity import KEY_BYTES

MAGIC = b"PAR1"
# Page headers, schema and footer: some 150 bytes a column and 1 kB besides.
OVERHEAD_BYTES = 1 << 16
# Types of Thrift's compact protocol; a page header has no others.
INTEGER, STRUCT = 5, 12


@dataclass(frozen=True)
class Column:
    """A column of a shard: its name, its Parquet type, and the bits of a value."""

    name: str
    type: str
    bits: int

    def size(self, rows: int) -> int:
        """Return the bytes that the values of so many rows take."""
        return -(-rows * self.bits // 8)

    @property
    def length(self) -> int:
        """Return the type length that Parquet records: that of fixed byte arrays, 0 for other types."""
        return self.bits // 8 if self.type == "FIXED_LEN_BYTE_ARRAY" else 0


def list_columns(layers: Sequence[int], width: int) -> list[Column]:
    """Return the columns of a shard, in their order; `width` is the bytes of one layer of one text."""
    return [
        Column("key", "FIXED_LEN_BYTE_ARRAY", 8 * KEY_BYTES),
        Column("tokens", "INT32", 32),
        Column("truncated", "BOOLEAN", 1),
        *(Column(f"layer_{layer}", "FIXED_LEN_BYTE_ARRAY", 8 * width) for layer in layers),
    ]


def find_columns(
    content: Any, rows: int, columns: Sequence[Column], description: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Return first byte and end of the values of each column of a Parquet file, which is a buffer of bytes.

    Raises:
        ValueError: it is not laid out like a shard of these columns and rows, or describes itself differently.
    """
    view = memoryview(content)
    values = sum(column.size(rows) for column in columns)
    if not 0 <= len(view) - values <= OVERHEAD_BYTES:
        raise ValueError(f"has {len(view):,} bytes, which do not fit {rows:,} rows of this cache")
    footer = _find_footer(view)
    try:
        metadata = pq.read_metadata(pa.BufferReader(pa.py_buffer(view)))
        _check_description(metadata, description)
        return _check_columns(metadata, view, rows, columns, footer)
    except _LayoutError:
        raise
    except Exception as error:
        # What a damaged footer makes the parser raise is not documented; all of it means that the footer is damaged.
        raise ValueError(f"has a footer that cannot be read ({type(error).__name__})") from error


class _LayoutError(ValueError):
    pass


def _find_footer(view: memoryview) -> int:
    """Return where the footer begins."""
    size = int.from_bytes(view[-8:-4], "little")
    if len(view) < 12 or view[:4] != MAGIC or view[-4:] != MAGIC or size > len(view) - 12:
        raise ValueError("is no whole Parquet file")
    return len(view) - 8 - size


def read_description(content: Any) -> dict[str, Any]:
    """Return what a shard says of itself, empty if it cannot be read."""
    try:
        return _read_description(pq.read_metadata(pa.BufferReader(pa.py_buffer(content))))
    except Exception:
        return {}


def _read_description(metadata: Any) -> dict[str, Any]:
    found = json.loads((metadata.metadata or {}).get(b"llmembed", b"null"))
    return found if isinstance(found, dict) else {}


def _check_description(metadata: Any, expected: Mapping[str, Any]) -> None:
    found = _read_description(metadata)
    for name, value in expected.items():
        if found.get(name) != value:
            raise _LayoutError(f"has the {name} {found.get(name)!r}, this cache has {value!r}")


def _check_columns(
    metadata: Any, view: memoryview, rows: int, columns: Sequence[Column], footer: int
) -> dict[str, tuple[int, int]]:
    if (metadata.num_row_groups, metadata.num_rows, metadata.num_columns) != (1, rows, len(columns)):
        raise _LayoutError(
            f"has {metadata.num_rows:,} rows in {metadata.num_row_groups} row groups of {metadata.num_columns} "
            f"columns, expected {rows:,} in one of {len(columns)}"
        )
    ranges, start = {}, len(MAGIC)
    for number, column in enumerate(columns):
        schema, chunk = metadata.schema.column(number), metadata.row_group(0).column(number)
        size, stop = column.size(rows), start + chunk.total_compressed_size
        found = {
            "name": (schema.path, chunk.path_in_schema),
            "type": (schema.physical_type, schema.length, chunk.physical_type),
            "levels": (schema.max_definition_level, schema.max_repetition_level),
            "compression": chunk.compression,
            "dictionary": chunk.has_dictionary_page,
            "rows": chunk.num_values,
            "size": chunk.total_uncompressed_size,
            "place": chunk.data_page_offset,
        }
        expected = {
            "name": (column.name, column.name),
            "type": (column.type, column.length, column.type),
            "levels": (0, 0),
            "compression": "UNCOMPRESSED",
            "dictionary": False,
            "rows": rows,
            "size": chunk.total_compressed_size,
            "place": start,
        }
        for what, value in expected.items():
            if found[what] != value:
                raise _LayoutError(f"has a column {column.name} of another {what}: {found[what]}, expected {value}")
        if not start + size < stop <= footer or _page_header(view, start, rows, size) != stop - size:
            raise _LayoutError(f"has a column {column.name} that is not one plain page")
        ranges[column.name], start = (stop - size, stop), stop
    if start != footer:
        raise _LayoutError(f"has {footer - start:,} bytes that belong to no column")
    return ranges


def _page_header(view: memoryview, start: int, rows: int, size: int) -> int:
    """Return where the header of a page ends; -1 if it is not that of one plain page of so many rows and bytes."""
    fields, stop = _read_struct(view, start, depth=3)
    # By their numbers in Parquet's Thrift definition: kind, two sizes, and the data page, which has rows, encoding and
    # an empty struct of statistics.
    page = fields.get(5)
    plain = isinstance(page, dict) and (page.get(1), page.get(2)) == (rows, 0)
    return stop if plain and [fields.get(number) for number in (1, 2, 3)] == [0, size, size] else -1


def _read_struct(view: memoryview, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Read a struct of integers and structs in Thrift's compact protocol -> its fields by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while view[at]:
        # A step to the next number and a type in one byte.
        step, kind = divmod(view[at], 16)
        number, at = number + step, at + 1
        if kind == INTEGER and step:
            fields[number], at = _read_integer(view, at)
        elif kind == STRUCT and step and depth > 1:
            fields[number], at = _read_struct(view, at, depth - 1)
        else:
            raise _LayoutError("has a page header of another kind")
    return fields, at + 1


def _read_integer(view: memoryview, at: int) -> tuple[int, int]:
    zigzag = 0
    for shift in range(0, 35, 7):
        byte = view[at]
        zigzag |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), at
    raise _LayoutError("has a page header of another kind")
