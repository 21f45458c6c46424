"""The bytes of a shard without a copy of them: mapped where the store can, else read by ranges as they are needed.

In: a store and a name. Out: what has a length and slices. Knows no layout.
"""

from hashlib import sha256
from typing import Protocol

from llmembed.storage import Mappable, Store

# Of what cannot be mapped, so many bytes are read at once to be hashed.
BLOCK_BYTES = 1 << 24


class DamageError(ValueError):
    """A shard is not what its commit or the spec says."""


class Content(Protocol):
    """Bytes of which ranges can be taken: a memoryview, whose ranges are no copies, or `Ranges`."""

    def __len__(self) -> int:
        """Return the number of bytes."""
        ...

    def __getitem__(self, wanted: slice, /) -> bytes | memoryview:
        """Return a range of them."""
        ...


class Ranges:
    """The bytes of an object that is not here: each range is read when it is taken, and not kept."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, wanted: slice, /) -> bytes:
        start, stop, _ = wanted.indices(self._size)
        try:
            content = self._store.read(self._name, start, stop) if start < stop else b""
        except FileNotFoundError as error:
            raise DamageError("is missing") from error
        if len(content) != max(0, stop - start):
            raise DamageError("is shorter than it was when it was opened")
        return content


def open_content(store: Store, name: str, size: int) -> Content:
    """Open the bytes of an object of so many bytes.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    return store.map(name) if isinstance(store, Mappable) else Ranges(store, name, size)


def digest_content(content: Content) -> str:
    """Return the SHA-256 of all of the bytes, in hex."""
    digest = sha256()
    for start in range(0, len(content), BLOCK_BYTES):
        digest.update(content[start : start + BLOCK_BYTES])
    return digest.hexdigest()
