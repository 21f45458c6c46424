"""Kept arrays: what was computed from the rows of a cache, beside them, so that the next run begins where it is needed.

In: what determines the arrays, and the arrays once they are made. Out: the arrays. A kept file is found by what
determines it and trusted by its digest; all of them may be deleted at any time.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load, save

from llmembed.errors import CacheError
from llmembed.storage import Store, list_names

FOLDER = "kept"
# Those of the last few data parts, layers and fusions: 35 MB each for 120,000 rows.
MOST_FILES = 16
# To be raised when the same input gives other arrays than before. Those of format 1 may come from damaged shards: they
# were written before the shards were hashed.
FORMAT = 2


@dataclass(frozen=True)
class Kept:
    """Arrays by name, plain values beside them, and whether they were made by an earlier run."""

    arrays: dict[str, NDArray[Any]]
    notes: dict[str, Any] = field(default_factory=dict)
    recalled: bool = False


def identify(what: Mapping[str, Any]) -> str:
    """Return the name of the arrays that `what`, JSON values, determines."""
    return sha256(json.dumps({**what, "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:24]


def recall(store: Store, identity: str) -> Kept | None:
    """Return the arrays of that name that an earlier run kept, None if there are none; delete a damaged file of them.

    What killed runs left half written is deleted too. Another run may delete the file meanwhile, and a cache may be
    readable only: neither is an error.
    """
    with suppress(CacheError):
        store.sweep(FOLDER)
        for name in list_names(store, FOLDER):
            if name.startswith(f"{FOLDER}/{identity}-"):
                with suppress(FileNotFoundError, CacheError):
                    content = store.read(name)
                    if name == _name(identity, content):
                        return _decode(content)
                    store.delete(name)
    return None


def write(store: Store, identity: str, made: Kept) -> None:
    """Keep arrays for later runs, which trust them: whatever they were made from must be verified by now.

    A cache that can only be read is trained from all the same.
    """
    content = save(made.arrays, {"notes": json.dumps(made.notes)})
    with suppress(CacheError):
        store.create(_name(identity, content), content)
        _delete_oldest(store)


def _name(identity: str, content: bytes) -> str:
    return f"{FOLDER}/{identity}-{sha256(content).hexdigest()[:16]}.safetensors"


def _decode(content: bytes) -> Kept:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Kept(load(content), json.loads(header["__metadata__"]["notes"]), recalled=True)


def _delete_oldest(store: Store) -> None:
    found = [(stat.modified, name) for name in list_names(store, FOLDER) if (stat := store.stat(name)) is not None]
    for _, name in sorted(found, reverse=True)[MOST_FILES:]:
        store.delete(name)
