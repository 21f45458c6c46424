"""Kept arrays: what was computed from the rows of a cache, beside them, so that the next run begins where it is needed.

In: what determines the arrays, and the arrays once they are made. Out: the arrays. A kept file is found by what
determines it and trusted by its digest; all of them may be deleted at any time.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

from safetensors.numpy import load, save

from llmembed.cache.store import LocalStore
from llmembed.errors import CacheError
from llmembed.matrix import Derived

FOLDER = "kept"
# Those of the last few data parts, layers and fusions: 35 MB each for 120,000 rows.
MOST_FILES = 16
# To be raised when the same input gives other arrays than before. Those of format 1 may come from damaged shards: they
# were written before the shards were hashed; those of format 2 hold their values under another name.
FORMAT = 3


def identify(what: Mapping[str, Any]) -> str:
    """Return the name of the arrays that `what`, JSON values, determines."""
    return sha256(json.dumps({**what, "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:24]


def recall(store: LocalStore, identity: str) -> Derived | None:
    """Return the arrays of that name that an earlier run kept, None if there are none; delete a damaged file of them.

    What killed runs left half written is deleted too. Another run may delete the file meanwhile, and a cache may be
    readable only: neither is an error.
    """
    with suppress(CacheError):
        store.sweep(FOLDER)
        for name in store.names(FOLDER):
            if name.startswith(f"{FOLDER}/{identity}-"):
                with suppress(FileNotFoundError, CacheError):
                    content = store.read(name)
                    if name == _name(identity, content):
                        return _decode(content)
                    store.delete(name)
    return None


def write(store: LocalStore, identity: str, made: Derived) -> None:
    """Keep arrays for later runs, which trust them: whatever they were made from must be verified by now.

    A cache that can only be read is trained from all the same.
    """
    content = save(made.arrays, {"info": json.dumps(made.info)})
    with suppress(CacheError):
        store.create(_name(identity, content), content)
        _delete_oldest(store)


def _name(identity: str, content: bytes) -> str:
    return f"{FOLDER}/{identity}-{sha256(content).hexdigest()[:16]}.safetensors"


def _decode(content: bytes) -> Derived:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Derived(load(content), json.loads(header["__metadata__"]["info"]), memoized=True)


def _delete_oldest(store: LocalStore) -> None:
    now = time.time()
    for name in sorted(store.names(FOLDER), key=lambda name: store.age(name, now))[MOST_FILES:]:
        store.delete(name)
