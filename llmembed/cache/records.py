"""The small records of a cache: `spec.json`, whose embeddings it holds, and what each finished extraction did.

In: a spec, records. Out: files, and what they say, as long as it is certain that they say what was written. Knows no
shards.
"""

import json
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llmembed.backbones import BackboneSpec
from llmembed.cache.shard import CACHE_FORMAT
from llmembed.identity import SEAL, seal, unseal
from llmembed.requests import ExtractionRequest
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


class ExtractionRecord(BaseModel):
    """What an extraction was asked for, and what it did.

    Attributes:
        rows: rows of the data set; each was either embedded or reused.
        embedded: distinct texts that the model read in this run.
        reused: rows whose embeddings were there already, or belong to an equal text.
        quarantined: distinct texts that have no embeddings; `extract` tries them again whenever it is run.
        truncated: rows whose text is longer than the length limit.
        tokens: tokens that the model read in this run.
        seconds: wall time of the run, loading the model included.
        texts_per_second: embedded texts per second of embedding.
        tokens_per_second: tokens per second of embedding.
        mfu: share of the rate at which the GPUs multiply bfloat16 matrices that the matrix products of the layers made
            use of (model FLOPs utilisation); None on the CPU.
        watt_hours: energy that the GPUs used in the run, by their own counters; None where they have none.
        engine: engine, version, device and dtype that embedded, empty if nothing was.
        bytes: size of all shards of the cache.
        repaired: damaged shards that were found and made again.
        cache: URL of the cache.
        backbone: where the backbone was found: a name, a hub id or a folder.
        request: what the extraction was asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rows: int
    embedded: int
    reused: int
    quarantined: int = 0
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
    backbone: str
    request: ExtractionRequest


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


def write_extraction(store: Store, record: ExtractionRecord) -> None:
    """Write the record of a finished extraction, sealed, under a name that tells the time.

    Raises:
        CacheError: it cannot be written.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    store.create(f"{EXTRACTIONS}/{moment}-{secrets.token_hex(2)}.json", seal(record.model_dump(mode="json")))


def list_extractions(store: Store) -> list[str]:
    """List the records of finished extractions by name, the oldest first, without a look into them."""
    return [name for name in list_names(store, EXTRACTIONS) if EXTRACTION.fullmatch(name)]


def read_extraction(store: Store, name: str) -> ExtractionRecord:
    """Read the record of an extraction.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: it is damaged.
    """
    content = store.read(name)
    try:
        found = unseal(content)
    except ValueError:
        # Those of llmembed 0.1.0 have no seal. Of them only the form can be checked.
        if f'"{SEAL}"'.encode() in content:
            raise
        found = _loads(content)
    try:
        # As JSON, for tuples come back from it alone.
        return ExtractionRecord.model_validate_json(json.dumps(_with_request(found)))
    except ValidationError as error:
        raise ValueError(_first(error)) from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it does not say what was asked for ({error!r})") from error


def salvage_request(store: Store, name: str) -> ExtractionRequest | None:
    """Return what a damaged record still says of how to extract again: good for a command to propose, no more."""
    try:
        found = _with_request(_loads(store.read(name)))
        return ExtractionRequest.model_validate_json(json.dumps(found["request"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _loads(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _with_request(found: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it is written now: llmembed 0.1.0 wrote what was asked for as words of a command line."""
    if not isinstance(found, dict) or "options" not in found:
        return found
    words, reading = found["options"], found.get("reading", {"argument": found["dataset"][0]})
    asked: dict[str, Any] = {
        option.removeprefix("--").replace("-", "_"): value
        for option, value in zip(words[::2], words[1::2], strict=True)
    }
    if "layers" in asked:
        asked["layers"] = [int(layer) for layer in asked["layers"].split(",")]
    if "max_length" in asked:
        asked["max_length"] = int(asked["max_length"])
    rest = {key: value for key, value in found.items() if key not in ("options", "dataset", "reading")}
    return {**rest, "request": {**asked, "reading": reading}}


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'it'}: {found['msg']}"
