"""Heads at the width of Llama-2-7B, from disk: llmembed's against their own matrix products, and LightGBM.

Each head trains as `llmembed train` does it, in a process of its own, on a synthetic store of 4.9 GB (`store.py`) with
20,480 features. The limit is the time of the fit's large matrix products alone at the machine's float32 rate, measured
in a process of its own. In it reading, scaling, the principal axes and all that comes after a projection are free.
LightGBM sees a twentieth and a tenth of the rows, in memory: all of them would be 10 GB. Memory is the largest
anonymous resident set from the start of the process to the end of the fit. One round. Needs Linux; the store stays in
FOLDER, by default under the temporary folder.

    .venv/bin/python benchmarks/heads_wide.py [--folder FOLDER] [--rows 120000]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import MemoryWatch, describe_machine, run_alone
from store import make_store

from llmembed.datasets import Dataset
from llmembed.features.on_disk import Features, fit_feature_map
from llmembed.features.sources import open_sources
from llmembed.fitting import training_rows
from llmembed.heads import make_head
from llmembed.heads.discriminant import SHRINKAGE_FOLDS, SHRINKAGES
from llmembed.training import Training, train

HEADS = ("mlp", "lda", "logistic", "gbdt")
# The product of a block of rows with the weights of the first hidden layer.
BLOCK_ROWS, FEATURES, HIDDEN = 2048, 20_480, 256
REPEATS = 5
# The parts of the rows that LightGBM sees. Two, because to find the best split among 20,480 features takes time that
# does not grow with the rows: one part in proportion would overstate the time of all of them.
PEERS = {"LGBMClassifier, a twentieth": 20, "LGBMClassifier, a tenth": 10}


def measure_head(head: str, dataset: Dataset, root: Path) -> dict[str, Any]:
    """Train, and count the float32 operations of the large products of the fit."""
    memory, start = MemoryWatch(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        training = train(dataset, root=root, head=head, out=Path(folder) / "classifier")
    return {
        "read_seconds": training.read_seconds,
        "seconds": training.fit_seconds,
        "memory": memory.peak(until=start + training.read_seconds + training.fit_seconds),
        "accuracy": training.report.accuracy,
        "operations": count_operations(head, training),
    }


def count_operations(head: str, training: Training) -> int:
    """Count those of `mlp`'s first layer, forward and its gradient, or of the discriminant that the others begin with.

    The discriminant multiplies all rows by a column for each shrinkage, fold and class, and back, in every step.
    """
    if head == "mlp":
        passes, columns = training.fit_info["epochs"], training.fit_info["ensemble_size"] * make_head("mlp").hidden[0]
    else:
        passes, columns = training.fit_info["steps"], len(SHRINKAGES) * (SHRINKAGE_FOLDS + 1) * training.classes
    # `gbdt` alone keeps its validation rows out of all products.
    rows = training.rows - (training.validation_rows if head == "gbdt" else 0)
    return passes * rows * training.features * columns * 2 * 2


def measure_products() -> dict[str, float]:
    """Measure float32 operations per second, by NumPy and by torch on all cores; the fastest counts."""
    left = np.random.default_rng(0).standard_normal((BLOCK_ROWS, FEATURES), np.float32)
    right = np.random.default_rng(1).standard_normal((FEATURES, HIDDEN), np.float32)
    times = []
    for pair in ((left, right), (torch.from_numpy(left), torch.from_numpy(right))):
        for _ in range(REPEATS):
            start = time.perf_counter()
            pair[0] @ pair[1]
            times.append(time.perf_counter() - start)
    return {"rate": 2 * left.size * HIDDEN / min(times)}


def measure_peer(dataset: Dataset, root: Path, part_of: int) -> dict[str, float]:
    """Fit LightGBM with its defaults on one part in so many of the rows."""
    from lightgbm import LGBMClassifier

    memory, sources = MemoryWatch(), open_sources(root, dataset)
    subset = training_rows(dataset, sources)
    subset = subset.take(np.arange(len(subset.y) // part_of))
    features = Features(sources, subset.rows, fit_feature_map(sources, subset.rows, "concat"))[:]
    start = time.perf_counter()
    LGBMClassifier(verbose=-1).fit(features, subset.y)
    end = time.perf_counter()
    return {"rows": len(features), "seconds": end - start, "memory": memory.peak(until=end)}


def print_results(rows: int) -> None:
    rate = run_alone("products")["rate"]
    print(describe_machine())
    print(f"{rows:,} x {FEATURES:,} features from disk; float32 products at {rate / 1e9:,.0f} GFLOP/s; one round\n")
    print("| head | fit s | its products s | fit / products | peak memory | test accuracy |\n|---|--:|--:|--:|--:|--:|")
    heads = {}
    for head in HEADS:
        heads[head] = measured = run_alone(head)
        products = measured["operations"] / rate
        cells = [
            head,
            f"{measured['seconds']:.1f}",
            f"{products:.1f}",
            f"{measured['seconds'] / products:.1f}x",
            f"{measured['memory'] / 1e9:.2f} GB",
            f"{measured['accuracy']:.2%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    again = {head: run_alone(head)["read_seconds"] for head in ("gbdt", "mlp")}
    begins = ", ".join(f"{head} {heads[head]['read_seconds']:.1f} s, then {again[head]:.1f} s" for head in again)
    print(f"\nSeconds until the fit begins, first run and second run on unchanged features: {begins}.", flush=True)
    print_peer(rows, heads["gbdt"]["seconds"])


def print_peer(rows: int, own_seconds: float) -> None:
    small, large = (run_alone(name) for name in PEERS)
    per_row = (large["seconds"] - small["seconds"]) / (large["rows"] - small["rows"])
    line = large["seconds"] + per_row * (rows - large["rows"])
    proportion = large["seconds"] * rows / large["rows"]
    print(
        f"LGBMClassifier with its defaults, in memory: {small['seconds']:.0f} s on {small['rows']:,} rows, "
        f"{large['seconds']:.0f} s and {large['memory'] / 1e9:.2f} GB on {large['rows']:,}. "
        f"Extrapolated to {rows:,} rows: in proportion {proportion:,.0f} s, "
        f"{proportion / own_seconds:.0f} times gbdt's; "
        f"along the line through both {line:,.0f} s, {line / own_seconds:.0f} times."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "llmembed-wide")
    parser.add_argument("--rows", type=int, default=120_000, help="fewer training rows, for a quick try")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    dataset, root = make_store(options.folder, options.rows)
    held = len(dataset.labels("train"))
    if held != options.rows:
        parser.error(
            f"--folder: {options.folder} holds {held:,} training rows, not {options.rows:,}; name another one."
        )
    if options.alone == "products":
        print(json.dumps(measure_products()))
    elif options.alone in PEERS:
        print(json.dumps(measure_peer(dataset, root, PEERS[options.alone])))
    elif options.alone:
        print(json.dumps(measure_head(options.alone, dataset, root)))
    else:
        print_results(options.rows)


if __name__ == "__main__":
    main()
