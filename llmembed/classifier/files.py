"""The folder of a classifier: which files it holds, where it may be written, and whether any of them was changed since.

In: a folder. Out: the record and the files, each read once and equal to what was saved, or a ClassifierError that names
the file. Knows neither what the record means nor what is in the files.
"""

import json
import os
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmembed.errors import ClassifierError
from llmembed.files import check_folder_writable
from llmembed.folders import FolderKind, finish_exchange
from llmembed.identity import seal, unseal
from llmembed.saved import JSON_BYTES, SavedFiles

CLASSIFIER_FORMAT = 3
RECORD = "classifier.json"
# What every format of the record has had.
RECORD_KEYS = {"format", "fusion", "head", "labels"}
FILES = {RECORD, "scaler.safetensors", "head.json", "head.safetensors", "head.txt", "metrics.json", "report.json"}
KIND = FolderKind(frozenset(FILES), mark=RECORD)
DIGESTS = "files"
# Between the two renames of an exchange there is no folder, for microseconds; so many looks, so many seconds apart.
ATTEMPTS, PAUSE = 5, 0.01


def seal_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of the classifier whose files lie in a folder, with their SHA-256 and its own."""
    digests = {file.name: sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    (folder / RECORD).write_bytes(seal({**record, DIGESTS: digests}))


def read_classifier(folder: Path) -> tuple[dict[str, Any], SavedFiles]:
    """Return the record of a classifier and its files, all of them as they were saved.

    Raises:
        ClassifierError: no classifier there, or one of another format; a file is missing or was changed.
    """
    files = SavedFiles(folder, {})
    for _ in range(ATTEMPTS):
        try:
            finish_exchange(folder.resolve(), KIND)
        except OSError as error:
            reason = f"{type(error).__name__}: {error.strerror}"
            raise ClassifierError(f"{folder} was being replaced, which cannot be finished here ({reason}).") from error
        files = SavedFiles.read(folder, sorted(FILES))
        if files.contents:
            break
        time.sleep(PAUSE)
    return _read_sealed(files)


def _read_sealed(files: SavedFiles) -> tuple[dict[str, Any], SavedFiles]:
    if RECORD not in files.contents:
        raise ClassifierError(f"{files.folder} is not a classifier: no {RECORD} in it.", folder=str(files.folder))
    found = files.read_json(RECORD).get("format")
    if found != CLASSIFIER_FORMAT:
        raise ClassifierError(
            f"{files.folder / RECORD} has format {str(found)[:20]}; this llmembed reads format {CLASSIFIER_FORMAT}. "
            "Train it again: the embeddings are still in the cache.",
            folder=str(files.folder),
        )
    try:
        record = unseal(files.content(RECORD))
    except (ValueError, RecursionError) as error:
        raise files.damaged(RECORD, error) from error
    digests = record.pop(DIGESTS, None)
    if not isinstance(digests, dict) or not digests.keys() <= FILES - {RECORD}:
        raise files.damaged(RECORD, "it does not name the files of a classifier")
    for name, digest in digests.items():
        if sha256(files.content(name)).hexdigest() != digest:
            raise files.damaged(name, f"its SHA-256 is not the one in {RECORD}, it was changed")
    sealed = {name: content for name, content in files.contents.items() if name == RECORD or name in digests}
    return record, SavedFiles(files.folder, sealed)


def check_destination(folder: Path) -> None:
    """Refuse a place where saving a classifier would fail, or replace anything but a classifier.

    Raises:
        ClassifierError: a file, a link or a mount point is there, or a folder that holds anything else.
        UsageError: nothing can be written there.
    """
    in_the_way = [place for place in (folder, *folder.resolve().parents) if _is_file(place)]
    if in_the_way:
        raise ClassifierError(f"{in_the_way[0]} is a file; name another folder.")
    check_folder_writable(folder.resolve())
    if folder.is_symlink():
        raise ClassifierError(f"{folder} is a link to {folder.readlink()}; name the folder itself.")
    # Unlike Path.is_mount it may vanish meanwhile, while another process exchanges it.
    if os.path.ismount(folder):
        raise ClassifierError(f"{folder} is a mount point, which cannot be renamed; name a folder in it.")
    try:
        finish_exchange(folder.resolve(), KIND)
        foreign = _foreign(folder) if folder.is_dir() else None
    except FileNotFoundError:
        # Another process is exchanging it, which deletes nothing but a classifier either.
        foreign = None
    except OSError as error:
        raise ClassifierError(f"{folder} cannot be read: {error.strerror}; name another folder.") from error
    if foreign:
        raise ClassifierError(f"{folder} holds {foreign}; name another folder.")


def _foreign(folder: Path) -> str | None:
    """Return something in a folder that is no part of a classifier of ours, of whatever format."""
    if foreign := KIND.foreign(folder):
        return f"{foreign}, which is no part of a classifier"
    names = sorted(entry.name for entry in folder.iterdir())
    if names and RECORD not in names:
        return f"{names[0]} but no {RECORD}, so that it is no classifier"
    return None if not names or _is_ours(folder / RECORD) else f"{RECORD}, which is no record of a classifier"


def _is_ours(record: Path) -> bool:
    try:
        content = json.loads(record.read_bytes()) if record.stat().st_size <= JSON_BYTES else None
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("format"), int) and content.keys() >= RECORD_KEYS


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:
        # A name that is too long, or a place that may not be looked at: to be told by whoever tries to write there.
        return False
