"""The cache against `.npy` files: writing, opening, reading a layer, size. In one run, with ratios.

Two shapes of 1 GB: MiniLM (384 wide) and Llama-2-7B (4,096 wide), five float16 layers. Files are in the page cache, so what
is compared is the format, not the disk. Values are random: no format here compresses.

    .venv/bin/python benchmarks/cache.py [--gigabytes 1.0] [--rounds 5] [--folder FOLDER]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe_machine

from llmembed.backbones import BackboneSpec
from llmembed.cache import Cache
from llmembed.cache.shard import Rows
from llmembed.extract import SHARD_ROWS

LAYERS = (28, 29, 30, 31, 32)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(dim: int, gigabytes: float, rounds: int, folder: Path) -> None:
    shards = max(1, round(gigabytes * 1e9 / (SHARD_ROWS * len(LAYERS) * dim * 2)))
    draw = np.random.default_rng(0)
    block = draw.standard_normal((SHARD_ROWS, len(LAYERS), dim)).astype(np.float16)
    counts, marks = np.full(SHARD_ROWS, 50, np.int32), np.zeros(SHARD_ROWS, bool)
    spec = BackboneSpec(
        model="m", weights="w", tokenizer="t", layers=LAYERS, dim=dim, pooling="mean", max_length=256, dtype="float16"
    )
    payload = shards * block.nbytes
    times: dict[str, list[float]] = {name: [] for name in ("write", "npy write", "open", "read", "npy read", "verify")}
    for number in range(rounds):
        root = folder / f"{dim}-{number}"
        cache = Cache.at(root, "random", "m", spec)
        cache.prepare()
        keys = [[draw.bytes(16) for _ in range(SHARD_ROWS)] for _ in range(shards)]
        times["write"].append(seconds(lambda: [cache.write_shard(Rows(k, counts, marks, block), {}) for k in keys]))
        times["npy write"].append(seconds(lambda: [np.save(root / f"{i}.npy", block) for i in range(shards)]))
        layer_files = [root / f"layer-{i}.npy" for i in range(shards)]
        for file in layer_files:
            np.save(file, np.ascontiguousarray(block[:, -1]))
        times["open"].append(seconds(lambda: Cache.open(cache.folder).layer_views(32)))
        # Both are copied into one matrix, as a trainer does.
        matrix = np.zeros((shards * SHARD_ROWS, dim), np.float16)
        times["read"].append(seconds(lambda: np.concatenate(Cache.open(cache.folder).layer_views(32), out=matrix)))
        times["npy read"].append(seconds(lambda: np.concatenate([np.load(file) for file in layer_files], out=matrix)))
        times["verify"].append(seconds(lambda: Cache.open(cache.folder).verify()))
        size = cache.size
        for file in root.rglob("*.*"):
            file.unlink()
    median = {name: statistics.median(values) for name, values in times.items()}
    layer = payload / len(LAYERS)
    ratio = statistics.median(npy / own for npy, own in zip(times["npy read"], times["read"], strict=True))
    print(f"| {dim} x 5 layers, {shards} shards, {payload / 1e9:.2f} GB "
          f"| {payload / median['write'] / 1e9:.2f} GB/s ({median['npy write'] / median['write']:.2f}x) "
          f"| {median['open'] * 1e3:.1f} ms "
          f"| {layer / median['read'] / 1e9:.2f} GB/s ({ratio:.2f}x) "
          f"| {payload / median['verify'] / 1e9:.1f} GB/s | {size / payload:.4f}x |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(describe_machine())
    print(f"median of {options.rounds} rounds; in brackets: times the speed of .npy files\n")
    print("| embeddings | write, with fsync and SHA-256 | open | read one layer | verify | size / payload |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for dim in (384, 4096):
            compare(dim, options.gigabytes, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
