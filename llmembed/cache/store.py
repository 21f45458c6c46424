"""A folder of immutable files: put whole, create if absent, list, read, delete.

These five are all that the cache asks of storage, so that an object store can stand in for a local folder without a new
format. Knows bytes and names, nothing of what they mean.
"""

import os
import secrets
from pathlib import Path

from llmembed.errors import CacheError


class LocalStore:
    """Files under one local folder; names are relative paths with forward slashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Give a local path that can be memory-mapped."""
        return self.folder / name

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Write a file under a name never used before and flush it to disk; until it returns, the file may be torn."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise
        except OSError as error:
            raise CacheError(
                f"{path} cannot be written: {error.strerror}. Use another --cache folder or make room."
            ) from error

    def create(self, name: str, content: bytes) -> bool:
        """Create a whole file unless one of that name exists; give whether it was created. Exactly one caller wins."""
        path = self.path(name)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self.put(str(partial.relative_to(self.folder)), content)
        try:
            # A hard link appears at once with its whole content and fails if the name is taken; a rename would replace.
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink()
            _flush_folder(path.parent)
        return True

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        return self.path(name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """List the files of a folder, sorted; files that are being created are left out."""
        entries = self.path(folder).glob("[!.]*") if self.path(folder).is_dir() else ()
        return sorted(f"{folder}/{entry.name}" for entry in entries)

    def size(self, name: str) -> int | None:
        """Give the size in bytes, or None if there is no such file."""
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def age(self, name: str, now: float) -> float:
        """Give the seconds since a file was written, 0 if another writer has deleted it."""
        try:
            return now - self.path(name).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        self.path(name).unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
