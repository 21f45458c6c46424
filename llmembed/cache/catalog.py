"""The caches under a root: which there are, and which of them was extracted last.

In: a root, and names. Out: the store of a cache, chosen by the names of folders and records, so that a damaged cache is
no hindrance to finding another one. Knows no rows.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmembed.backbones import BackboneSpec
from llmembed.backbones.weights import KNOWN
from llmembed.cache import commits, records
from llmembed.cache.opening import open_last_extraction, open_spec
from llmembed.cache.place import place_of
from llmembed.cache.remedy import newest_record
from llmembed.errors import CacheError
from llmembed.requests import ExtractionRequest, Reading
from llmembed.storage import Store, list_names, size_of

CACHE_NAME = re.compile(r".+-[0-9a-f]{8}")


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
        if size_of(store, records.SPEC) is not None or list_names(store, commits.COMMITS):
            found.append(Found(store, max(records.list_extractions(store), default="")))
    return sorted(found, key=lambda each: each.newest, reverse=True)


def find_latest(
    root: Store, dataset: str | None = None, backbone: str | None = None, reading: Reading | None = None
) -> tuple[Store, BackboneSpec]:
    """Find the cache that was extracted last, and read its spec; see `Cache.latest`.

    Raises:
        CacheError: there is none, or it is damaged, with the extraction that makes it.
    """
    damaged: tuple[str, CacheError] | None = None
    for store, newest in list_caches(root, dataset):
        try:
            spec = open_spec(store, reading)
            if backbone is not None and not _is_by(store, spec, backbone):
                continue
            open_last_extraction(store, spec, reading)
        except CacheError as error:
            if damaged is None and (backbone is None or _may_be_by(store, backbone)):
                damaged = newest, error
            continue
        if damaged is None or damaged[0] == newest:
            return store, spec
        name = place_of(store).backbone
        if dataset and backbone is None:
            # A note would stand below a traceback, where nobody who catches the error sees it.
            damaged[1].args = (f"{damaged[1]} Or name a whole one: `backbones={[name]}`.",)
        raise damaged[1]
    if damaged is not None:
        raise damaged[1]
    what = f"embeddings of {dataset}" if dataset else "embeddings"
    by = f" by {backbone}" if backbone else ""
    wanted = reading or Reading(argument=dataset or "DATASET")
    request = ExtractionRequest(reading=wanted, root=root.url, backbone=backbone)
    raise CacheError(
        f"There are no {what}{by} in {root.url}; extract them first.", cache=root.url, extractions=[request]
    )


def _is_by(store: Store, spec: BackboneSpec, backbone: str) -> bool:
    place, newest = place_of(store), newest_record(store)
    found = newest.backbone if newest else None
    return backbone in (place.backbone, place.name, spec.model, found) or str(Path(backbone).resolve()) == found


def _may_be_by(store: Store, backbone: str) -> bool:
    """Tell by its name whether a damaged cache can be by a backbone: a short name, a hub id, a path or that name."""
    place = place_of(store)
    short = place.backbone
    names = {backbone, backbone.rstrip("/").rpartition("/")[2].partition("@")[0], Path(backbone).resolve().name}
    return place.name == backbone or short in names or (short in KNOWN and KNOWN[short].repo == backbone)


def _stores(root: Store, dataset: str | None) -> Iterator[Store]:
    for folder in _folders(root, "") if dataset is None else [dataset]:
        for name in _folders(root, folder):
            if CACHE_NAME.fullmatch(name.rpartition("/")[2]):
                yield root.child(name)


def _folders(root: Store, folder: str) -> list[str]:
    return [entry.name for entry in root.entries(folder) if entry.kind == "folder"]
