"""Locks on open files: whoever holds one is alive, because it ends with its process.

In: open files and paths. Out: the exclusive lock, or the word that another process has it. Knows no content.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmembed.errors import CacheError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What is done under a lock takes milliseconds; who holds it for longer hangs.
PATIENCE = 60.0


class NoLocksError(OSError):
    """The file system has no such locks."""


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock on an open file, or tell that another process has it.

    Raises:
        NoLocksError: the file system has no such locks.
    """
    if fcntl is None:
        raise NoLocksError("no locks on this system")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocksError(error.errno, error.strerror) from error
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on a file, which is made where it is missing; wait for others to be done.

    Raises:
        NoLocksError: the file system has no such locks.
        OSError: the file cannot be opened.
        CacheError: another process has held it for a minute.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        until = time.monotonic() + PATIENCE
        while not try_lock(descriptor):
            if time.monotonic() > until:
                raise CacheError(f"Another process holds {path} and does not let go of it. End that one first.")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
