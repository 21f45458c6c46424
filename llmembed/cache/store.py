"""A folder of whole files: put, create if absent, replace, list, read, delete.

That is all that the cache asks of storage, so that an object store can stand in for a local folder without a new
format. A file appears under its name at once and whole, or not at all; only regular files count, and no link is
followed. Knows bytes and names, nothing of what they mean.
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

from llmembed.cache.locks import NoLocksError, locked, try_lock
from llmembed.errors import CacheError

Placed = TypeVar("Placed")
# Who writes a file holds the lock on it. Where there are no locks, what is older than this belongs to a dead writer.
ORPHAN_SECONDS = 3600.0
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
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Write a file under a name never used before and flush it to disk.

        Raises:
            CacheError: the folder cannot be written to, or is full; nothing is left of the file.
        """
        if os.path.lexists(self.path(name)):
            raise FileExistsError(self.path(name))
        self._place(name, content, os.rename)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file in the place of the one that has its name, if there is one.

        Raises:
            CacheError: as `put`.
        """
        self._place(name, content, os.replace)

    def create(self, name: str, content: bytes) -> bool:
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

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: there is none, or what has the name is not a regular file.
            CacheError: it cannot be read.
        """
        with self._open(name) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()

    def map(self, name: str) -> mmap.mmap | bytes:
        """Map a whole file into memory, without reading it.

        Raises:
            FileNotFoundError, CacheError: as `read`.
        """
        with self._open(name) as descriptor:
            size = os.fstat(descriptor).st_size
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""

    def names(self, folder: str) -> list[str]:
        """List the regular files of a folder, sorted; hidden ones, among them those being written, are left out.

        Raises:
            CacheError: the folder cannot be read.
        """
        return sorted(f"{folder}/{name}" for name in self._entries(folder) if not name.startswith("."))

    def others(self, folder: str) -> list[str]:
        """List what lies in a folder and is no regular file: folders, links, pipes.

        Raises:
            CacheError: the folder cannot be read.
        """
        return sorted(f"{folder}/{name}" for name in self._entries(folder, regular=False))

    def size(self, name: str) -> int | None:
        """Return the size in bytes, or None if there is no such regular file."""
        found = self._stat(name)
        return None if found is None else found.st_size

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Return what changes when a file is written to or another one takes its place; None if there is none."""
        found = self._stat(name)
        return None if found is None else (found.st_ino, found.st_mtime_ns)

    def age(self, name: str, now: float) -> float:
        """Return the seconds since a file was written, 0 if another writer has deleted it."""
        found = self._stat(name)
        return 0.0 if found is None else now - found.st_mtime

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no error.

        Raises:
            CacheError: it cannot be deleted.
        """
        with _explained(self.path(name), "deleted"):
            self.path(name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the folder, against other writers; nothing is held where there are no locks."""
        with ExitStack() as held:
            with _explained(self.path(".lock"), "locked"), suppress(NoLocksError):
                held.enter_context(locked(self.path(".lock")))
            yield

    def sweep(self, folder: str) -> None:
        """Delete the hidden files that dead writers left in a folder; one that cannot be deleted is no error."""
        for name in self._entries(folder):
            if PARTIAL.fullmatch(name):
                with suppress(OSError):
                    self._sweep(f"{folder}/{name}")

    def _sweep(self, name: str) -> None:
        descriptor = os.open(self.path(name), os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            try:
                dead = try_lock(descriptor)
            except NoLocksError:
                dead = self.age(name, time.time()) > ORPHAN_SECONDS
            if dead:
                self.path(name).unlink()
        finally:
            os.close(descriptor)

    def _place(self, name: str, content: bytes | memoryview, place: Callable[[Path, Path], Placed]) -> Placed:
        """Write a hidden file beside its place, under its lock, and let `place` bring it there."""
        path = self.path(name)
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

    def _rename_if_absent(self, name: str, content: bytes, partial: Path) -> bool:
        try:
            with locked(self.path(".lock")):
                if os.path.lexists(self.path(name)):
                    return self._holds(name, content) or self._taken(name)
                partial.rename(self.path(name))
                return True
        except NoLocksError as error:
            raise CacheError(
                f"{self.folder} lies on a file system with neither hard links nor locks, on which two writers could "
                "overwrite each other. Name a folder on another one."
            ) from error

    def _holds(self, name: str, content: bytes) -> bool:
        try:
            return self.read(name) == content
        except FileNotFoundError:
            return False

    def _taken(self, name: str) -> bool:
        if self.size(name) is None and os.path.lexists(self.path(name)):
            raise in_the_way(self.path(name), "a regular file")
        return False

    def _stat(self, name: str) -> os.stat_result | None:
        # What may not be looked at is not missing: to take it for that would throw away what is whole.
        with _explained(self.path(name), "read"):
            try:
                found = self.path(name).lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found if stat.S_ISREG(found.st_mode) else None

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        # To open a pipe for reading waits for a writer, unless it is told not to.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with _explained(self.path(name), "read"):
            try:
                descriptor = os.open(self.path(name), flags)
            except OSError as error:
                if self._stat(name) is None:
                    raise FileNotFoundError(errno.ENOENT, "no such regular file", str(self.path(name))) from error
                raise
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileNotFoundError(errno.ENOENT, "no such regular file", str(self.path(name)))
                yield descriptor
            finally:
                os.close(descriptor)

    def _entries(self, folder: str, regular: bool = True) -> list[str]:
        with _explained(self.path(folder), "read"):
            try:
                with os.scandir(self.path(folder)) as entries:
                    return [entry.name for entry in entries if entry.is_file(follow_symlinks=False) is regular]
            except (FileNotFoundError, NotADirectoryError):
                return []


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(
            f"{path} cannot be {what}: {error.strerror or error}. Make room or mend the permissions there, or name "
            "another folder."
        ) from error


def in_the_way(path: Path, expected: str) -> CacheError:
    """Return the error that something else has the name of a file or folder of ours."""
    return CacheError(f"{path} is in the way: it is not {expected}. Move it elsewhere.")


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
