"""The small records of a cache: `spec.json`, whose embeddings it holds, and what each finished extraction did.

In: a spec, reports. Out: files, and what they say, as long as it is certain that they say what was written. Knows no
shards.
"""

import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llmembed.backbones import BackboneSpec
from llmembed.cache.shard import CACHE_FORMAT
from llmembed.choices import OnEmpty
from llmembed.identity import SEAL, seal, unseal
from llmembed.storage import Store, list_names

SPEC = "spec.json"
EXTRACTIONS = "extractions"
EXTRACTION = re.compile(r"extractions/\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{4}\.json")


class OtherFormatError(ValueError):
    """The record is whole, but of a format that this llmembed does not know."""

    def __init__(self, number: int) -> None:
        super().__init__(f"has format {number}; this llmembed reads format {CACHE_FORMAT}")


class _SpecRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    spec: dict[str, Any]


class _Reading(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    argument: str
    text_column: str = "text"
    label_column: str = "label"
    on_empty: OnEmpty = "error"
    limit: int | None = None


class _UnsealedExtraction(BaseModel):
    """What extractions recorded before records were sealed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rows: int
    embedded: int
    reused: int
    truncated: int
    tokens: int
    seconds: float
    texts_per_second: float
    tokens_per_second: float
    mfu: float | None
    watt_hours: float | None
    engine: dict[str, str]
    bytes: int
    repaired: int
    cache: str
    dataset: list[str]
    options: list[str]
    reading: _Reading
    backbone: str


def write_spec(store: Store, spec: BackboneSpec) -> None:
    """Write whose embeddings the folder holds, in the place of what is there.

    Raises:
        CacheError: it cannot be written.
    """
    store.put(SPEC, json.dumps({"format": CACHE_FORMAT, "spec": spec.model_dump(mode="json")}, indent=1).encode())


def read_spec(store: Store) -> BackboneSpec:
    """Read whose embeddings the folder holds.

    Raises:
        FileNotFoundError: it does not say.
        OtherFormatError: it is of another format.
        ValueError: it is damaged.
    """
    try:
        # As JSON, for tuples and literals come back from it alone.
        record = _SpecRecord.model_validate_json(store.read(SPEC))
        if record.format != CACHE_FORMAT:
            raise OtherFormatError(record.format)
        return BackboneSpec.model_validate_json(json.dumps(record.spec))
    except ValidationError as error:
        raise ValueError(_first(error)) from error


def write_extraction(store: Store, report: Mapping[str, Any]) -> None:
    """Write the report of a finished extraction, sealed, under a name that tells the time.

    Raises:
        CacheError: it cannot be written.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    store.create(f"{EXTRACTIONS}/{moment}-{secrets.token_hex(2)}.json", seal(report))


def list_extractions(store: Store) -> list[str]:
    """List the reports of finished extractions by name, the oldest first, without a look into them."""
    return [name for name in list_names(store, EXTRACTIONS) if EXTRACTION.fullmatch(name)]


def read_extraction(store: Store, name: str) -> dict[str, Any]:
    """Read the report of an extraction.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: it is damaged.
    """
    content = store.read(name)
    try:
        return unseal(content)
    except ValueError:
        # Those of llmembed 0.1.0 have no seal. Of them only the form can be checked.
        if f'"{SEAL}"'.encode() in content:
            raise
    try:
        return _UnsealedExtraction.model_validate_json(content).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ValueError(_first(error)) from error


def salvage_extraction(store: Store, name: str) -> dict[str, Any]:
    """Return what a damaged report still says of how to extract again: good for a command to propose, no more."""
    try:
        found = json.loads(store.read(name))
        words = {key: found[key] for key in ("dataset", "options") if all(isinstance(word, str) for word in found[key])}
        return words if all(isinstance(each, list) for each in words.values()) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'it'}: {found['msg']}"
