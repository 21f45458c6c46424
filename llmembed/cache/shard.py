"""One shard: keys, token counts and embeddings as the bytes of a Parquet file, and back as views of the file.

The layout (cache/README.md) is chosen so that the values of a column lie in the file as one plain run of bytes: a
required FixedSizeBinary column, uncompressed, without statistics or dictionary, one page in one row group. Any Parquet
reader opens it; numpy can map it. `cache.layout` holds a file against it. Knows arrays, no commits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmembed.cache.content import Content
from llmembed.cache.layout import OVERHEAD_BYTES, find_columns, list_columns
from llmembed.identity import KEY_BYTES

CACHE_FORMAT = 1
# Enough for one page per column whatever the width: 4,096 rows of 65,536 float32 values are 1 GiB.
PAGE_BYTES = 1 << 30


@dataclass(frozen=True)
class EmbeddedRows:
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


def encode_shard(rows: EmbeddedRows, layers: Sequence[int], fingerprint: str) -> memoryview:
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
    description = json.dumps(describe(layers, dtype, dim, fingerprint))
    schema = pa.schema([field.with_nullable(False) for field in fields], {"llmembed": description})
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
    """Views of a shard's columns, which is opened only if all of it is as it must be.

    Nothing but its footer, its page headers and its keys is read until a value is looked at.

    Attributes:
        content: its bytes, of which ranges are views where they are mapped, and read where not.
        shard_id: the hash of the keys that it holds.

    Raises:
        ValueError: what of the file is not as it must be.
    """

    def __init__(
        self, content: Content, rows: int, layers: Sequence[int], dtype: str, dim: int, fingerprint: str
    ) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        columns = list_columns(layers, dim * self._dtype.itemsize)
        self._ranges = find_columns(content, rows, columns, describe(layers, dtype, dim, fingerprint))
        self._mapped = np.frombuffer(content, np.uint8) if isinstance(content, memoryview) else None
        self._rows, self._dim = rows, dim
        self.content = content
        self.shard_id = _hash_keys(self._values("key"))

    def __len__(self) -> int:
        return self._rows

    def keys(self) -> list[bytes]:
        """Return the keys in row order."""
        joined = self._values("key").tobytes()
        return [joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES)]

    def tokens(self) -> np.ndarray:
        """Return the token counts, int32 [rows]."""
        return self._values("tokens").view("<i4")

    def truncated(self) -> np.ndarray:
        """Return the truncation marks, bool [rows]."""
        return np.unpackbits(self._values("truncated"), count=self._rows, bitorder="little").astype(bool)

    def layer(self, layer: int) -> np.ndarray:
        """Return the embeddings of one layer, [rows, dim] in the dtype on disk; a view where mapped."""
        return self._values(f"layer_{layer}").view(self._dtype).reshape(self._rows, -1)

    def take(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Return rows of one layer, [rows, dim]; of what is not mapped, the bytes from the first to the last are read.

        Raises:
            DamageError: what is not mapped is gone, or shorter than it was.
        """
        if self._mapped is not None:
            taken: np.ndarray = self.layer(layer)[rows]
            return taken
        first, (start, _) = int(rows.min()), self._ranges[f"layer_{layer}"]
        width = self._dim * self._dtype.itemsize
        between = self.content[start + first * width : start + (int(rows.max()) + 1) * width]
        span: np.ndarray = np.frombuffer(between, self._dtype).reshape(-1, self._dim)[rows - first]
        return span

    def _values(self, column: str) -> np.ndarray:
        start, stop = self._ranges[column]
        return np.frombuffer(self.content[start:stop], np.uint8) if self._mapped is None else self._mapped[start:stop]


def describe(layers: Sequence[int], dtype: str, dim: int, fingerprint: str) -> dict[str, Any]:
    """Return what a shard says of itself, as JSON values."""
    return {"format": CACHE_FORMAT, "fingerprint": fingerprint, "dtype": dtype, "dim": dim, "layers": list(layers)}


def make_shard_id(keys: Sequence[bytes]) -> str:
    """Return the name of the shard that holds keys in this order."""
    return _hash_keys(b"".join(keys))


def _hash_keys(joined: Any) -> str:
    return blake2b(joined, digest_size=12).hexdigest()


def _fixed_size_binary(content: bytes | np.ndarray, width: int, count: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(content)])
