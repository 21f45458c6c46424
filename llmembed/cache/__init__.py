"""Embeddings on disk, addressed by text: Parquet shards and the commit records that make them count.

In: keys, token counts and embeddings [rows, layers, dim]. Out: the same, found by key and never by position, from the
memory-mapped shards. `cache/README.md` states the format. Knows arrays and keys, no model and no labels.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from llmembed.backbones import BackboneSpec
from llmembed.cache import maintenance, records
from llmembed.cache.catalog import find_latest
from llmembed.cache.commits import COMMITS, Commit, refuse_foreign
from llmembed.cache.derived import DerivedArrays
from llmembed.cache.opening import is_claimed, open_commits, open_last_extraction, open_spec, refuse_damaged
from llmembed.cache.place import folder_of, place_of
from llmembed.cache.quarantine import Quarantine
from llmembed.cache.records import ExtractionRecord
from llmembed.cache.remedy import request_again
from llmembed.cache.rows import Located, StoredRows, open_rows
from llmembed.cache.shard import EmbeddedRows, ShardView
from llmembed.cache.writing import write_shard
from llmembed.errors import CacheError
from llmembed.identity import text_key
from llmembed.requests import ExtractionRequest, Reading
from llmembed.storage import ORPHAN_SECONDS, Location, Store, list_names, open_store

__all__ = ["ORPHAN_SECONDS", "Cache", "Commit", "Located"]


class Cache:
    """The embeddings of one data set by one backbone spec, in one store.

    Attributes:
        dataset: name of the data set.
        backbone: short name of the backbone.
        name: `<backbone>-<fingerprint>`, the name of its folder.
        url: where it lies, by which it is opened again: `<root>/<dataset>/<name>`.
        spec: everything that fixes the numbers.
        quarantine: which texts have no embeddings, and why.
        derived: arrays that were computed from its rows.
    """

    def __init__(self, store: Store, spec: BackboneSpec, reading: Reading | None = None) -> None:
        place = place_of(store)
        self.dataset, self.backbone, self.name, self.url = place.dataset, place.backbone, place.name, store.url
        self.spec = spec
        self._store = store
        self._reading = reading
        self.quarantine, self.derived = Quarantine(store), DerivedArrays(store)

    @classmethod
    def at(
        cls, root: Location, dataset: str, backbone: str, spec: BackboneSpec, reading: Reading | None = None
    ) -> "Cache":
        """Return the cache of a spec, which need not exist yet; writes nothing. `reading` as for `open`.

        Raises:
            CacheError: the folder has another format or belongs to another spec.
        """
        cache = cls(open_store(root).child(folder_of(dataset, backbone, spec)), spec, reading)
        is_claimed(cache._store, spec)
        return cache

    @classmethod
    def open(cls, url: Location, reading: Reading | None = None) -> "Cache":
        """Open an existing cache by its URL or folder; `reading` is what the data set was read by, for errors to tell.

        Raises:
            CacheError: no cache, another format, or `spec.json` is damaged, with the extraction that makes it again.
        """
        store = open_store(url)
        return cls(store, open_spec(store, reading), reading)

    @classmethod
    def latest(
        cls, root: Location, dataset: str | None = None, backbone: str | None = None, reading: Reading | None = None
    ) -> "Cache":
        """Open the cache that was extracted last: of all, of a data set, or of a data set by a backbone.

        `backbone` is what named it to `extract`, or the name of the cache's folder; `reading` as for `open`.
        Names alone decide; a damaged cache is in the way only of what would have been taken from it.

        Raises:
            CacheError: there is none, or it is damaged, with the extraction that makes it again.
        """
        store, spec = find_latest(open_store(root), dataset, backbone, reading)
        return cls(store, spec, reading)

    @cached_property
    def commits(self) -> list[Commit]:
        """Read the commit records, in the order of their names.

        Raises:
            CacheError: a record that is not one.
        """
        return open_commits(self._store, self.spec, self._reading)

    @property
    def size(self) -> int:
        """Count the bytes of all committed shards."""
        return sum(commit.bytes for commit in self.commits)

    def locate(self, keys: Sequence[bytes]) -> Located:
        """Find the rows of keys."""
        return self._rows.locate(keys)

    def locate_all(self, keys: Sequence[bytes]) -> Located:
        """Find the rows of keys and check the shards that hold them.

        Raises:
            CacheError: keys are missing or shards damaged, with the extraction that makes them.
        """
        located = self.find_all(keys)
        self.verify(np.unique(located.shard).tolist())
        return located

    def find_all(self, keys: Sequence[bytes]) -> Located:
        """Do what `locate_all` does without a look at whether the shards are whole.

        Raises:
            CacheError: keys are missing, with the extraction that makes them, or the name of what is in its way.
        """
        located = self.locate(keys)
        if len(located.missing):
            refuse_foreign(self._store)
            raise CacheError(
                f"{len(located.missing):,} of {len(keys):,} texts are not in {self.url}; extract them first.",
                cache=self.url,
                missing=len(located.missing),
                total=len(keys),
                extractions=[self.request()],
            )
        return located

    def request(self, reading: Reading | None = None) -> ExtractionRequest:
        """Return the request that extracts as it was done last, for the data set at hand or another one."""
        last, wanted = request_again(self._store, self.spec, self._reading), reading or self._reading
        return last if wanted is None else last.model_copy(update={"reading": wanted})

    def tokens(self, located: Located) -> np.ndarray:
        """Return the token counts of located rows, int32 [rows]."""
        return self._rows.gather(located, ShardView.tokens, np.int32)

    def truncated(self, located: Located) -> np.ndarray:
        """Return the truncation marks of located rows, bool [rows]."""
        return self._rows.gather(located, ShardView.truncated, np.bool_)

    def read(self, located: Located, layers: Sequence[int]) -> np.ndarray:
        """Read located rows -> [rows, layers, dim] in the dtype on disk, in the order of the request.

        Raises:
            ValueError: a key of the request is not in the cache.
        """
        return self._rows.read(located, layers)

    def matrix(self, texts: Sequence[str], layers: Sequence[int] | None = None) -> np.ndarray:
        """Return the layers of texts side by side, float32 [texts, layers * dim], for an estimator of one's own.

        They are not standardised: put a `StandardScaler` before what needs it.

        Raises:
            CacheError: texts are missing or shards damaged, with the extraction that makes it again.
        """
        located = self.locate_all([text_key(text) for text in texts])
        return self.read(located, layers or self.spec.layers).reshape(len(texts), -1).astype(np.float32)

    def identify(self, located: Located, layers: Sequence[int]) -> dict[str, Any]:
        """Return, as JSON values, what determines the values of located rows and their order."""
        return self._rows.identify(located, layers)

    def layer_views(self, layer: int) -> list[np.ndarray]:
        """Map one layer of every shard, [rows, dim] each in the dtype on disk, without reading it."""
        return [shard.view.layer(layer) for shard in self._rows.shards]

    def claim(self) -> None:
        """Write down whose embeddings the folder holds, unless that is done.

        Raises:
            CacheError: it holds those of another format, or cannot be written to.
        """
        if not is_claimed(self._store, self.spec):
            records.write_spec(self._store, self.spec)

    def write_shard(self, rows: EmbeddedRows, engine: dict[str, str]) -> bool:
        """Write one shard and commit it; return whether it counts, or another writer had committed the same keys.

        Raises:
            ValueError: shape or dtype of the embeddings are not those of the spec.
            CacheError: the folder cannot be written to, or is full.
        """
        expected = (len(rows.keys), len(self.spec.layers), self.spec.dim)
        if rows.embeddings.shape != expected or rows.embeddings.dtype != self.spec.dtype:
            given = f"{rows.embeddings.dtype} {list(rows.embeddings.shape)}"
            raise ValueError(f"embeddings are {given}, the spec wants {self.spec.dtype} {list(expected)}")
        self.claim()
        won = write_shard(self._store, self.spec, rows, engine)
        self.refresh()
        return won

    def verify(self, shards: Sequence[int] | None = None) -> None:
        """Compare shards (all, or those numbered) with the size and SHA-256 of their commits.

        Raises:
            CacheError: a shard is missing or damaged, with the extraction that makes it again.
        """
        self._rows.verify(range(len(self.commits)) if shards is None else shards)

    def verify_again(self, shards: Sequence[int]) -> None:
        """Do what `verify` does with those shards whose files somebody has written to since they were opened.

        Raises:
            CacheError: as `verify`.
        """
        self._rows.verify([number for number in shards if self._rows.shards[number].changed()])

    def prepare(self) -> int:
        """Make the folder ready for writing: take out what is damaged, delete what dead writers left.

        Returns:
            the number of damaged commits and shards, whose texts are now missing.

        Raises:
            CacheError: a file cannot be read, written or deleted, or the folder has another format.
        """
        self.refresh()
        if list_names(self._store, COMMITS):
            self.claim()
        damage = maintenance.find_damage(self._store, self.spec)
        maintenance.take_out(self._store, damage)
        maintenance.delete_damaged_extractions(self._store)
        maintenance.delete_leftovers(self._store)
        self.refresh()
        return len(damage)

    def record_extraction(self, record: ExtractionRecord) -> None:
        """Write the record of a finished extraction; the newest one tells which cache was extracted last."""
        records.write_extraction(self._store, record)

    def last_extraction(self) -> ExtractionRecord | None:
        """Return the record of the last finished extraction, None if none finished.

        Raises:
            CacheError: it is damaged, with the extraction that writes another one.
        """
        return open_last_extraction(self._store, self.spec, self._reading)

    @cached_property
    def _rows(self) -> StoredRows:
        # Not a method: a cache that its rows lead back to would hold its shards in memory until it is collected.
        refuse = partial(refuse_damaged, self._store, self.spec, self._reading, len(self.commits))
        return open_rows(self._store, self.commits, self.spec, refuse)

    def refresh(self) -> None:
        """Read the commits again, after other processes have written some."""
        for read in ("commits", "_rows"):
            self.__dict__.pop(read, None)


def open_cache(root: Location = "cache", dataset: str | None = None, backbone: str | None = None) -> Cache:
    """Open the cache that was extracted last under a root: of all, of a data set, or of that by a backbone.

    Raises:
        CacheError: as `Cache.latest`.
    """
    return Cache.latest(root, dataset, backbone)
