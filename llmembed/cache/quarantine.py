"""Quarantine: which texts have no embeddings, and why, in small sealed records beside the shards.

In: keys, reasons. Out: the same. A record holds no text, and one that was changed counts for nothing: the next
extraction tries its text again, as it does all of them. Knows no model.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from llmembed.backbones import BadText
from llmembed.identity import KEY_BYTES, seal, unseal
from llmembed.storage import Store, list_names

QUARANTINE = "quarantine"
KEY = re.compile(f"[0-9a-f]{{{2 * KEY_BYTES}}}")


class Quarantined(BaseModel):
    """Why a text has no embedding.

    Attributes:
        key: the text's key, in hex.
        reason: in words.
        layer, value: the first value that could not be stored, where that is the reason; a word, for NaN is no JSON.
        engine: what embedded, or tried to.
        skip: the user wants to go on without the text.
        created: when it was tried last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    reason: str
    layer: int | None
    value: str | None
    engine: dict[str, str]
    skip: bool
    created: str


class Quarantine:
    """The quarantine of one cache."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keys(self) -> set[bytes]:
        """Return the keys of all records, also of those that were changed."""
        names = (
            name.removeprefix(f"{QUARANTINE}/").removesuffix(".json") for name in list_names(self._store, QUARANTINE)
        )
        return {bytes.fromhex(name) for name in names if KEY.fullmatch(name)}

    def records(self) -> dict[bytes, Quarantined]:
        """Return the records, by key."""
        found = {}
        for key in sorted(self.keys()):
            try:
                record = Quarantined.model_validate(unseal(self._store.read(_name(key))))
            except (OSError, ValueError):
                continue
            if record.key == key.hex():
                found[key] = record
        return found

    def skipped(self) -> dict[bytes, str]:
        """Return why texts have no embeddings that the user wants to go on without, by key."""
        return {key: record.reason for key, record in self.records().items() if record.skip}

    def put(self, bad: Mapping[bytes, BadText], engine: dict[str, str], *, skip: bool) -> None:
        """Write records, in place of older ones."""
        for key, text in bad.items():
            record = Quarantined(
                key=key.hex(),
                reason=text.reason,
                layer=text.layer,
                value=None if text.value is None else repr(text.value),
                engine=engine,
                skip=skip,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            self._store.put(_name(key), seal(record.model_dump(mode="json")))

    def release(self, keys: Iterable[bytes]) -> None:
        """Delete the records of texts that have embeddings now."""
        for key in keys:
            self._store.delete(_name(key))


def _name(key: bytes) -> str:
    return f"{QUARANTINE}/{key.hex()}.json"
