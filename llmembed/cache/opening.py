"""What a cache holds, or an error that names what is damaged and the command that mends it.

In: the store of a cache. Out: its spec, held against its name, its shards and what is wanted of it; commits; the last
extraction. Knows no rows.
"""

from collections.abc import Sequence
from typing import Any

from llmembed.backbones import BackboneSpec
from llmembed.cache import records
from llmembed.cache.commits import COMMITS, Commit, read_records, shard_id
from llmembed.cache.content import open_content
from llmembed.cache.layout import read_description
from llmembed.cache.place import place_of
from llmembed.cache.remedy import mend_command
from llmembed.errors import CacheError
from llmembed.storage import Store, list_names


def open_spec(store: Store, words: Sequence[str] = ()) -> BackboneSpec:
    """Return the spec of an existing cache; `words` name its data set on a command line.

    Raises:
        CacheError: no cache, another format, or `spec.json` is damaged, with the command that mends it.
    """
    path, remedy = f"{store.url}/{records.SPEC}", f"run {mend_command(store, otherwise=words)} to write it again."
    try:
        spec = records.read_spec(store)
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing; {remedy}") from error
    except records.OtherFormatError as error:
        raise _other_format(store, error) from error
    except ValueError as error:
        raise CacheError(f"{path} is damaged ({error}); {remedy}") from error
    if place_of(store).fingerprint != spec.fingerprint:
        raise CacheError(
            f"{path} is damaged or of another cache: its fingerprint is {spec.fingerprint}, not that of the folder's "
            f"name; {remedy}"
        )
    return spec


def is_claimed(store: Store, spec: BackboneSpec) -> bool:
    """Tell whether `spec.json` says that the cache holds the embeddings of a spec; if it is damaged, it does not.

    Raises:
        CacheError: it is whole, and the embeddings are of another spec or format.
    """
    try:
        found = records.read_spec(store)
    except records.OtherFormatError as error:
        raise _other_format(store, error) from error
    except (FileNotFoundError, ValueError):
        return False
    if found != spec and (found.fingerprint == spec.fingerprint or _holds(store, found.fingerprint)):
        raise CacheError(f"{store.url} holds the embeddings of another backbone: {found}. Use another --cache folder.")
    return found == spec


def open_last_extraction(store: Store, spec: BackboneSpec, words: Sequence[str] = ()) -> dict[str, Any]:
    """Return the report of the last finished extraction, empty if none finished; `words` as for `open_spec`.

    Raises:
        CacheError: it is damaged, with the command that writes another one.
    """
    name = max(records.list_extractions(store), default="")
    try:
        return records.read_extraction(store, name) if name else {}
    except (FileNotFoundError, ValueError) as error:
        command = mend_command(store, spec, otherwise=words)
        raise CacheError(f"{store.url}/{name} is damaged ({error}). Run {command} to write another one.") from error


def open_commits(store: Store, spec: BackboneSpec, words: Sequence[str] = ()) -> list[Commit]:
    """Return the commits, in the order of their names; `words` as for `open_spec`.

    Raises:
        CacheError: a record that is not one, with the command that makes its texts again.
    """
    found = read_records(store)
    for record in found:
        if record.commit is None:
            command = mend_command(store, spec, otherwise=words)
            raise CacheError(
                f"{store.url}/{record.name} is damaged ({record.fault}). Run {command} to make its texts again."
            )
    return [record.commit for record in found if record.commit is not None]


def refuse_damaged(
    store: Store, spec: BackboneSpec, words: Sequence[str], total: int, paths: Sequence[str], faults: Sequence[str]
) -> None:
    """Refuse shards, given by their paths, of which something is wrong; `total` counts the shards of the cache.

    Raises:
        CacheError: there are some, with the command that makes them again.
    """
    damaged = [(path, fault) for path, fault in zip(paths, faults, strict=True) if fault]
    if damaged:
        # Either of the two files may be the damaged one.
        path, fault = damaged[0]
        raise CacheError(
            f"{len(damaged)} of {total} shards in {store.url} are damaged "
            f"({path.rpartition('/')[2]} {fault}; see {COMMITS}/{shard_id(path)}.json). "
            f"Run {mend_command(store, spec, otherwise=words)} to make them again."
        )


def _holds(store: Store, fingerprint: str) -> bool:
    """Tell whether a shard says the same as a spec that is not the one wanted: then the spec is not damaged."""
    shards = ((name, store.stat(name)) for name in list_names(store, "shards"))
    says = (read_description(open_content(store, name, found.size)) for name, found in shards if found is not None)
    return any(each.get("fingerprint") == fingerprint for each in says)


def _other_format(store: Store, error: records.OtherFormatError) -> CacheError:
    return CacheError(
        f"{store.url}/{records.SPEC} {error}. Install the llmembed that wrote it, or delete the folder and run "
        f"{mend_command(store)}."
    )
