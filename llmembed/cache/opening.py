"""Whose embeddings a cache holds: its `spec.json` held against its name, its shards, and what is wanted of it.

In: the store of a cache. Out: its spec, or an error with the command that mends it. Knows no rows.
"""

from collections.abc import Sequence

from llmembed.backbones import BackboneSpec
from llmembed.cache import records
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
