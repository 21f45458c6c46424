"""Heads on the AG News subset, five MiniLM layers concatenated: llmembed's against scikit-learn and LightGBM defaults.

All see the same standardised features. llmembed's heads hold a tenth of the training rows out for early stopping; the
others fit all of them. The competitors alternate; times are medians, ratios are medians of the ratios of a round.
Needs `llmembed extract agnews`.

    LLMEMBED_DATA=… .venv/bin/python benchmarks/heads.py [--rounds 3] [--dataset agnews] [--cache cache]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier
from machine import describe_machine
from sklearn.linear_model import LogisticRegression

from llmembed.dataset import load_dataset
from llmembed.evaluate import evaluate
from llmembed.features import Features, fit_scalers, locate_rows, open_sources
from llmembed.heads import make_head

OURS: dict[str, Callable[[], Any]] = {name: lambda name=name: make_head(name) for name in ("mlp", "gbdt", "logistic")}
PEERS: dict[str, Callable[[], Any]] = {
    "LogisticRegression": lambda: LogisticRegression(max_iter=1000),
    "LGBMClassifier": lambda: LGBMClassifier(verbose=-1),
}


def features_of(dataset: Any, root: Path) -> tuple[np.ndarray, np.ndarray]:
    sources = open_sources(root, dataset)
    train, test = (locate_rows(sources, dataset.texts(split), dataset.words) for split in ("train", "test"))
    scalers = fit_scalers(sources, train)
    return Features(sources, train, scalers, "concat")[:], Features(sources, test, scalers, "concat")[:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", default="agnews")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    dataset = load_dataset(options.dataset)
    train, test = features_of(dataset, options.cache)
    labels = np.array(dataset.labels("train"))
    makers = OURS | PEERS
    times: dict[str, list[float]] = {name: [] for name in makers}
    reports = {}
    for _ in range(options.rounds):
        for name, make in makers.items():
            estimator, start = make(), time.perf_counter()
            estimator.fit(train, labels)
            times[name].append(time.perf_counter() - start)
            reports[name] = evaluate(dataset.labels("test"), estimator.predict_proba(test), list(estimator.classes_))
    print(describe_machine())
    print(f"{options.dataset}: {len(train):,} x {train.shape[1]:,} features; median of {options.rounds} rounds\n")
    peers = " | ".join(f"times {name}" for name in PEERS)
    print(f"| head | fit s | lowest - highest | {peers} | test accuracy | macro-F1 | calibration error |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in makers:
        ratios = [
            statistics.median(theirs / own for theirs, own in zip(times[peer], times[name], strict=True))
            for peer in PEERS
        ]
        cells = [
            name,
            f"{statistics.median(times[name]):.1f}",
            f"{min(times[name]):.1f} - {max(times[name]):.1f}",
            *(f"{ratio:.1f}x" for ratio in ratios),
            f"{reports[name].accuracy:.2%}",
            f"{reports[name].macro_f1:.2%}",
            f"{reports[name].calibration_error:.2%}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
