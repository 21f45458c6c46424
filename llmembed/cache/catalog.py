"""The caches under a root folder: which there are, and which of them was extracted last.

In: a root, and names. Out: folders, chosen by the names of folders and records alone, so that a damaged cache is no
hindrance to finding another one. Opens nothing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmembed.backbones.weights import KNOWN
from llmembed.cache import commits, records
from llmembed.cache.store import LocalStore
from llmembed.errors import CacheError

FOLDER = re.compile(r".+-[0-9a-f]{8}")


class Found(NamedTuple):
    """A folder that holds a cache, and the name of its newest extraction record, empty if no extraction finished."""

    folder: Path
    newest: str


def list_caches(root: Path, dataset: str | None = None) -> list[Found]:
    """List the caches under a root, or those of a data set alone; the one extracted last comes first.

    Raises:
        CacheError: a folder cannot be read.
    """
    found = []
    for folder in _folders(root, dataset):
        store = LocalStore(folder)
        if store.size(records.SPEC) is not None or store.names(commits.FOLDER):
            found.append(Found(folder, max(records.list_extractions(store), default="")))
    return sorted(found, key=lambda each: each.newest, reverse=True)


def may_be_by(folder: Path, backbone: str) -> bool:
    """Tell whether a cache can be by a backbone, which is a short name, a hub id, a path or the name of the folder."""
    short = folder.name.rpartition("-")[0]
    names = {backbone, backbone.rstrip("/").rpartition("/")[2].partition("@")[0], Path(backbone).resolve().name}
    return folder.name == backbone or short in names or (short in KNOWN and KNOWN[short].repo == backbone)


def _folders(root: Path, dataset: str | None) -> Iterator[Path]:
    try:
        for named in sorted(root.iterdir()) if dataset is None else [root / dataset]:
            if named.is_dir():
                yield from (each for each in sorted(named.iterdir()) if FOLDER.fullmatch(each.name) and each.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise CacheError(f"{error.filename or root} cannot be read: {error.strerror}.") from error
