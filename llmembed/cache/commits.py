"""Commits: the records that make shards count, and the shards that they lead to.

In: a folder of records and shards. Out: each record with its commit, or with what is wrong with it; each shard opened
and held against its commit and the spec, or what is wrong with it. Takes nothing out and repairs nothing.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmembed.backbones import BackboneSpec
from llmembed.cache.content import DamageError, digest_content, open_content
from llmembed.cache.shard import ShardView
from llmembed.storage import Store, in_the_way, list_names

COMMITS = "commits"
COMMIT_NAME = re.compile(r"commits/([0-9a-f]{24})\.json")
SHARD = re.compile(r"shards/([0-9a-f]{24})-[0-9a-f]{8}\.parquet")


class Commit(BaseModel):
    """The record that makes a shard count: where it lies, what it must be, and what made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    rows: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str
    created: str
    engine: dict[str, str]


@dataclass(frozen=True)
class Record:
    """A commit record as it lies on disk: its name and bytes, and either its commit or what is wrong with it."""

    name: str
    content: bytes
    commit: Commit | None = None
    fault: str = ""


class Shard:
    """A shard as it was opened.

    Attributes:
        commit: its commit.
        view: its columns.
    """

    def __init__(self, store: Store, commit: Commit, spec: BackboneSpec) -> None:
        self.commit = commit
        self._store = store
        found = store.stat(commit.path)
        if found is None:
            raise DamageError("is missing")
        if found.size != commit.bytes:
            raise DamageError(f"has {found.size:,} bytes, its commit says {commit.bytes:,}")
        self._stamp = found.stamp
        try:
            content = open_content(store, commit.path, found.size)
            self.view = ShardView(content, commit.rows, spec.layers, spec.dtype, spec.dim, spec.fingerprint)
        except FileNotFoundError as error:
            raise DamageError("is missing") from error
        except ValueError as error:
            raise DamageError(str(error)) from error
        if self.view.shard_id != shard_id(commit.path):
            raise DamageError("holds other keys than its name says")

    @cached_property
    def _digest(self) -> str:
        # Where it is mapped, of the very bytes that are: the name could lead to another file by now.
        return digest_content(self.view.content)

    def fault(self) -> str:
        """Return what is wrong with the shard, whose bytes are hashed for it; empty if nothing is."""
        found = self._store.stat(self.commit.path)
        if found is None:
            return "is missing"
        if found.stamp != self._stamp:
            self._stamp = found.stamp
            self.__dict__.pop("_digest", None)
        try:
            return "" if self._digest == self.commit.sha256 else "has another SHA-256 than its commit says"
        except DamageError as damage:
            return str(damage)

    def changed(self) -> bool:
        """Return whether somebody has written to the file since it was opened."""
        found = self._store.stat(self.commit.path)
        return found is not None and found.stamp != self._stamp


def refuse_foreign(store: Store) -> None:
    """Refuse a cache in which something that is no file has the name of a record.

    Raises:
        CacheError: there is such a thing; it is named.
    """
    for entry in store.entries(COMMITS):
        if entry.kind != "regular" and COMMIT_NAME.fullmatch(entry.name):
            raise in_the_way(f"{store.url}/{entry.name}", "a regular file")


def read_records(store: Store) -> list[Record]:
    """Read the commit records, in the order of their names."""
    records = []
    for name in list_names(store, COMMITS):
        # Other files are none of ours: a text counts only by a record of this name.
        if COMMIT_NAME.fullmatch(name):
            try:
                records.append(_parse(name, store.read(name)))
            except FileNotFoundError:
                # Another writer found the shard damaged and took it out.
                continue
    return records


def open_shards(store: Store, commits: Sequence[Commit], spec: BackboneSpec) -> list[Shard | DamageError]:
    """Open the shards of commits: each as it is, or what is wrong with it."""

    def open_shard(commit: Commit) -> Shard | DamageError:
        try:
            return Shard(store, commit, spec)
        except DamageError as damage:
            return damage

    with ThreadPoolExecutor() as pool:
        return list(pool.map(open_shard, commits))


def find_faults(shards: Sequence[Shard | DamageError]) -> list[str]:
    """Return, of each shard, what is wrong with it, after all of them are hashed; empty if nothing is."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda shard: shard.fault() if isinstance(shard, Shard) else str(shard), shards))


def _parse(name: str, content: bytes) -> Record:
    try:
        commit = Commit.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        return Record(name, content, fault=f"{where or 'it'} is not what a commit has there")
    if SHARD.fullmatch(commit.path) is None or f"{COMMITS}/{shard_id(commit.path)}.json" != name:
        return Record(name, content, fault=f"its path is {commit.path!r}, which is not the path of its shard")
    return Record(name, content, commit)


def shard_id(path: str) -> str:
    """Return the hash of its keys in the name of a shard."""
    return path.removeprefix("shards/").partition("-")[0]
