"""Whole files: an output is written beside its place and renamed, so that what was there stays until all is written.

In: a path, and what writes the content. Out: the whole new file, or the old one untouched. Knows no content.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

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
    """Refuse a place where writing a file would fail, before anything is computed for it.

    Raises:
        UsageError: the name is too long or is a folder's, a file is in the way of its folder, or nothing can be written
            there.
    """
    if reason := why_unwritable(path) or ("it is a folder" if path.is_dir() else None):
        raise UsageError(f"{path} cannot be written: {reason}. Name another place.")


def check_folder_writable(folder: Path) -> None:
    """Refuse a place where writing a folder and replacing it would fail, before anything is computed for it.

    Raises:
        UsageError: the name is too long, a file is in the way of the folder that it stands in, or nothing can be
            written there.
    """
    # The longest name that it has while it is exchanged.
    if reason := why_unwritable(folder.with_name(f".{folder.name}.01234567.replaced")):
        raise UsageError(f"{folder} cannot be written: {reason}. Name another place.")


def why_unwritable(path: Path) -> str | None:
    """Return why nothing can be made at a path, and its folders where they are missing; None if it can.

    Nothing is made that a kill would leave behind, and no folder that another process could find and then miss.
    """
    path = path.absolute()
    existing = next(folder for folder in path.parents if os.path.lexists(folder))
    try:
        with TemporaryFile(dir=existing):
            longest = os.pathconf(existing, "PC_NAME_MAX")
    except OSError as error:
        return error.strerror or str(error)
    too_long = any(len(os.fsencode(name)) > longest for name in path.relative_to(existing).parts)
    return os.strerror(errno.ENAMETOOLONG) if too_long else None
