"""Rows of opened shards, found by key: where they lie, and what stands there.

In: shards, and keys. Out: `Located`, token counts, truncation marks and embeddings [rows, layers, dim]. Knows no commit
record and repairs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from llmembed.backbones import BackboneSpec
from llmembed.cache.commits import Commit, Shard, find_faults, open_shards
from llmembed.cache.content import DamageError
from llmembed.cache.shard import ShardView
from llmembed.storage import Store

# What raises an error if something is wrong with shards, given by their paths.
Refuse = Callable[[Sequence[str], Sequence[str]], None]


@dataclass(frozen=True)
class Located:
    """Where the rows of a request lie: `shard[i]`, `row[i]` for the i-th key, int64; -1 where the key is missing."""

    shard: np.ndarray
    row: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Return the positions of the keys that are not in the cache."""
        return np.flatnonzero(self.shard < 0)

    @property
    def found(self) -> "Located":
        """Return only the rows that are in the cache."""
        return Located(self.shard[self.shard >= 0], self.row[self.shard >= 0])


class StoredRows:
    """The rows of some shards, which are numbered in their order."""

    def __init__(self, shards: Sequence[Shard], spec: BackboneSpec, refuse: Refuse) -> None:
        self.shards, self._spec, self._refuse = shards, spec, refuse

    @cached_property
    def _index(self) -> dict[bytes, tuple[int, int]]:
        index: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(self.shards):
            for row, key in enumerate(shard.view.keys()):
                # Two writers may have committed the same text in different shards; the first one counts.
                index.setdefault(key, (number, row))
        return index

    def locate(self, keys: Sequence[bytes]) -> Located:
        """Find the rows of keys."""
        found = [self._index.get(key, (-1, -1)) for key in keys]
        shard, row = np.array(found, np.int64).reshape(-1, 2).T
        return Located(shard, row)

    def gather(self, located: Located, column: Callable[[ShardView], np.ndarray], dtype: Any) -> np.ndarray:
        """Return what a column has for located rows, [rows] of a dtype."""
        values = np.zeros(len(located.shard), dtype)

        def copy(view: ShardView, positions: np.ndarray, rows: np.ndarray) -> None:
            values[positions] = column(view)[rows]

        self._visit(located, copy)
        return values

    def read(self, located: Located, layers: Sequence[int]) -> np.ndarray:
        """Return the embeddings of located rows, [rows, layers, dim] in the dtype on disk."""
        embeddings = np.empty((len(located.row), len(layers), self._spec.dim), self._spec.dtype)

        def copy(view: ShardView, positions: np.ndarray, rows: np.ndarray) -> None:
            for index, layer in enumerate(layers):
                embeddings[positions, index] = view.take(layer, rows)

        self._visit(located, copy)
        return embeddings

    def identify(self, located: Located, layers: Sequence[int]) -> dict[str, Any]:
        """Return, as JSON values, what determines the values of located rows and their order."""
        shards, position = np.unique(located.shard, return_inverse=True)
        digest = sha256("".join(self.shards[shard].commit.sha256 for shard in shards).encode())
        digest.update(np.stack([position, located.row]).astype("<i8").tobytes())
        return {"fingerprint": self._spec.fingerprint, "layers": list(layers), "rows": digest.hexdigest()}

    def verify(self, numbers: Sequence[int]) -> None:
        """Compare shards with the size and SHA-256 of their commits.

        Raises:
            CacheError: a shard is missing or damaged.
        """
        chosen = [self.shards[number] for number in numbers]
        self._refuse([shard.commit.path for shard in chosen], find_faults(chosen))

    def _visit(self, located: Located, copy: Callable[[ShardView, np.ndarray, np.ndarray], None]) -> None:
        """Let `copy` take what it needs of each shard: for which positions of the request, and from which rows.

        Raises:
            ValueError: a key of the request is not in the cache.
            CacheError: a shard that is not mapped has gone since it was opened.
        """
        if len(located.missing):
            raise ValueError(f"{len(located.missing)} of {len(located.row)} rows are not in the cache")
        for number in np.unique(located.shard):
            positions = np.flatnonzero(located.shard == number)
            try:
                copy(self.shards[number].view, positions, located.row[positions])
            except DamageError as damage:
                self._refuse([self.shards[number].commit.path], [str(damage)])


def open_rows(store: Store, commits: Sequence[Commit], spec: BackboneSpec, refuse: Refuse) -> StoredRows:
    """Open the shards of commits.

    Raises:
        CacheError: a shard is missing, or not what its commit and the spec say.
    """
    opened = open_shards(store, commits, spec)
    refuse([commit.path for commit in commits], ["" if isinstance(each, Shard) else str(each) for each in opened])
    return StoredRows([each for each in opened if isinstance(each, Shard)], spec, refuse)
