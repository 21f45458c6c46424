"""Stage 2: read embeddings by text, scale and fuse them, fit a head, judge it once on the test split. Loads no model.

In: a data set (for its labels) and the cache that covers it. Out: a classifier folder and a `Training`. The validation
part, for early stopping, is the data set's own or 10 % of its training rows; the test split is read after the fit.
"""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.backbones import resolve_layers
from llmembed.cache import Cache, Located
from llmembed.classifier import Classifier, ClassifierRecord, check_destination
from llmembed.dataset import Dataset, text_key
from llmembed.errors import UsageError
from llmembed.evaluate import Report, evaluate
from llmembed.fusion import Fusion, fuse, fused_layers, fused_width
from llmembed.heads import hold_out, make_head
from llmembed.predict import classify_rows
from llmembed.scaling import Scaler, fit_scaler

VERSIONS = ("llmembed", "torch", "scikit-learn", "lightgbm", "numpy")


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes:
        report: the judgement on the test split.
        settings: everything that, with the embeddings, determines the report.
        rows: training rows, validation part included.
        validation_rows: rows that only steered the fit.
        classes: number of classes.
        features: width of the fused features.
        read_seconds: finding, checking, scaling and fusing the training rows.
        fit_seconds: fitting the head.
        test_seconds: reading and classifying the test rows.
        out: folder of the classifier.
    """

    report: Report
    settings: dict[str, Any]
    rows: int
    validation_rows: int
    classes: int
    features: int
    read_seconds: float
    fit_seconds: float
    test_seconds: float
    versions: dict[str, str]
    out: str

    def to_json(self) -> dict[str, Any]:
        """Give one flat object for `--json`."""
        report = asdict(self.report)
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("report", "settings")}
        return {**self.settings, **own, "test_rows": report.pop("rows"), **report}


@dataclass(frozen=True)
class Part:
    """Some rows of a data set: where their embeddings lie, and their labels [rows]."""

    located: Located
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> "Part":
        """Give the chosen rows, a bool or integer index."""
        return Part(Located(self.located.shard[chosen], self.located.row[chosen]), self.labels[chosen])


def train(
    dataset: Dataset,
    *,
    root: Path,
    out: Path | None = None,
    backbone: str | None = None,
    fusion: Fusion = "concat",
    head: str = "mlp",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    head_options: Mapping[str, Any] | None = None,
) -> Training:
    """Fit a head on a data set's embeddings, judge it on the test split and save the classifier.

    `head_options` are parameters of the head, such as `{"hidden": (512, 256)}`. The same seed on the same CPU gives the
    same metrics.json. Without `out` the classifier goes to a folder under models/ whose name tells the settings, so
    that a training never replaces another one's.

    Raises:
        CacheError: no cache, rows missing from it, or a damaged shard, with the command that mends it.
        UsageError: layers that the cache does not hold, or parameters that the head does not have.
        ClassifierError: `out` holds something else.
    """
    start = time.perf_counter()
    cache = Cache.latest(root, dataset.name, backbone, dataset.words)
    used = fused_layers(fusion, stored_layers(cache, layers, dataset.words))
    estimator = make_head(head, seed=seed, **(head_options or {}))
    settings = _settings(dataset, cache, fusion, head, used, seed) | {"head_options": dict(head_options or {})}
    out = out or Path("models") / _name(settings)
    check_destination(out)
    fit, validation, test = _parts(dataset, cache, seed)
    scaler = fit_scaler(block for _, block in cache.blocks(fit.located, used))
    features, validation_features = (
        read_features(cache, part.located, used, scaler, fusion) for part in (fit, validation)
    )
    read = time.perf_counter()
    estimator.fit(features, fit.labels, validation=(validation_features, validation.labels))
    fitted = time.perf_counter()
    classifier = Classifier(_record(cache, settings, estimator.classes_), scaler, estimator)
    probabilities = classify_rows(classifier, cache, test.located)
    training = Training(
        report=evaluate(test.labels.tolist(), probabilities, classifier.record.labels),
        settings=settings,
        rows=len(fit.labels) + len(validation.labels),
        validation_rows=len(validation.labels),
        classes=len(classifier.record.labels),
        features=features.shape[1],
        read_seconds=round(read - start, 3),
        fit_seconds=round(fitted - read, 3),
        test_seconds=round(time.perf_counter() - fitted, 3),
        versions={package: version(package) for package in VERSIONS},
        out=str(out),
    )
    _save(classifier, training, out)
    return training


def stored_layers(cache: Cache, layers: Sequence[int] | None, words: Sequence[str]) -> tuple[int, ...]:
    """Give the layers asked for, or all that the cache holds; `words` name the data set on a command line.

    Raises:
        UsageError: the cache does not hold them, with the command that mends it.
    """
    held = cache.spec.layers
    wanted = held if layers is None else resolve_layers(layers, cache.spec.depth, cache.spec.model)
    if not set(wanted) <= set(held):
        option = f"--layers {','.join(map(str, wanted))}"
        raise UsageError(
            f"{option}: {cache.folder} holds the layers {','.join(map(str, held))}. Choose among them or run "
            f"`{shlex.join(['llmembed', 'extract', *words])} --backbone {cache.backbone} {option}` first."
        )
    return wanted


def dataset_digest(dataset: Dataset) -> str:
    """Identify texts, labels and splits of a data set, in their order: 16 hex digits."""
    return sha256(json.dumps(dataset.table.rows(), ensure_ascii=False).encode()).hexdigest()[:16]


def _settings(
    dataset: Dataset, cache: Cache, fusion: Fusion, head: str, layers: Sequence[int], seed: int
) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset_digest(dataset),
        "backbone": cache.backbone,
        "fingerprint": cache.spec.fingerprint,
        "layers": list(layers),
        "fusion": fusion,
        "head": head,
        "seed": seed,
    }


def _name(settings: dict[str, Any]) -> str:
    digest = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    return "-".join([settings["dataset"], settings["backbone"], settings["fusion"], settings["head"], digest])


def training_part(dataset: Dataset, cache: Cache) -> Part:
    """Give the rows of the training split.

    Raises:
        CacheError: rows missing from the cache, or a damaged shard, with the command that mends it.
    """
    located = cache.locate_all([text_key(text) for text in dataset.texts("train")], dataset.words)
    return Part(located, np.array(dataset.labels("train")))


def _parts(dataset: Dataset, cache: Cache, seed: int) -> tuple[Part, Part, Part]:
    located = cache.locate_all([text_key(text) for text in dataset.texts()], dataset.words)
    rows, split = Part(located, dataset.table["label"].to_numpy().astype(str)), dataset.table["split"].to_numpy()
    training, test = rows.take(split == "train"), rows.take(split == "test")
    if (split == "validation").any():
        return training, rows.take(split == "validation"), test
    fit, held_out = hold_out(np.unique(training.labels, return_inverse=True)[1], seed=seed)
    return training.take(fit), training.take(held_out), test


def read_features(cache: Cache, located: Located, layers: Sequence[int], scaler: Scaler, fusion: Fusion) -> np.ndarray:
    """Read located rows, scaled and fused -> float32 [rows, features], in the order of the request."""
    features = np.empty((len(located.row), fused_width(fusion, len(layers), cache.spec.dim)), np.float32)
    for positions, block in cache.blocks(located, layers):
        features[positions] = fuse(scaler.apply(block), fusion)
    return features


def _record(cache: Cache, settings: dict[str, Any], labels: np.ndarray) -> ClassifierRecord:
    return ClassifierRecord(
        spec=cache.spec,
        backbone=cache.last_extraction().get("backbone", cache.backbone),
        layers=settings["layers"],
        fusion=settings["fusion"],
        head=settings["head"],
        labels=tuple(map(str, labels)),
        training=settings,
    )


def _save(classifier: Classifier, training: Training, out: Path) -> None:
    classifier.save(
        out,
        {
            # Without times and paths, so that equal trainings give equal files.
            "metrics.json": {**training.settings, **asdict(training.report)},
            "report.json": training.to_json(),
        },
    )
