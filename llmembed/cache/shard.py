"""One shard: keys, token counts and embeddings as the bytes of a Parquet file, and back as views of the file.

The layout (cache/README.md) is chosen so that the values of a column lie in the file as one plain run of bytes: a
required FixedSizeBinary column, uncompressed, without statistics or dictionary, one page in one row group. Any Parquet
reader opens it; numpy can map it. Knows arrays, no commits.
"""

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmembed.identity import KEY_BYTES

FORMAT = 1
# Enough for one page per column whatever the width: 4,096 rows of 65,536 float32 values are 1 GiB.
PAGE_BYTES = 1 << 30
# Page headers, schema and footer: some 150 bytes a column and 1 kB besides.
OVERHEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Rows:
    """What a shard holds, row by row.

    Attributes:
        keys: hashes of the texts, bytes of length 16.
        tokens: number of tokens that the model read, int32 [rows].
        truncated: whether the text was cut at the length limit, bool [rows].
        embeddings: float16 or float32 [rows, layers, dim].
    """

    keys: Sequence[bytes]
    tokens: np.ndarray
    truncated: np.ndarray
    embeddings: np.ndarray


def encode_shard(rows: Rows, layers: Sequence[int], fingerprint: str) -> memoryview:
    """Encode rows as a Parquet file whose columns are `key`, `tokens`, `truncated` and one `layer_<i>` per layer."""
    count, _, dim = rows.embeddings.shape
    dtype = rows.embeddings.dtype.name
    width = dim * rows.embeddings.dtype.itemsize
    columns = [
        _fixed_size_binary(b"".join(rows.keys), KEY_BYTES, count),
        pa.array(rows.tokens, pa.int32()),
        pa.array(rows.truncated, pa.bool_()),
    ]
    fields = [pa.field("key", pa.binary(KEY_BYTES)), pa.field("tokens", pa.int32()), pa.field("truncated", pa.bool_())]
    for position, layer in enumerate(layers):
        values = np.ascontiguousarray(rows.embeddings[:, position]).astype(
            f"<f{rows.embeddings.dtype.itemsize}", copy=False
        )
        columns.append(_fixed_size_binary(values, width, count))
        fields.append(pa.field(f"layer_{layer}", pa.binary(width)))
    described = {"format": FORMAT, "fingerprint": fingerprint, "dtype": dtype, "dim": dim, "layers": list(layers)}
    schema = pa.schema([field.with_nullable(False) for field in fields], {"llmembed": json.dumps(described)})
    # A buffer of the final size: one that grows as it is written to costs more than the writing.
    content = np.empty(rows.embeddings.nbytes + count * (KEY_BYTES + 5) + OVERHEAD_BYTES, np.uint8)
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(content))
    pq.write_table(
        pa.table(columns, schema=schema),
        sink,
        row_group_size=count,
        data_page_size=PAGE_BYTES,
        max_rows_per_page=count,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return content[: sink.tell()].data


class ShardView:
    """Views of a shard's columns in the memory-mapped file; nothing but its footer is read until a value is looked at.

    Raises:
        OSError, ValueError: no such file, or not one of `size` bytes.
    """

    def __init__(self, path: Path, size: int, dtype: str, dim: int) -> None:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) != size:
            raise ValueError(f"{path} has {len(mapped)} bytes, expected {size}")
        self._metadata = pq.read_metadata(pa.BufferReader(pa.py_buffer(mapped)))
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._dim = dim

    def __len__(self) -> int:
        return int(self._metadata.num_rows)

    def keys(self) -> list[bytes]:
        """Give the keys in row order."""
        joined = self._values("key", KEY_BYTES).tobytes()
        return [joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES)]

    def tokens(self) -> np.ndarray:
        """Give the token counts, int32 [rows]."""
        return self._values("tokens", 4).view("<i4")

    def truncated(self) -> np.ndarray:
        """Give the truncation marks, bool [rows]."""
        packed = self._tail("truncated", -(-len(self) // 8))
        return np.unpackbits(packed, count=len(self), bitorder="little").astype(bool)

    def layer(self, layer: int) -> np.ndarray:
        """Give the embeddings of one layer, [rows, dim] in the dtype on disk, without a copy."""
        return self._values(f"layer_{layer}", self._dim * self._dtype.itemsize).view(self._dtype).reshape(-1, self._dim)

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {self._metadata.schema.column(i).name: i for i in range(self._metadata.num_columns)}

    def _values(self, column: str, width: int) -> np.ndarray:
        return self._tail(column, len(self) * width)

    def _tail(self, column: str, size: int) -> np.ndarray:
        # A plain page is a header and then the values; the header's length is not in the footer, the chunk's end is.
        chunk = self._metadata.row_group(0).column(self._columns[column])
        stop = chunk.data_page_offset + chunk.total_compressed_size
        return self._bytes[stop - size : stop]


def _fixed_size_binary(content: bytes | np.ndarray, width: int, count: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(content)])
