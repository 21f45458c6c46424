"""Embeddings on disk, addressed by text: Parquet shards and the commit records that make them count.

In: keys, token counts and embeddings [rows, layers, dim]. Out: the same, found by key and never by position, from the
memory-mapped shards. `cache/README.md` states the format. Knows arrays and keys, no model and no labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.backbones import BackboneSpec
from llmembed.cache import catalog, kept, records, repair
from llmembed.cache.commits import FOLDER as COMMITS
from llmembed.cache.commits import Commit, Shard, find_faults, open_shards, read_records, refuse_foreign, shard_id
from llmembed.cache.kept import Kept
from llmembed.cache.opening import is_claimed, open_spec
from llmembed.cache.place import folder_of, place_of
from llmembed.cache.quarantine import Quarantine
from llmembed.cache.remedy import extract_command, mend_command, recorded
from llmembed.cache.shard import Rows
from llmembed.cache.writing import write_shard
from llmembed.errors import CacheError
from llmembed.identity import text_key
from llmembed.storage import ORPHAN_SECONDS, Location, Store, list_names, open_store

__all__ = ["ORPHAN_SECONDS", "Cache", "Commit", "Located"]


@dataclass(frozen=True)
class Located:
    """Where the rows of a request lie: `shard[i]`, `row[i]` for the i-th key, int64; -1 where the key is missing."""

    shard: np.ndarray
    row: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Give the positions of the keys that are not in the cache."""
        return np.flatnonzero(self.shard < 0)

    @property
    def found(self) -> "Located":
        """Give only the rows that are in the cache."""
        return Located(self.shard[self.shard >= 0], self.row[self.shard >= 0])


