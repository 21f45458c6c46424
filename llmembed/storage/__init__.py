"""Whole objects under names, in a store that a URL chooses: a local folder, or whatever else speaks this protocol.

In: names, which are relative paths with forward slashes, and bytes. Out: the same. An object appears under its name at
once and whole, or not at all. A backend is a module here and a line in `BACKENDS`. Knows nothing of what bytes mean.
"""

import re
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote

from llmembed.errors import CacheError, UsageError

# Where caches lie, as a user says it.
Location = Path | str
Kind = Literal["regular", "folder", "foreign"]
# What nobody has finished for so many seconds belongs to a dead writer, where nothing else tells.
ORPHAN_SECONDS = 3600.0
# With one slash too, which is what `Path` makes of two.
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class Entry(NamedTuple):
    """What lies in a folder of a store; only what is regular can be read, and what is foreign is nobody's to delete."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Stat:
    """What a store knows of an object.

    Attributes:
        size: in bytes.
        stamp: what changes when the object is written to or another one takes its place.
        modified: when that was last, in seconds since 1970.
    """

    size: int
    stamp: Hashable
    modified: float


class Store(Protocol):
    """All that is asked of storage. What cannot be read, written or deleted although it is there is a CacheError."""

    @property
    def url(self) -> str:
        """Return what `open_store` opens the store by and a message calls it."""
        ...

    def child(self, folder: str) -> "Store":
        """Return the store of what lies in a folder, which need not exist; it has a lock of its own."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """List what lies in a folder ("" is the top one), sorted; a folder that does not exist is empty.

        Hidden objects, among them those being written, are left out: their names begin with a dot.
        """
        ...

    def stat(self, name: str) -> Stat | None:
        """Return what is known of an object, None if there is none of that name."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read an object, or a range of its bytes; what lies after its end is left out.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        ...

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """Create an object unless there is one of that name; return whether it is there with this content.

        Of callers with different contents exactly one wins.
        """
        ...

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Write an object, in the place of the one that has its name, if there is one; nothing is left of a failure."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object; one that is gone already is no error."""
        ...

    def delete_abandoned(self, folder: str) -> None:
        """Delete what dead writers left half written in a folder; what cannot be deleted is no error."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the store, against other writers; nothing is held where there are no locks."""
        ...


@runtime_checkable
class Mappable(Protocol):
    """What a store can do besides whose objects are files of this machine."""

    def map(self, name: str) -> memoryview:
        """Map a whole object into memory, without reading it.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        ...


def open_store(url: Location) -> Store:
    """Open the store that a URL or the path of a folder names; it need not exist yet, and nothing is written.

    Raises:
        UsageError: the URL has a scheme for which there is no backend.
    """
    found = SCHEME.match(str(url))
    scheme = found[1].lower() if found else "file"
    if scheme not in BACKENDS:
        *others, last = (f"{known}:///" for known in BACKENDS)
        known = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(
            f"{url}: embeddings cannot be kept in {scheme}:// storage. Name a folder, by its path or as {known}…"
        )
    return BACKENDS[scheme](str(url))


def list_names(store: Store, folder: str) -> list[str]:
    """List the objects in a folder by name, sorted, without what else lies there."""
    return [entry.name for entry in store.entries(folder) if entry.kind == "regular"]


def in_the_way(place: object, expected: str) -> CacheError:
    """Return the error that something else has the name of an object or folder of ours."""
    return CacheError(f"{place} is in the way: it is not {expected}. Move it elsewhere.")


def size_of(store: Store, name: str) -> int | None:
    """Return the size of an object in bytes, None if there is none of that name."""
    found = store.stat(name)
    return None if found is None else found.size


def _open_folder(url: str) -> Store:
    # Imported here, because it is made of what stands above.
    from llmembed.storage.local import LocalStore

    if SCHEME.match(url) is None:
        return LocalStore(Path(url))
    host, _, path = url.partition(":")[2].removeprefix("//").partition("/")
    if host not in ("", "localhost"):
        raise UsageError(f"{url} is a folder of another machine, {host}. Name one of this machine: file:///…")
    return LocalStore(Path("/", unquote(path)))


BACKENDS: dict[str, Callable[[str], Store]] = {"file": _open_folder}
