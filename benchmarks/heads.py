"""Heads on the AG News subset, five MiniLM layers concatenated: llmembed's against scikit-learn, LightGBM and XGBoost.

All see the same standardised features, but for the probe, which is what users of sentence-transformers do: logistic
regression on the last layer alone, normalised as `SentenceTransformer.encode` does it for this model. Every fit has a
process of its own, so that memory and threads are its own. The competitors alternate; times are medians, ratios are
medians of the ratios of a round. Memory is the largest anonymous resident set from the start of the process to the end
of the fit, the features included. Needs Linux, and `llmembed extract agnews`.

    LLMEMBED_DATA=… .venv/bin/python benchmarks/heads.py [--rounds 3] [--dataset agnews] [--cache cache] [--rows N]
"""

import argparse
import json
import statistics
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from machine import MemoryWatch, describe_machine, run_alone

from llmembed.datasets import Dataset, load_dataset
from llmembed.datasets.labels import index_labels
from llmembed.evaluation import evaluate
from llmembed.features import FeatureMap
from llmembed.features.fusion import fuse
from llmembed.features.on_disk import Features, fit_feature_map
from llmembed.features.sources import (
    LocatedRows,
    Source,
    locate_rows,
    open_sources,
    read_embeddings,
)
from llmembed.heads import make_head

OURS = ("mlp", "gbdt", "logistic", "lda")
PROBE = "logistic probe, last layer"
# Where each peer is: imported only in its own process.
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LogisticRegression": ("sklearn.linear_model", "LogisticRegression", {"max_iter": 1000}),
    "MLPClassifier": (
        "sklearn.neural_network",
        "MLPClassifier",
        {"hidden_layer_sizes": (256,), "early_stopping": True},
    ),
    "LGBMClassifier": ("lightgbm", "LGBMClassifier", {"verbose": -1}),
    "XGBClassifier": ("xgboost", "XGBClassifier", {"tree_method": "hist"}),
    PROBE: ("sklearn.linear_model", "LogisticRegression", {"max_iter": 1000}),
}
COMPARED = ("LogisticRegression", "LGBMClassifier")


def make_competitor(name: str) -> Any:
    if name in OURS:
        return make_head(name)
    module, class_name, params = PEERS[name]
    return getattr(import_module(module), class_name)(**params)


def read_standardised(sources: tuple[Source, ...], feature_map: FeatureMap, rows: LocatedRows) -> np.ndarray:
    return Features(sources, rows, feature_map)[:]


def read_normalised(sources: tuple[Source, ...], rows: LocatedRows) -> np.ndarray:
    last = [source.fused("last") for source in sources]
    vectors = fuse(read_embeddings(last, rows), "last").astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(name: str, dataset: Dataset, root: Path, limit: int | None) -> dict[str, Any]:
    memory = MemoryWatch()
    sources = open_sources(root, dataset)
    train = locate_rows(sources, dataset.texts("train")[:limit])
    if name == PROBE:
        read = partial(read_normalised, sources)
    else:
        read = partial(read_standardised, sources, fit_feature_map(sources, train, "concat"))
    features, estimator = read(train), make_competitor(name)
    labels = dataset.labels("train")[:limit]
    y, _ = index_labels(labels, sorted(set(labels)))
    start = time.perf_counter()
    estimator.fit(features, y)
    end = time.perf_counter()
    test = locate_rows(sources, dataset.texts("test"))
    truth, names = index_labels(dataset.labels("test"), sorted(set(labels)))
    probabilities = estimator.predict_proba(read(test))
    report = evaluate(truth, probabilities, probabilities.argmax(axis=1), names)
    return {
        "seconds": end - start,
        "memory": memory.peak(until=end),
        "layers": f"{len(sources[0].layers)} layers of {sources[0].cache.backbone}",
        "shape": features.shape,
        "accuracy": report.accuracy,
        "macro_f1": report.macro_f1,
        "calibration_error": report.calibration_error,
    }


def print_table(dataset: str, rounds: list[dict[str, dict[str, Any]]]) -> None:
    last = rounds[-1]
    layers, (rows, width) = last["mlp"]["layers"], last["mlp"]["shape"]
    print(describe_machine("scikit-learn", "xgboost-cpu"))
    print(f"{dataset}, {layers} concatenated: {rows:,} x {width:,} standardised; median of {len(rounds)} rounds\n")
    compared = " | ".join(f"times {peer}" for peer in COMPARED)
    print(
        f"| head | fit s | lowest - highest | {compared} | peak memory | test accuracy | macro-F1 | calibration error |"
    )
    print(f"|---|{'--:|' * (6 + len(COMPARED))}")
    for name in last:
        times = [each[name]["seconds"] for each in rounds]
        cells = [
            name,
            f"{statistics.median(times):.1f}",
            f"{min(times):.1f} - {max(times):.1f}",
            *(
                f"{statistics.median(r[peer]['seconds'] / r[name]['seconds'] for r in rounds):.1f}x"
                for peer in COMPARED
            ),
            f"{statistics.median(each[name]['memory'] for each in rounds) / 1e9:.2f} GB",
            *(f"{last[name][score]:.2%}" for score in ("accuracy", "macro_f1", "calibration_error")),
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", default="agnews")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--rows", type=int, help="only so many training rows, for a quick try")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options.alone, load_dataset(options.dataset), options.cache, options.rows)))
        return
    print_table(options.dataset, [{name: run_alone(name) for name in (*OURS, *PEERS)} for _ in range(options.rounds)])


if __name__ == "__main__":
    main()
