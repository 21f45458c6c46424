"""Derived arrays: what was computed from the rows of a cache, beside them, so that it is computed once.

In: what determines the arrays, and the arrays once they are made. Out: the arrays. A file of them is found by what
determines it and trusted by its digest; all of them may be deleted at any time. Knows no shard.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

from safetensors.numpy import load, save

from llmembed.errors import CacheError
from llmembed.matrix import Derived
from llmembed.storage import Store, list_names

DERIVED = "derived"
# Those of the last few data parts, layers and fusions: 35 MB each for 120,000 rows.
MOST_FILES = 16
# To be raised when the same input gives other arrays than before. Those of format 1 may come from damaged shards: they
# were written before the shards were hashed; those of format 2 hold their values under another name.
DERIVED_FORMAT = 3


class DerivedArrays:
    """The derived arrays of one cache: those of earlier runs, and those of this one until they may be written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: dict[str, Derived] = {}

    def memoize(self, what: Mapping[str, Any], make: Callable[[], Derived]) -> Derived:
        """Return the arrays that `what`, JSON values, determines: of an earlier run, or made now for `write`."""
        identity = identify(what)
        found = self._unwritten.get(identity) or find(self._store, identity)
        if found is None:
            found = self._unwritten[identity] = make()
        return found

    def write(self) -> None:
        """Write for later runs what was made in this one, once the rows that it was made from are verified."""
        for identity, made in self._unwritten.items():
            write_derived(self._store, identity, made)
        self._unwritten.clear()

    def forget(self) -> None:
        """Write nothing of what was made, because the rows that it was made from are damaged."""
        self._unwritten.clear()


def identify(what: Mapping[str, Any]) -> str:
    """Return the name of the arrays that `what`, JSON values, determines."""
    return sha256(json.dumps({**what, "format": DERIVED_FORMAT}, sort_keys=True).encode()).hexdigest()[:24]


def find(store: Store, identity: str) -> Derived | None:
    """Return the arrays of that name that an earlier run wrote, None if there are none; delete a damaged file of them.

    What killed runs left half written is deleted too. Another run may delete the file meanwhile, and a cache may be
    readable only: neither is an error.
    """
    with suppress(CacheError):
        store.delete_abandoned(DERIVED)
        for name in list_names(store, DERIVED):
            if name.startswith(f"{DERIVED}/{identity}-"):
                with suppress(FileNotFoundError, CacheError):
                    content = store.read(name)
                    if name == _name(identity, content):
                        return _decode(content)
                    store.delete(name)
    return None


def write_derived(store: Store, identity: str, made: Derived) -> None:
    """Write arrays for later runs, which trust them: whatever they were made from must be verified by now.

    A cache that can only be read is trained from all the same.
    """
    content = save(made.arrays, {"info": json.dumps(made.info)})
    with suppress(CacheError):
        store.create(_name(identity, content), content)
        _delete_oldest(store)


def _name(identity: str, content: bytes) -> str:
    return f"{DERIVED}/{identity}-{sha256(content).hexdigest()[:16]}.safetensors"


def _decode(content: bytes) -> Derived:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Derived(load(content), json.loads(header["__metadata__"]["info"]), memoized=True)


def _delete_oldest(store: Store) -> None:
    found = [(stat.modified, name) for name in list_names(store, DERIVED) if (stat := store.stat(name)) is not None]
    for _, name in sorted(found, reverse=True)[MOST_FILES:]:
        store.delete(name)
