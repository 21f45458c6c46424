"""Whose embeddings a folder holds: its `spec.json` held against its name, its shards, and what is wanted of it.

In: the folder of a cache. Out: its spec, or an error with the command that mends it. Knows no rows.
"""

from collections.abc import Sequence
from pathlib import Path

from llmembed.backbones import BackboneSpec
from llmembed.cache import records
from llmembed.cache.layout import read_description
from llmembed.cache.remedy import mend_command
from llmembed.cache.store import LocalStore
from llmembed.errors import CacheError


def open_spec(folder: Path, words: Sequence[str] = ()) -> BackboneSpec:
    """Return the spec of an existing cache; `words` name its data set on a command line.

    Raises:
        CacheError: no cache, another format, or `spec.json` is damaged, with the command that mends it.
    """
    path, remedy = folder / records.SPEC, f"run {mend_command(folder, otherwise=words)} to write it again."
    try:
        spec = records.read_spec(LocalStore(folder))
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing; {remedy}") from error
    except records.OtherFormatError as error:
        raise _other_format(folder, error) from error
    except ValueError as error:
        raise CacheError(f"{path} is damaged ({error}); {remedy}") from error
    if folder.name.rpartition("-")[2] != spec.fingerprint:
        raise CacheError(
            f"{path} is damaged or of another cache: its fingerprint is {spec.fingerprint}, not that of the folder's "
            f"name; {remedy}"
        )
    return spec


def is_claimed(folder: Path, spec: BackboneSpec) -> bool:
    """Tell whether `spec.json` says that the folder holds the embeddings of a spec; if it is damaged, it does not.

    Raises:
        CacheError: it is whole, and the embeddings are of another spec or format.
    """
    store = LocalStore(folder)
    try:
        found = records.read_spec(store)
    except records.OtherFormatError as error:
        raise _other_format(folder, error) from error
    except (FileNotFoundError, ValueError):
        return False
    if found != spec and (found.fingerprint == spec.fingerprint or _holds(store, found.fingerprint)):
        raise CacheError(f"{folder} holds the embeddings of another backbone: {found}. Use another --cache folder.")
    return found == spec


def _holds(store: LocalStore, fingerprint: str) -> bool:
    """Tell whether a shard says the same as a spec that is not the one wanted: then the spec is not damaged."""
    says = (read_description(store.map(name)) for name in store.names("shards"))
    return any(each.get("fingerprint") == fingerprint for each in says)


def _other_format(folder: Path, error: records.OtherFormatError) -> CacheError:
    return CacheError(
        f"{folder / records.SPEC} {error}. Install the llmembed that wrote it, or delete the folder and run "
        f"{mend_command(folder)}."
    )
