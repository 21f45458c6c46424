"""The cache against `.npy` files: writing, opening, reading a layer, size. In one run, with ratios.

Two shapes of 1 GB: MiniLM (384 wide) and Llama-2-7B (4,096 wide), five float16 layers. Both writers flush to disk, so
the disk is the limit of both; what is read lies in the page cache. Values are random: no format here compresses.

    .venv/bin/python benchmarks/cache.py [--gigabytes 1.0] [--rounds 5] [--folder FOLDER]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe_machine

from llmembed.backbones import BackboneSpec
from llmembed.cache import Cache
from llmembed.cache.shard import EmbeddedRows
from llmembed.extraction import SHARD_ROWS

LAYERS = (28, 29, 30, 31, 32)


def seconds(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def write_shards(cache: Cache, shards: list[EmbeddedRows]) -> None:
    for rows in shards:
        cache.write_shard(rows, {})


def write_arrays(folder: Path, arrays: list[np.ndarray]) -> None:
    for number, array in enumerate(arrays):
        with (folder / f"{number}.npy").open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())


def open_cache(url: str) -> list[np.ndarray]:
    return Cache.open(url).layer_views(LAYERS[-1])


def read_cache(url: str, matrix: np.ndarray) -> None:
    np.concatenate(open_cache(url), out=matrix)


def read_arrays(folder: Path, matrix: np.ndarray, shards: int) -> None:
    np.concatenate([np.load(folder / f"{number}.npy") for number in range(shards)], out=matrix)


def one_round(root: Path, spec: BackboneSpec, shards: int, number: int) -> tuple[dict[str, float], float]:
    draw = np.random.default_rng(number)
    block = draw.standard_normal((SHARD_ROWS, len(LAYERS), spec.dim)).astype(np.float16)
    last = np.ascontiguousarray(block[:, -1])
    counts, marks = np.full(SHARD_ROWS, 50, np.int32), np.zeros(SHARD_ROWS, bool)
    rows = [EmbeddedRows([draw.bytes(16) for _ in range(SHARD_ROWS)], counts, marks, block) for _ in range(shards)]
    cache = Cache.at(root, "random", "m", spec)
    cache.prepare()
    for folder in (root / "whole", root / "layer"):
        folder.mkdir()
    times = {"write": seconds(write_shards, cache, rows)}
    times["npy write"] = seconds(write_arrays, root / "whole", [block] * shards)
    write_arrays(root / "layer", [last] * shards)
    matrix = np.zeros((shards * SHARD_ROWS, spec.dim), np.float16)
    # Both lie in the page cache before they are timed.
    read_cache(cache.url, matrix)
    read_arrays(root / "layer", matrix, shards)
    times["open"] = seconds(open_cache, cache.url)
    times["read"] = seconds(read_cache, cache.url, matrix)
    times["npy read"] = seconds(read_arrays, root / "layer", matrix, shards)
    times["verify"] = seconds(Cache.open(cache.url).verify)
    return times, cache.size / (shards * block.nbytes)


def compare(dim: int, gigabytes: float, rounds: int, folder: Path) -> None:
    shards = max(1, round(gigabytes * 1e9 / (SHARD_ROWS * len(LAYERS) * dim * 2)))
    payload = shards * SHARD_ROWS * len(LAYERS) * dim * 2 / 1e9
    spec = BackboneSpec(
        model="m", weights="w", tokenizer="t", depth=32, layers=LAYERS, dim=dim, pooling="mean", max_length=256
    )
    measured = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            times, size = one_round(Path(root), spec, shards, number)
            measured.append(times)
    median = {name: statistics.median(times[name] for times in measured) for name in measured[0]}
    ratio = {
        name: statistics.median(times[f"npy {name}"] / times[name] for times in measured) for name in ("write", "read")
    }
    cells = [
        f"{dim} x 5 layers, {shards} shards, {payload:.2f} GB",
        f"{payload / median['write']:.2f} GB/s ({ratio['write']:.2f}x)",
        f"{median['open'] * 1e3:.1f} ms",
        f"{payload / len(LAYERS) / median['read']:.2f} GB/s ({ratio['read']:.2f}x)",
        f"{payload / median['verify']:.1f} GB/s",
        f"{size:.4f}x",
    ]
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(describe_machine())
    print(f"median of {options.rounds} rounds; in brackets: times the speed of .npy files\n")
    print("| embeddings | write, flushed to disk | open | read one layer | verify SHA-256 | size / payload |")
    print("|---|--:|--:|--:|--:|--:|")
    for dim in (384, 4096):
        compare(dim, options.gigabytes, options.rounds, options.folder)


if __name__ == "__main__":
    main()
