"""What a cache holds, or an error that names what is damaged and the extraction that makes it again.

In: the store of a cache. Out: its spec, held against its name, its shards and what is wanted of it; commits; the last
extraction. Knows no rows.
"""

from collections.abc import Sequence

from llmembed.backbones import BackboneSpec
from llmembed.cache import records
from llmembed.cache.commits import COMMITS, Commit, read_records, shard_id
from llmembed.cache.content import open_content
from llmembed.cache.layout import read_description
from llmembed.cache.place import place_of
from llmembed.cache.remedy import request_again
from llmembed.errors import CacheError
from llmembed.requests import Reading
from llmembed.storage import Store, list_names


def open_spec(store: Store, reading: Reading | None = None) -> BackboneSpec:
    """Return the spec of an existing cache; `reading` names its data set where no extraction does.

    Raises:
        CacheError: no cache, another format, or `spec.json` is damaged, with the extraction that writes it again.
    """
    path = f"{store.url}/{records.SPEC}"

    def fault(found: str) -> CacheError:
        again = request_again(store, otherwise=reading)
        return CacheError(f"{path} {found}; extract again to write it.", cache=store.url, extractions=[again])

    try:
        spec = records.read_spec(store)
    except FileNotFoundError as error:
        raise fault("is missing") from error
    except records.OtherFormatError as error:
        raise _other_format(store, error) from error
    except ValueError as error:
        raise fault(f"is damaged ({error})") from error
    if place_of(store).fingerprint != spec.fingerprint:
        raise fault(
            f"is damaged or of another cache: its fingerprint is {spec.fingerprint}, not that of the folder's name"
        )
    return spec


def is_claimed(store: Store, spec: BackboneSpec) -> bool:
    """Return whether `spec.json` says that the cache holds the embeddings of a spec; if it is damaged, it does not.

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
        raise CacheError(
            f"{store.url} holds the embeddings of another backbone: {found}. Name another `root`.", cache=store.url
        )
    return found == spec


def open_last_extraction(
    store: Store, spec: BackboneSpec, reading: Reading | None = None
) -> records.ExtractionRecord | None:
    """Return the record of the last finished extraction, None if none finished; `reading` as for `open_spec`.

    Raises:
        CacheError: it is damaged, with the extraction that writes another one.
    """
    name = max(records.list_extractions(store), default="")
    try:
        return records.read_extraction(store, name) if name else None
    except (FileNotFoundError, ValueError) as error:
        raise CacheError(
            f"{store.url}/{name} is damaged ({error}); extract again to write another one.",
            cache=store.url,
            extractions=[request_again(store, spec, reading)],
        ) from error


def open_commits(store: Store, spec: BackboneSpec, reading: Reading | None = None) -> list[Commit]:
    """Return the commits, in the order of their names; `reading` as for `open_spec`.

    Raises:
        CacheError: a record that is not one, with the extraction that makes its texts again.
    """
    found = read_records(store)
    for record in found:
        if record.commit is None:
            raise CacheError(
                f"{store.url}/{record.name} is damaged ({record.fault}); extract again to make its texts.",
                cache=store.url,
                extractions=[request_again(store, spec, reading)],
            )
    return [record.commit for record in found if record.commit is not None]


def refuse_damaged(
    store: Store,
    spec: BackboneSpec,
    reading: Reading | None,
    total: int,
    paths: Sequence[str],
    faults: Sequence[str],
) -> None:
    """Refuse shards, given by their paths, of which something is wrong; `total` counts the shards of the cache.

    Raises:
        CacheError: there are some, with the extraction that makes them again.
    """
    damaged = [(path, fault) for path, fault in zip(paths, faults, strict=True) if fault]
    if damaged:
        # Either of the two files may be the damaged one.
        path, fault = damaged[0]
        raise CacheError(
            f"{len(damaged)} of {total} shards in {store.url} are damaged "
            f"({path.rpartition('/')[2]} {fault}; see {COMMITS}/{shard_id(path)}.json); extract again to make them.",
            cache=store.url,
            missing=len(damaged),
            total=total,
            shard=path,
            extractions=[request_again(store, spec, reading)],
        )


def _holds(store: Store, fingerprint: str) -> bool:
    """Return whether a shard says the same as a spec that is not the one wanted: then the spec is not damaged."""
    shards = ((name, store.stat(name)) for name in list_names(store, "shards"))
    says = (read_description(open_content(store, name, found.size)) for name, found in shards if found is not None)
    return any(each.get("fingerprint") == fingerprint for each in says)


def _other_format(store: Store, error: records.OtherFormatError) -> CacheError:
    return CacheError(
        f"{store.url}/{records.SPEC} {error}. Install the llmembed that wrote it, or delete the folder and extract "
        "again.",
        cache=store.url,
        extractions=[request_again(store)],
    )
