"""Whole files: an output is written beside its place and renamed, so that what was there stays until all is written.

In: a path, and what writes the content. Out: the whole new file, or the old one untouched. Knows no content.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmembed.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the body ends well it takes the place of `path`.

    When the body fails, nothing of it is left and `path` is what it was.

    Raises:
        UsageError: the folder cannot be written to, or is full.
    """
    # The suffix stays last, because it tells some writers the format.
    partial = path.with_name(f".{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def check_writable(path: Path) -> None:
    """Refuse a place where writing would fail, before anything is computed for it; leaves nothing behind.

    Raises:
        UsageError: the name is too long or is a folder's, a file is in the way of its folder, or nothing can be written
            there.
    """
    made: list[Path] = []
    probe = path.with_name(f".{secrets.token_hex(4)}.probe")
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file.")
        for folder in reversed([path.parent, *path.parent.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        # A name that is too long shows here.
        with suppress(FileNotFoundError):
            path.lstat()
        probe.touch()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}. Name another place.") from error
    finally:
        with suppress(OSError):
            probe.unlink()
        for folder in reversed(made):
            folder.rmdir()
