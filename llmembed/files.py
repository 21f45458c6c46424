"""Whole files: an output is written beside its place and renamed, so that what was there stays until all is written.

In: a path, and what writes the content. Out: the whole new file, or the old one untouched. Knows no content.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from llmembed.errors import UsageError

# A file that nobody has written to for so long has lost its writer.
ABANDONED_SECONDS = 3600.0


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the body ends well it takes the place of `path`.

    When the body fails, nothing of it is left and `path` is what it was.

    Raises:
        UsageError: the folder cannot be written to, or is full.
    """
    # Of the name a digest, because with the whole of it a long one would be too long.
    ours = f".{sha256(path.name.encode()).hexdigest()[:8]}-"
    # The suffix stays last, because it tells some writers the format.
    partial = path.with_name(f"{ours}{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, f"{ours}*.partial{path.suffix}")
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}. What was there is unchanged."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _sweep(folder: Path, pattern: str) -> None:
    """Delete what writers of the same file left that were killed."""
    for left in folder.glob(pattern):
        # Another process may be deleting it too.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def check_writable(path: Path) -> None:
    """Refuse a place where writing a file would fail, before anything is computed for it; leaves nothing behind.

    Raises:
        UsageError: the name is too long or is a folder's, a file is in the way of its folder, or nothing can be written
            there.
    """
    with _trying(path) as probe:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file.")
        # A name that is too long shows here.
        with suppress(FileNotFoundError):
            path.lstat()
        probe.touch()
        probe.unlink()


def check_folder_writable(folder: Path) -> None:
    """Refuse a place where writing a folder and replacing it would fail; leaves nothing behind.

    Raises:
        UsageError: the name is too long, a file is in the way of the folder that it stands in, or nothing can be
            written there.
    """
    with _trying(folder) as probe:
        # The longest name that it has while it is exchanged; another process may take it for what is left of that.
        probe = probe.with_name(f".{folder.name}.{secrets.token_hex(4)}.replaced")
        probe.mkdir()
        with suppress(FileNotFoundError):
            probe.rmdir()


@contextmanager
def _trying(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside `path` to try with; folders that are made for that are taken away again."""
    made: list[Path] = []
    try:
        for folder in reversed([path.parent, *path.parent.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        yield path.with_name(f".{secrets.token_hex(4)}.probe")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}. Name another place.") from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