class Cache:
    """The embeddings of one data set by one backbone spec, in one store.

    Attributes:
        dataset: name of the data set.
        backbone: short name of the backbone.
        name: `<backbone>-<fingerprint>`, the name of its folder.
        url: where it lies, by which it is opened again: `<root>/<dataset>/<name>`.
        spec: everything that fixes the numbers.
        quarantine: which texts have no embeddings, and why.
    """

    def __init__(self, store: Store, spec: BackboneSpec) -> None:
        place = place_of(store)
        self.dataset, self.backbone, self.name, self.url = place.dataset, place.backbone, place.name, store.url
        self.spec = spec
        self._store = store
        self._words: Sequence[str] = ()
        self._unwritten: dict[str, Kept] = {}
        self.quarantine = Quarantine(self._store)

    @classmethod
    def at(cls, root: Location, dataset: str, backbone: str, spec: BackboneSpec) -> "Cache":
        """Give the cache of a spec, which need not exist yet; writes nothing.

        Raises:
            CacheError: the folder has another format or belongs to another spec.
        """
        cache = cls(open_store(root).child(folder_of(dataset, backbone, spec)), spec)
        is_claimed(cache._store, spec)
        return cache

    @classmethod
    def open(cls, url: Location, words: Sequence[str] = ()) -> "Cache":
        """Open an existing cache by its URL or folder; `words` name its data set on a command line.

        Raises:
            CacheError: no cache, another format, or `spec.json` is damaged, with the command that mends it.
        """
        return cls._open(open_store(url), words)

    @classmethod
    def latest(
        cls, root: Location, dataset: str | None = None, backbone: str | None = None, words: Sequence[str] = ()
    ) -> "Cache":
        """Open the cache that was extracted last: of all, of a data set, or of a data set by a backbone.

        `backbone` is what named it to `extract`, or the name of the cache's folder; `words` name the data set on a
        command line. Names alone decide; a damaged cache is in the way only of what would have been taken from it.

        Raises:
            CacheError: there is none, or it is damaged, with the command that mends it.
        """
        damaged: tuple[str, CacheError] | None = None
        caches = open_store(root)
        for store, newest in catalog.list_caches(caches, dataset):
            try:
                cache = cls._open(store, words)
                if backbone is not None and not cache._is_by(backbone):
                    continue
                cache.last_extraction()
            except CacheError as error:
                if damaged is None and (backbone is None or catalog.may_be_by(store, backbone)):
                    damaged = newest, error
                continue
            if damaged is None or damaged[0] == newest:
                return cache
            hint = f" Or name a whole one, with --backbone {cache.backbone}." if dataset and backbone is None else ""
            raise CacheError(f"{damaged[1]}{hint}")
        if damaged is not None:
            raise damaged[1]
        what = f"embeddings of {dataset}" if dataset else "embeddings"
        by = f" by {backbone}" if backbone else ""
        option = ["--backbone", backbone] if backbone else []
        command = extract_command(caches.url, words or [dataset or "DATASET"], option)
        raise CacheError(f"There are no {what}{by} in {caches.url}. Run {command} first.")

    @classmethod
    def _open(cls, store: Store, words: Sequence[str]) -> "Cache":
        cache = cls(store, open_spec(store, words))
        cache._words = words
        return cache

    @cached_property
    def commits(self) -> list[Commit]:
        """Read the commit records, in the order of their names.

        Raises:
            CacheError: a record that is not one.
        """
        found = read_records(self._store)
        for record in found:
            if record.commit is None:
                raise CacheError(
                    f"{self.url}/{record.name} is damaged ({record.fault}). Run {self.mend()} to make its texts again."
                )
        return [record.commit for record in found if record.commit is not None]

    @property
    def size(self) -> int:
        """Count the bytes of all committed shards."""
        return sum(commit.bytes for commit in self.commits)

    def mend(self, dataset: Sequence[str] | None = None) -> str:
        """Give the command that brings what is missing or damaged, of the data set last extracted or of another."""
        return mend_command(self._store, self.spec, dataset, self._words)

    def _is_by(self, backbone: str) -> bool:
        found_as = recorded(self._store).get("backbone")
        return (
            backbone in (self.backbone, self.name, self.spec.model, found_as)
            or str(Path(backbone).resolve()) == found_as
        )

    def locate(self, keys: Sequence[bytes]) -> Located:
        """Find the rows of keys."""
        found = [self._index.get(key, (-1, -1)) for key in keys]
        shard, row = np.array(found, np.int64).reshape(-1, 2).T
        return Located(shard, row)

    def locate_all(self, keys: Sequence[bytes], dataset: Sequence[str]) -> Located:
        """Find the rows of keys and check the shards that hold them; `dataset` are the words that name the data set.

        Raises:
            CacheError: keys are missing or shards damaged, with the command that mends it.
        """
        located = self.find_all(keys, dataset)
        self.verify(np.unique(located.shard).tolist())
        return located

    def find_all(self, keys: Sequence[bytes], dataset: Sequence[str]) -> Located:
        """Do what `locate_all` does without a look at whether the shards are whole.

        Raises:
            CacheError: keys are missing, with the command that mends it, or the name of what is in its way.
        """
        located = self.locate(keys)
        if len(located.missing):
            refuse_foreign(self._store)
            raise CacheError(
                f"{len(located.missing):,} of {len(keys):,} texts are not in {self.url}. "
                f"Run {self.mend(dataset)} first."
            )
        return located

    def tokens(self, located: Located) -> np.ndarray:
        """Give the token counts of located rows, int32 [rows]."""
        return self._gather(located, lambda view: view.tokens(), np.int32)

    def truncated(self, located: Located) -> np.ndarray:
        """Give the truncation marks of located rows, bool [rows]."""
        return self._gather(located, lambda view: view.truncated(), np.bool_)

    def read(self, located: Located, layers: Sequence[int]) -> np.ndarray:
        """Read located rows -> [rows, layers, dim] in the dtype on disk, in the order of the request.

        Raises:
            ValueError: a key of the request is not in the cache.
        """
        _refuse_missing(located)
        embeddings = np.empty((len(located.row), len(layers), self.spec.dim), self.spec.dtype)
        for number in np.unique(located.shard):
            positions = np.flatnonzero(located.shard == number)
            rows = located.row[positions]
            for index, layer in enumerate(layers):
                embeddings[positions, index] = self._shards[number].view.take(layer, rows)
        return embeddings

    def matrix(self, texts: Sequence[str], layers: Sequence[int] | None = None) -> np.ndarray:
        """Give the layers of texts side by side, float32 [texts, layers * dim], for an estimator of one's own.

        They are not standardised: put a `StandardScaler` before what needs it.

        Raises:
            CacheError: texts are missing or shards damaged, with the command that mends it.
        """
        located = self.locate_all([text_key(text) for text in texts], recorded(self._store).get("dataset", []))
        return self.read(located, layers or self.spec.layers).reshape(len(texts), -1).astype(np.float32)

    def identify(self, located: Located, layers: Sequence[int]) -> dict[str, Any]:
        """Give, as JSON values, what determines the values of located rows and their order."""
        shards, position = np.unique(located.shard, return_inverse=True)
        digest = sha256("".join(self.commits[shard].sha256 for shard in shards).encode())
        digest.update(np.stack([position, located.row]).astype("<i8").tobytes())
        return {"fingerprint": self.spec.fingerprint, "layers": list(layers), "rows": digest.hexdigest()}

    def keep(self, what: Mapping[str, Any], make: Callable[[], Kept]) -> Kept:
        """Give arrays that were computed from rows of this cache before, or make them; `write_kept` keeps those."""
        identity = kept.identify(what)
        found = self._unwritten.get(identity) or kept.recall(self._store, identity)
        if found is None:
            found = self._unwritten[identity] = make()
        return found

    def write_kept(self) -> None:
        """Keep for later runs what was made in this one, once the rows that it was made from are verified."""
        for identity, made in self._unwritten.items():
            kept.write(self._store, identity, made)
        self._unwritten.clear()

    def forget_kept(self) -> None:
        """Keep nothing of what was made from rows that are damaged."""
        self._unwritten.clear()

    def layer_views(self, layer: int) -> list[np.ndarray]:
        """Map one layer of every shard, [rows, dim] each in the dtype on disk, without reading it."""
        return [shard.view.layer(layer) for shard in self._shards]

    def claim(self) -> None:
        """Write down whose embeddings the folder holds, unless that is done.

        Raises:
            CacheError: it holds those of another format, or cannot be written to.
        """
        if not is_claimed(self._store, self.spec):
            records.write_spec(self._store, self.spec)

    def write_shard(self, rows: Rows, engine: dict[str, str]) -> bool:
        """Write one shard and commit it; give whether it counts, or another writer had committed the same keys.

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
            CacheError: a shard is missing or damaged, with the command that mends it.
        """
        opened = self._shards if shards is None else [self._shards[number] for number in shards]
        self._refuse([shard.commit.path for shard in opened], find_faults(opened))

    def verify_again(self, shards: Sequence[int]) -> None:
        """Do what `verify` does with those shards whose files somebody has written to since they were opened.

        Raises:
            CacheError: as `verify`.
        """
        self.verify([number for number in shards if self._shards[number].changed()])

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
        damage = repair.find_damage(self._store, self.spec)
        repair.take_out(self._store, damage)
        repair.delete_damaged_extractions(self._store)
        repair.delete_leftovers(self._store)
        self.refresh()
        return len(damage)

    def record_extraction(self, report: dict[str, Any]) -> None:
        """Write the report of a finished extraction; the newest one tells which cache was extracted last."""
        records.write_extraction(self._store, report)

    def last_extraction(self) -> dict[str, Any]:
        """Return the report of the last finished extraction, empty if none finished.

        Raises:
            CacheError: it is damaged, with the command that writes another one.
        """
        name = max(records.list_extractions(self._store), default="")
        try:
            return records.read_extraction(self._store, name) if name else {}
        except (FileNotFoundError, ValueError) as error:
            raise CacheError(
                f"{self.url}/{name} is damaged ({error}). Run {self.mend()} to write another one."
            ) from error

    @cached_property
    def _shards(self) -> list[Shard]:
        opened = open_shards(self._store, self.commits, self.spec)
        faults = ["" if isinstance(each, Shard) else str(each) for each in opened]
        self._refuse([commit.path for commit in self.commits], faults)
        return [each for each in opened if isinstance(each, Shard)]

    @cached_property
    def _index(self) -> dict[bytes, tuple[int, int]]:
        index: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            for row, key in enumerate(shard.view.keys()):
                # Two writers may have committed the same text in different shards; the first one counts.
                index.setdefault(key, (number, row))
        return index

    def refresh(self) -> None:
        """Read the commits again, after other processes have written some."""
        for derived in ("commits", "_shards", "_index"):
            self.__dict__.pop(derived, None)

    def _refuse(self, paths: Sequence[str], faults: Sequence[str]) -> None:
        damaged = [(path, fault) for path, fault in zip(paths, faults, strict=True) if fault]
        if damaged:
            # Either of the two files may be the damaged one.
            path, fault = damaged[0]
            commit = f"{COMMITS}/{shard_id(path)}.json"
            raise CacheError(
                f"{len(damaged)} of {len(self.commits)} shards in {self.url} are damaged "
                f"({path.rpartition('/')[2]} {fault}; see {commit}). Run {self.mend()} to make them again."
            )

    def _gather(self, located: Located, column: Any, dtype: Any) -> np.ndarray:
        _refuse_missing(located)
        values = np.zeros(len(located.shard), dtype)
        for number in np.unique(located.shard):
            positions = np.flatnonzero(located.shard == number)
            values[positions] = column(self._shards[number].view)[located.row[positions]]
        return values


def _refuse_missing(located: Located) -> None:
    if len(located.missing):
        raise ValueError(f"{len(located.missing)} of {len(located.row)} rows are not in the cache")
