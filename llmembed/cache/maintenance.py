"""Repair: what is damaged in a cache is taken out, so that an extraction makes it again; what dead writers left goes.

In: the folder of a cache and its spec. Out: a folder in which everything that counts is whole. Only what is certain to
be damaged is taken out: a file that cannot be read for another reason stops the repair.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from llmembed.backbones import BackboneSpec
from llmembed.cache import commits, derived, records
from llmembed.cache.commits import SHARD, Record, find_faults, open_shards, read_records, refuse_foreign
from llmembed.errors import CacheError
from llmembed.storage import ORPHAN_SECONDS, Store, list_names


class Damage(NamedTuple):
    """A commit record of which it is certain that it or its shard is damaged, and why."""

    record: Record
    fault: str


def find_damage(store: Store, spec: BackboneSpec) -> list[Damage]:
    """Read every record and hash every shard; return what is damaged.

    Raises:
        CacheError: a file cannot be read, or something that is no file has the name of a record.
    """
    refuse_foreign(store)
    found = read_records(store)
    whole = [(record, record.commit) for record in found if record.commit is not None]
    faults = find_faults(open_shards(store, [commit for _, commit in whole], spec))
    damaged = [Damage(record, record.fault) for record in found if record.fault]
    return damaged + [Damage(record, fault) for (record, _), fault in zip(whole, faults, strict=True) if fault]


def take_out(store: Store, damage: Sequence[Damage]) -> None:
    """Delete damaged commit records and the shards of theirs, as long as the records are still the same.

    Another process may have repaired the damage in the meantime: its record has the same name, and stays.

    Raises:
        CacheError: a file cannot be deleted.
    """
    if not damage:
        return
    with store.lock():
        for record, _ in damage:
            with suppress(FileNotFoundError):
                if store.read(record.name) == record.content:
                    store.delete(record.name)
    for record, _ in damage:
        # The path of a damaged record may lead anywhere. What is no file is not ours.
        if record.commit is not None and store.stat(record.commit.path) is not None:
            store.delete(record.commit.path)


def delete_damaged_extractions(store: Store) -> None:
    """Delete the reports of extractions that are damaged; the next one writes its own."""
    for name in records.list_extractions(store):
        try:
            records.read_extraction(store, name)
        except FileNotFoundError:
            continue
        except ValueError:
            store.delete(name)


def delete_leftovers(store: Store) -> None:
    """Delete hidden files of dead writers, and shards that nobody has committed within an hour."""
    for folder in ("", "shards", commits.COMMITS, records.EXTRACTIONS, derived.DERIVED):
        store.delete_abandoned(folder)
    committed = {record.commit.path for record in read_records(store) if record.commit is not None}
    for name in list_names(store, "shards"):
        found = store.stat(name) if SHARD.fullmatch(name) is not None and name not in committed else None
        # One that cannot be deleted harms nobody.
        if found is not None and time.time() - found.modified > ORPHAN_SECONDS:
            with suppress(CacheError):
                store.delete(name)
