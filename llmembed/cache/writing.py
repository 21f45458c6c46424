"""Writing a shard so that it counts: the object under a new name, then the record that makes it count.

In: rows, and the folder of a cache that is claimed. Out: a committed shard, or the news that another writer had
committed the same keys; no file that nothing leads to.
"""

import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256

from llmembed.backbones import BackboneSpec
from llmembed.cache.commits import COMMITS, Commit
from llmembed.cache.shard import EmbeddedRows, encode_shard, make_shard_id
from llmembed.errors import CacheError
from llmembed.storage import Store


def write_shard(store: Store, spec: BackboneSpec, rows: EmbeddedRows, engine: dict[str, str]) -> bool:
    """Write one shard and commit it; return whether it counts, or another writer had committed the same keys.

    Raises:
        ValueError: keys that do not fit the rows.
        CacheError: the folder cannot be written to, or is full.
    """
    content = encode_shard(rows, spec.layers, spec.fingerprint)
    shard_id = make_shard_id(rows.keys)
    path, record = f"shards/{shard_id}-{secrets.token_hex(4)}.parquet", f"{COMMITS}/{shard_id}.json"
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(lambda: sha256(content).hexdigest())
        store.put(path, content)
    commit = Commit(
        path=path,
        rows=len(rows.keys),
        bytes=len(content),
        sha256=digest.result(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=engine,
    )
    try:
        won = store.create(record, commit.model_dump_json(indent=1).encode())
    except CacheError:
        # A full disk has its room back at once; a shard that a record may lead to stays.
        if store.stat(record) is None:
            store.delete(path)
        raise
    if not won:
        store.delete(path)
    return won
