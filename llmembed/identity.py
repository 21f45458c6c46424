"""Identity: the key of a text, the digest of JSON values, and JSON records that tell when they were changed.

In: texts and JSON values. Out: keys, digests, sealed records as bytes. Knows no file and no meaning.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b, sha256
from typing import Any

KEY_BYTES = 16
# Where a sealed record keeps the digest of everything else in it.
SEAL = "sha256"


def text_key(text: str) -> bytes:
    """Hash a text to its key in the cache, 16 bytes (BLAKE2b of its UTF-8 bytes)."""
    return blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def json_digest(value: Any) -> str:
    """Hash a JSON value, SHA-256 in hex of its canonical form: sorted keys, no spaces."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(canonical.encode()).hexdigest()


def seal(record: Mapping[str, Any]) -> bytes:
    """Encode a record as JSON that carries its own digest: `unseal` then refuses whatever was changed."""
    return (json.dumps({**record, SEAL: json_digest(record)}, indent=1, allow_nan=False) + "\n").encode()


def unseal(content: bytes) -> dict[str, Any]:
    """Decode a record that `seal` wrote, without its digest.

    Raises:
        ValueError: not JSON, not a sealed record, or changed since.
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict) or SEAL not in record:
        raise ValueError("not a sealed record")
    digest = record.pop(SEAL)
    if digest != json_digest(record):
        raise ValueError("its digest is another one: it was changed")
    return record
