"""The caches under a root folder: which there are, and which of them was extracted last.

In: a root, and names. Out: stores, chosen by the names of folders and records alone, so that a damaged cache is no
hindrance to finding another one. Opens no cache.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmembed.backbones.weights import KNOWN
from llmembed.cache import commits, records
from llmembed.cache.place import place_of
from llmembed.storage import Store, list_names, size_of

FOLDER = re.compile(r".+-[0-9a-f]{8}")


class Found(NamedTuple):
    """The store of a cache, and the name of its newest extraction record, empty if no extraction finished."""

    store: Store
    newest: str


def list_caches(root: Store, dataset: str | None = None) -> list[Found]:
    """List the caches under a root, or those of a data set alone; the one extracted last comes first.

    Raises:
        CacheError: a folder cannot be read.
    """
    found = []
    for store in _stores(root, dataset):
        if size_of(store, records.SPEC) is not None or list_names(store, commits.FOLDER):
            found.append(Found(store, max(records.list_extractions(store), default="")))
    return sorted(found, key=lambda each: each.newest, reverse=True)


def may_be_by(store: Store, backbone: str) -> bool:
    """Tell whether a cache can be by a backbone, which is a short name, a hub id, a path or the name of the folder."""
    place = place_of(store)
    short = place.backbone
    names = {backbone, backbone.rstrip("/").rpartition("/")[2].partition("@")[0], Path(backbone).resolve().name}
    return place.name == backbone or short in names or (short in KNOWN and KNOWN[short].repo == backbone)


def _stores(root: Store, dataset: str | None) -> Iterator[Store]:
    for folder in _folders(root, "") if dataset is None else [dataset]:
        for name in _folders(root, folder):
            if FOLDER.fullmatch(name.rpartition("/")[2]):
                yield root.child(name)


def _folders(root: Store, folder: str) -> list[str]:
    return [entry.name for entry in root.entries(folder) if entry.kind == "folder"]
