"""Embeddings on disk, addressed by text: Parquet shards and the commit records that make them count.

In: keys, token counts and embeddings [rows, layers, dim]. Out: the same, found by key and never by position, from the
memory-mapped shards. `cache/README.md` states the format. Knows arrays and keys, no model and no labels.
"""

import json
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from llmembed.backbones import BackboneSpec
from llmembed.backbones.weights import KNOWN
from llmembed.cache.kept import Kept, keep
from llmembed.cache.quarantine import Quarantine
from llmembed.cache.shard import FORMAT, Rows, ShardView, encode_shard
from llmembed.cache.store import LocalStore
from llmembed.errors import CacheError
from llmembed.identity import text_key

# A writer commits a shard within seconds of writing it; what is uncommitted after this belongs to a dead one.
ORPHAN_SECONDS = 3600.0


class Commit(BaseModel):
    """The record that makes a shard count: where it lies, what it must be, and what made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    rows: int
    bytes: int
    sha256: str
    created: str
    engine: dict[str, str]


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
    """The embeddings of one data set by one backbone spec, in one folder.

    Attributes:
        dataset: name of the data set.
        backbone: short name of the backbone.
        spec: everything that fixes the numbers.
        folder: `<root>/<dataset>/<backbone>-<fingerprint>`.
    """

    def __init__(self, folder: Path, spec: BackboneSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.dataset = folder.parent.name
        self.backbone = folder.name.rpartition("-")[0]
        self._store = LocalStore(folder)
        self.quarantine = Quarantine(self._store)

    @classmethod
    def at(cls, root: Path, dataset: str, backbone: str, spec: BackboneSpec) -> "Cache":
        """Give the cache of a spec, which need not exist yet; writes nothing.

        Raises:
            CacheError: the folder has another format or belongs to another spec.
        """
        folder = root / dataset / f"{backbone}-{spec.fingerprint}"
        cache = cls.open(folder) if (folder / "spec.json").exists() else cls(folder, spec)
        if cache.spec != spec:
            raise CacheError(
                f"{folder} holds the embeddings of another backbone: {cache.spec}. Use another --cache folder."
            )
        return cache

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """Open an existing cache.

        Raises:
            CacheError: no cache, another format, or a record that cannot be read.
        """
        try:
            record = json.loads((folder / "spec.json").read_bytes())
            if record["format"] != FORMAT:
                raise CacheError(
                    f"{folder} has format {record['format']}; this llmembed reads format {FORMAT}. Install the "
                    f"llmembed that wrote it, or delete the folder and run {_recorded_command(folder)}."
                )
            return cls(folder, BackboneSpec.model_validate(record["spec"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"{folder / 'spec.json'} cannot be read ({type(error).__name__}); if it is damaged, delete the folder "
                f"and run {_recorded_command(folder)}."
            ) from error

    @classmethod
    def latest(
        cls, root: Path, dataset: str | None = None, backbone: str | None = None, words: Sequence[str] = ()
    ) -> "Cache":
        """Open the cache that was extracted last: of all, of a data set, or of a data set by a backbone.

        `backbone` is what named it to `extract`, or the name of the cache's folder; `words` name the data set on a
        command line.

        Raises:
            CacheError: there is none.
        """
        folders = [path.parent for path in root.glob("*/*/spec.json")]
        caches = [cls.open(folder) for folder in folders if dataset in (None, folder.parent.name)]
        caches = [cache for cache in caches if backbone is None or cache._is_by(backbone)]
        if not caches:
            what = f"embeddings of {dataset}" if dataset else "embeddings"
            option = ["--backbone", backbone] if backbone else []
            command = shlex.join(
                ["llmembed", "extract", *(words or [dataset or "DATASET"]), *option, *_root_words(root)]
            )
            raise CacheError(
                f"There are no {what}{f' by {backbone}' if backbone else ''} in {root}. Run `{command}` first."
            )
        # Extraction records are named by time; a cache whose extraction never finished comes last.
        return max(caches, key=lambda cache: max(cache._store.names("extractions"), default=""))

    @cached_property
    def commits(self) -> list[Commit]:
        """Read the commit records, in the order of their names.

        Raises:
            CacheError: a record that is not one.
        """
        commits = []
        for name in self._store.names("commits"):
            try:
                commits.append(Commit.model_validate_json(self._store.read(name)))
            except FileNotFoundError:
                # Another writer found the shard damaged and took it out.
                continue
            except ValidationError as error:
                raise CacheError(f"{self.folder / name} is damaged; delete it and run {self.mend()}.") from error
        return commits

    @property
    def size(self) -> int:
        """Count the bytes of all committed shards."""
        return sum(commit.bytes for commit in self.commits)

    def mend(self, dataset: Sequence[str] | None = None) -> str:
        """Give the command that brings what is missing or damaged, of the data set last extracted or of another."""
        last = self.last_extraction()
        return _extract_command(self.folder, last, dataset or last.get("dataset", [self.dataset]), self._spec_words())

    def _spec_words(self) -> list[str]:
        spec = self.spec
        return [
            *("--backbone", self.backbone if self.backbone in KNOWN else spec.model),
            *("--layers", ",".join(map(str, spec.layers))),
            *("--pooling", spec.pooling),
            *("--max-length", str(spec.max_length)),
            *("--template", spec.template),
            *("--dtype", spec.dtype),
        ]

    def _is_by(self, backbone: str) -> bool:
        found_as = self.last_extraction().get("backbone")
        return (
            backbone in (self.backbone, self.folder.name, self.spec.model, found_as)
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
            CacheError: keys are missing, with the command that mends it.
        """
        located = self.locate(keys)
        if len(located.missing):
            raise CacheError(
                f"{len(located.missing):,} of {len(keys):,} texts are not in {self.folder}. "
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
                embeddings[positions, index] = self._views[number].layer(layer)[rows]
        return embeddings

    def matrix(self, texts: Sequence[str], layers: Sequence[int] | None = None) -> np.ndarray:
        """Give the layers of texts side by side, float32 [texts, layers * dim], for an estimator of one's own.

        They are not standardised: put a `StandardScaler` before what needs it.

        Raises:
            CacheError: texts are missing or shards damaged, with the command that mends it.
        """
        located = self.locate_all([text_key(text) for text in texts], self.last_extraction().get("dataset", []))
        return self.read(located, layers or self.spec.layers).reshape(len(texts), -1).astype(np.float32)

    def identify(self, located: Located, layers: Sequence[int]) -> dict[str, Any]:
        """Give, as JSON values, what determines the values of located rows and their order."""
        shards, position = np.unique(located.shard, return_inverse=True)
        digest = sha256("".join(self.commits[shard].sha256 for shard in shards).encode())
        digest.update(np.stack([position, located.row]).astype("<i8").tobytes())
        return {"fingerprint": self.spec.fingerprint, "layers": list(layers), "rows": digest.hexdigest()}

    def keep(self, what: Mapping[str, Any], make: Callable[[], Kept]) -> Kept:
        """Give arrays that were computed from rows of this cache before, or make and keep them (`cache.kept`)."""
        return keep(self._store, what, make)

    def layer_views(self, layer: int) -> list[np.ndarray]:
        """Map one layer of every shard, [rows, dim] each in the dtype on disk, without reading it."""
        return [view.layer(layer) for view in self._views]

    def claim(self) -> None:
        """Write down whose embeddings the folder holds, unless that is done."""
        if self._store.size("spec.json") is None:
            record = {"format": FORMAT, "spec": self.spec.model_dump(mode="json")}
            self._store.create("spec.json", json.dumps(record, indent=1).encode())

    def write_shard(self, rows: Rows, engine: dict[str, str]) -> bool:
        """Write one shard and commit it; give whether it counts, or another writer had committed the same keys.

        Raises:
            ValueError: shape or dtype of the embeddings are not those of the spec.
        """
        expected = (len(rows.keys), len(self.spec.layers), self.spec.dim)
        if rows.embeddings.shape != expected or rows.embeddings.dtype != self.spec.dtype:
            given = f"{rows.embeddings.dtype} {list(rows.embeddings.shape)}"
            raise ValueError(f"embeddings are {given}, the spec wants {self.spec.dtype} {list(expected)}")
        content = encode_shard(rows, self.spec.layers, self.spec.fingerprint)
        self.claim()
        shard_id = blake2b(b"".join(rows.keys), digest_size=12).hexdigest()
        path = f"shards/{shard_id}-{secrets.token_hex(4)}.parquet"
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(lambda: sha256(content).hexdigest())
            self._store.put(path, content)
        commit = Commit(
            path=path,
            rows=len(rows.keys),
            bytes=len(content),
            sha256=digest.result(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            engine=engine,
        )
        won = self._store.create(f"commits/{shard_id}.json", commit.model_dump_json(indent=1).encode())
        if not won:
            self._store.delete(path)
        self.refresh()
        return won

    def verify(self, shards: Sequence[int] | None = None) -> None:
        """Compare shards (all, or those numbered) with the size and SHA-256 of their commits.

        Raises:
            CacheError: a shard is missing or damaged, with the command that mends it.
        """
        damaged = self._damaged(range(len(self.commits)) if shards is None else shards)
        if damaged:
            first, reason = next(iter(damaged.items()))
            raise CacheError(
                f"{len(damaged)} of {len(self.commits)} shards in {self.folder} are damaged "
                f"({Path(self.commits[first].path).name} {reason}). Run {self.mend()} to make them again."
            )

    def prepare(self) -> int:
        """Make the folder ready for writing: take damaged shards out, delete what dead writers left.

        Returns:
            the number of damaged shards, whose texts are now missing.
        """
        damaged = [self.commits[number].path for number in self._damaged(range(len(self.commits)))]
        for path in damaged:
            self._store.delete(f"commits/{Path(path).name.rpartition('-')[0]}.json")
        self.refresh()
        committed = {commit.path for commit in self.commits}
        for name in self._store.names("shards"):
            if name in damaged or (name not in committed and self._store.age(name, time.time()) > ORPHAN_SECONDS):
                self._store.delete(name)
        return len(damaged)

    def record_extraction(self, report: dict[str, Any]) -> None:
        """Keep the report of a finished extraction; the newest one tells which cache was extracted last."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._store.create(f"extractions/{moment}-{secrets.token_hex(2)}.json", json.dumps(report, indent=1).encode())

    def last_extraction(self) -> dict[str, Any]:
        """Give the report of the last finished extraction, empty if none finished."""
        return _last_extraction(self._store)

    @cached_property
    def _views(self) -> list[ShardView]:
        with self._damage_explained():
            return [
                ShardView(self._store.path(each.path), each.bytes, self.spec.dtype, self.spec.dim)
                for each in self.commits
            ]

    @cached_property
    def _index(self) -> dict[bytes, tuple[int, int]]:
        index: dict[bytes, tuple[int, int]] = {}
        with self._damage_explained():
            for number, view in enumerate(self._views):
                for row, key in enumerate(view.keys()):
                    # Two writers may have committed the same text in different shards; the first one counts.
                    index.setdefault(key, (number, row))
        return index

    @contextmanager
    def _damage_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, LookupError):
            # A damaged footer can fail in any of these ways; the checksums say which shard it is.
            self.verify()
            raise

    def refresh(self) -> None:
        """Read the commits again, after other processes have written some."""
        for derived in ("commits", "_views", "_index"):
            self.__dict__.pop(derived, None)

    def _gather(self, located: Located, column: Any, dtype: Any) -> np.ndarray:
        _refuse_missing(located)
        values = np.zeros(len(located.shard), dtype)
        for number in np.unique(located.shard):
            positions = np.flatnonzero(located.shard == number)
            values[positions] = column(self._views[number])[located.row[positions]]
        return values

    def _damaged(self, shards: Sequence[int]) -> dict[int, str]:
        with ThreadPoolExecutor() as pool:
            reasons = dict(zip(shards, pool.map(self._fault, shards), strict=True))
        return {number: reason for number, reason in reasons.items() if reason}

    def _fault(self, shard: int) -> str:
        commit = self.commits[shard]
        size = self._store.size(commit.path)
        if size is None:
            return "is missing"
        if size != commit.bytes:
            return f"has {size:,} bytes, its commit says {commit.bytes:,}"
        digest = sha256(np.memmap(self._store.path(commit.path), np.uint8, "r").data).hexdigest()
        return "" if digest == commit.sha256 else "has another SHA-256 than its commit says"


def _last_extraction(store: LocalStore) -> dict[str, Any]:
    names = store.names("extractions")
    return dict(json.loads(store.read(names[-1]))) if names else {}


def _recorded_command(folder: Path) -> str:
    last = _last_extraction(LocalStore(folder))
    return _extract_command(folder, last, last.get("dataset", [folder.parent.name]), [])


def _extract_command(folder: Path, last: dict[str, Any], dataset: Sequence[str], options: Sequence[str]) -> str:
    words = ["llmembed", "extract", *dataset, *last.get("options", options), *_root_words(folder.parent.parent)]
    return f"`{shlex.join(words)}`"


def _root_words(root: Path) -> list[str]:
    return [] if root == Path("cache") else ["--cache", str(root)]


def _refuse_missing(located: Located) -> None:
    if len(located.missing):
        raise ValueError(f"{len(located.missing)} of {len(located.row)} rows are not in the cache")
