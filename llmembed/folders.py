"""Whole folders: files are written beside their place and exchanged for the old ones, whatever ends the process.

In: a place, and what writes the files. Out: the whole new folder, or the old one. What a killed process has left is
finished or deleted by whoever comes next. Knows no content, and deletes no file but those whose names it is told.

    .NAME.<nonce>           being written, locked by its writer; or whole and about to take the place
    .NAME.<nonce>.replaced  what gave way to it, which happens only when all of it is on the disk
"""

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmembed.errors import UsageError
from llmembed.files import ABANDONED_SECONDS

REPLACED = ".replaced"
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder.

    Attributes:
        names: the files that it may hold, and nothing else.
        mark: the one that is written last and deleted first, so that the folder is whole while it is there.
    """

    names: frozenset[str]
    mark: str

    def foreign(self, folder: Path) -> str | None:
        """Return the name of something in the folder that is no regular file of the kind."""
        with os.scandir(folder) as entries:
            known = {entry.name: entry.name in self.names and entry.is_file(follow_symlinks=False) for entry in entries}
        return next((name for name in sorted(known) if not known[name]), None)

    def is_whole(self, folder: Path) -> bool:
        """Return whether all of the folder was written and nothing of it was deleted."""
        return (folder / self.mark).is_file()

    def delete(self, folder: Path) -> None:
        """Delete a folder of the kind; one that holds anything else is left as it is."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if folder.is_symlink() or self.foreign(folder):
                return
            for path in sorted(folder.iterdir(), key=lambda path: path.name != self.mark):
                path.unlink(missing_ok=True)
            folder.rmdir()


@contextmanager
def replacing_folder(place: Path, kind: FolderKind) -> Iterator[Path]:
    """Yield an empty folder beside `place` to write to; when the body ends well it takes the place.

    When the body fails, nothing of it is left and what was in the place stays.

    Raises:
        UsageError: the folder cannot be written, or the disk is full.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        finish_exchange(place, kind)
        with _locked_folder(place) as fresh:
            try:
                yield fresh
                _exchange(fresh, place, kind)
            finally:
                kind.delete(fresh)
    except OSError as error:
        raise UsageError(
            f"{place} cannot be written: {error.strerror or error}. What was there is unchanged."
        ) from error


def finish_exchange(place: Path, kind: FolderKind) -> None:
    """Finish what a killed process left half done: put the new folder, or else the old one, into its place.

    Leftovers are deleted as far as that is allowed; those whose writer may be alive, or that hold anything else, stay.

    Raises:
        OSError: neither could be put into its place.
    """
    hidden = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}({re.escape(REPLACED)})?")
    left: list[Path] = []
    # A parent that may not be listed can still hold what may be read.
    with suppress(OSError):
        left = sorted(entry for entry in place.parent.iterdir() if hidden.fullmatch(entry.name))
    replaced = [folder for folder in left if folder.suffix == REPLACED]
    # The new ones first: an old one is for the case that the new one is not whole.
    for folder in [*(each.with_suffix("") for each in replaced), *replaced]:
        if kind.is_whole(folder) and not place.exists():
            _move(folder, place)
    for folder in left:
        with suppress(OSError):
            if folder not in replaced:
                _delete_abandoned(folder, kind)
            elif place.exists():
                kind.delete(folder)


def _exchange(fresh: Path, place: Path, kind: FolderKind) -> None:
    replaced = fresh.with_name(f"{fresh.name}{REPLACED}")
    for path in (*fresh.iterdir(), fresh):
        _sync(path)
    try:
        # More than once only where another process has put its own folder there in the meantime.
        while fresh.exists():
            kind.delete(replaced)
            with suppress(FileNotFoundError):
                place.rename(replaced)
            _move(fresh, place)
    except BaseException:
        if replaced.exists():
            _move(replaced, place)
        raise
    _sync(place.parent)
    kind.delete(replaced)


def _move(folder: Path, place: Path) -> None:
    """Rename a folder to its place, unless another process has done that or has put another one there."""
    try:
        folder.rename(place)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise


@contextmanager
def _locked_folder(place: Path) -> Iterator[Path]:
    """Yield a new folder that is locked, so that nobody takes it for abandoned."""
    while True:
        folder = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        folder.mkdir()
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            # Some network file systems have no locks.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # It may have been taken for abandoned before it was locked.
            if folder.exists():
                break
            os.close(descriptor)
    try:
        yield folder
    finally:
        os.close(descriptor)


def _delete_abandoned(folder: Path, kind: FolderKind) -> None:
    """Delete a folder whose writer is gone: its lock is free or, where there are no locks, it has not changed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kind.delete(folder)
    except BlockingIOError:
        pass
    except OSError:
        if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
            kind.delete(folder)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
