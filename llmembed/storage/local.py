"""A store in a local folder: every object is a file, and mapping, links and locks are the file system's.

In: names and bytes. Out: the same. A file appears under its name at once and whole, or not at all; only regular files
count, and no link is followed. Knows bytes and names, nothing of what they mean.
"""

import errno
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from llmembed.errors import CacheError
from llmembed.storage import ORPHAN_SECONDS, Entry, Kind, Stat, in_the_way
from llmembed.storage.locks import NoLocksError, locked, try_lock

Placed = TypeVar("Placed")
# A file that is being written: hidden, and the name that it will have.
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}")
# How often a writer begins again whose hidden file was deleted: by one on another machine, whose locks do not reach.
ATTEMPTS = 5
# What file systems say that have no hard links, and those that cannot flush a folder.
NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL}
NO_FLUSH = {*NO_LINKS, errno.EBADF, errno.EISDIR}


class LocalStore:
    """Files under one local folder; names are relative paths with forward slashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def url(self) -> str:
        """Return the path of the folder."""
        return str(self._folder)

    def child(self, folder: str) -> "LocalStore":
        """Return the store of a folder below this one."""
        return LocalStore(self._path(folder))

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Write a file and flush it to disk, in the place of the one that has its name, if there is one.

        Raises:
            CacheError: the folder cannot be written to, or is full; nothing is left of the file.
        """
        self._place(name, content, os.replace)

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """Create a file unless one of that name exists; return whether it is there with this content.

        Of callers with different contents exactly one wins. A hard link does it, which fails if the name is taken;
        where there are none, a rename under the lock of the folder.

        Raises:
            CacheError: as `put`, or something that is not a file has the name, or there are neither hard links nor
                locks.
        """

        def link(partial: Path, path: Path) -> bool:
            try:
                os.link(partial, path)
            except FileNotFoundError:
                raise
            except OSError as error:
                # A network file system may lose the reply, ask again, and find the link that it made itself.
                if self._holds(name, content):
                    return True
                if error.errno in NO_LINKS:
                    return self._rename_if_absent(name, content, partial)
                if not isinstance(error, FileExistsError):
                    raise
                return self._taken(name)
            return True

        return self._place(name, content, link)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read a file, or a range of its bytes.

        Raises:
            FileNotFoundError: there is none, or what has the name is not a regular file.
            CacheError: it cannot be read.
        """
        with self._open(name) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(0, stop - start))

    def map(self, name: str) -> memoryview:
        """Map a whole file into memory, without reading it.

        Raises:
            FileNotFoundError, CacheError: as `read`.
        """
        with self._open(name) as descriptor:
            size = os.fstat(descriptor).st_size
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b"")

    def entries(self, folder: str) -> list[Entry]:
        """List a folder, sorted; hidden files, among them those being written, are left out.

        Raises:
            CacheError: the folder cannot be read.
        """
        above = f"{folder}/" if folder else ""
        found = self._entries(folder)
        return [
            Entry(f"{above}{name}", kind)
            for name, kind in sorted(found.items())
            if kind != "regular" or not name.startswith(".")
        ]

    def stat(self, name: str) -> Stat | None:
        """Return size, i-node and time of a file, None if there is no such regular file.

        Raises:
            CacheError: it may not be looked at.
        """
        found = self._stat(name)
        return None if found is None else Stat(found.st_size, (found.st_ino, found.st_mtime_ns), found.st_mtime)

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no error.

        Raises:
            CacheError: it cannot be deleted.
        """
        with _explained(self._path(name), "deleted"):
            self._path(name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the folder, against other writers; nothing is held where there are no locks."""
        with ExitStack() as held:
            with _explained(self._path(".lock"), "locked"), suppress(NoLocksError):
                held.enter_context(locked(self._path(".lock")))
            yield

    def delete_abandoned(self, folder: str) -> None:
        """Delete the hidden files that dead writers left in a folder; one that cannot be deleted is no error."""
        for name, kind in self._entries(folder).items():
            if kind == "regular" and PARTIAL.fullmatch(name):
                with suppress(OSError):
                    _sweep(self._path(folder) / name)

    def _place(self, name: str, content: bytes | memoryview, place: Callable[[Path, Path], Placed]) -> Placed:
        """Write a hidden file beside its place, under its lock, and let `place` bring it there."""
        path = self._path(name)
        with _explained(path, "written"):
            for _ in range(ATTEMPTS):
                partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
                try:
                    _make_folder(path.parent)
                    with partial.open("xb") as file:
                        if not _owned(file.fileno(), partial):
                            continue
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                        placed = place(partial, path)
                except FileNotFoundError:
                    continue
                finally:
                    # A full disk has its room back at once.
                    with suppress(OSError):
                        partial.unlink(missing_ok=True)
                _flush_folder(path.parent)
                return placed
        raise CacheError(f"{path} cannot be written: another program deletes it meanwhile.")

    def _rename_if_absent(self, name: str, content: bytes | memoryview, partial: Path) -> bool:
        try:
            with locked(self._path(".lock")):
                if os.path.lexists(self._path(name)):
                    return self._holds(name, content) or self._taken(name)
                partial.rename(self._path(name))
                return True
        except NoLocksError as error:
            raise CacheError(
                f"{self._folder} lies on a file system with neither hard links nor locks, on which two writers could "
                "overwrite each other. Name a folder on another one."
            ) from error

    def _holds(self, name: str, content: bytes | memoryview) -> bool:
        try:
            return self.read(name) == content
        except FileNotFoundError:
            return False

    def _taken(self, name: str) -> bool:
        if self._stat(name) is None and os.path.lexists(self._path(name)):
            raise in_the_way(self._path(name), "a regular file")
        return False

    def _stat(self, name: str) -> os.stat_result | None:
        # What may not be looked at is not missing: to take it for that would throw away what is whole.
        with _explained(self._path(name), "read"):
            try:
                found = self._path(name).lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found if stat.S_ISREG(found.st_mode) else None

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        # To open a pipe for reading waits for a writer, unless it is told not to.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with _explained(self._path(name), "read"):
            try:
                descriptor = os.open(self._path(name), flags)
            except OSError as error:
                if self._stat(name) is None:
                    raise FileNotFoundError(errno.ENOENT, "no such regular file", str(self._path(name))) from error
                raise
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileNotFoundError(errno.ENOENT, "no such regular file", str(self._path(name)))
                yield descriptor
            finally:
                os.close(descriptor)

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _entries(self, folder: str) -> dict[str, Kind]:
        with _explained(self._path(folder), "read"):
            try:
                with os.scandir(self._path(folder)) as entries:
                    return {entry.name: _kind(entry) for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                return {}


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(
            f"{path} cannot be {what}: {error.strerror or error}. Make room or fix the permissions there, or name "
            "another folder."
        ) from error


def _kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_file(follow_symlinks=False):
        return "regular"
    # Folders that are linked to count: people put a large data set on another disk.
    with suppress(OSError):
        if entry.is_dir():
            return "folder"
    return "foreign"


def _sweep(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        try:
            dead = try_lock(descriptor)
        except NoLocksError:
            dead = time.time() - path.lstat().st_mtime > ORPHAN_SECONDS
        if dead:
            path.unlink()
    finally:
        os.close(descriptor)


def _owned(descriptor: int, path: Path) -> bool:
    """Take the lock on a new file; tell whether the path still leads to it, which a sweep may have deleted before."""
    try:
        if not try_lock(descriptor):
            return False
    except NoLocksError:
        return True
    return os.path.samestat(os.fstat(descriptor), path.stat())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise in_the_way(error.filename, "a folder") from error


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
