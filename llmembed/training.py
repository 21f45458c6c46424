"""Stage 2: read embeddings by text, scale and fuse them, fit a head, judge it once on the test split. Loads no model.

In: a data set (for its labels) and the caches that cover it, one for each backbone. Out: a classifier folder and a
`Training`. What the head chooses or calibrates by is the data set's own validation split, or rows of the training split
that the head holds out; the test split is read after the fit.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.cache import Cache
from llmembed.choices import Fusion
from llmembed.classifier import Classifier, ClassifierRecord, RecordedBackbone, SourceRecord, TrainingSettings
from llmembed.classifier.files import check_destination
from llmembed.datasets import SPLITS, Dataset
from llmembed.datasets.labels import index_labels, name_some
from llmembed.errors import DatasetError
from llmembed.evaluation import Report, evaluate
from llmembed.features.left_out import without_quarantined
from llmembed.features.sources import Source, find_rows, open_sources, verified
from llmembed.fitting import Subset, fit_classifier, layout_of, make_estimator
from llmembed.folds import find_repeats
from llmembed.parallel import count_threads
from llmembed.prediction import classify_rows
from llmembed.requests import TrainingSpec
from llmembed.storage import Location

VERSIONS = ("llmembed", "torch", "scikit-learn", "lightgbm", "numpy")


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes:
        report: the judgement on the test split.
        settings: everything that, with the embeddings, determines the report.
        rows: rows of the training split, and of the validation split if there is one.
        validation_rows: rows that the head chose or calibrated by.
        classes: number of classes.
        features: width of the fused features.
        fit_info: what the head chose by itself.
        threads: processor threads; with another number `mlp` gives slightly other numbers.
        in_memory: whether the features were; from disk, `mlp` sees the rows in another order.
        read_seconds: finding, checking, scaling and fusing the training rows.
        fit_seconds: fitting the head.
        test_seconds: reading and classifying the test rows.
        out: folder of the classifier.
    """

    report: Report
    settings: TrainingSettings
    rows: int
    validation_rows: int
    classes: int
    features: int
    fit_info: dict[str, Any]
    threads: int
    in_memory: bool
    read_seconds: float
    fit_seconds: float
    test_seconds: float
    versions: dict[str, str]
    out: str

    def to_json(self) -> dict[str, Any]:
        """Return one flat object of JSON values."""
        report = asdict(self.report)
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("report", "settings")}
        return {**self.settings.model_dump(mode="json"), **own, "test_rows": report.pop("rows"), **report}


def train(
    dataset: Dataset,
    *,
    root: Location = "cache",
    backbones: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    fusion: Fusion = "concat",
    head: str = "mlp",
    head_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Training:
    """Fit a head on a data set's embeddings, judge it on the test split and save the classifier.

    `backbones` name one cache each, by default the one extracted last; `layers` are read of each of them, by default
    all. `head_options` are parameters of the head, such as `{"hidden": (512, 256)}` or weights by label,
    `{"class_weight": {"spam": 5.0}}`. The same seed on the same machine with as many threads gives the same
    metrics.json. Without `out` the classifier goes to a folder under models/ whose name tells the settings, so that a
    training never replaces another one's. `on_warning` is told which rows are left out because their texts have no
    embeddings.

    Raises:
        CacheError: no cache, rows missing from it, or a damaged shard, with the extraction that makes it again.
        UsageError: layers that a cache does not hold, parameters that the head does not have, or a fusion that it
            cannot learn.
        ClassifierError: `out` holds something else.
    """
    sources = open_sources(root, dataset, backbones, layers)
    dataset = without_quarantined(dataset, sources, on_warning)
    spec = TrainingSpec(fusion=fusion, head=head, head_options=dict(head_options or {}), seed=seed)
    return train_on(dataset, sources, spec, out=None if out is None else Path(out))


def train_on(dataset: Dataset, sources: Sequence[Source], spec: TrainingSpec, *, out: Path | None = None) -> Training:
    """Do what `train` does, with caches that are open."""
    clock = [time.perf_counter()]
    sources = [source.fused(spec.fusion) for source in sources]
    labels = sorted(set(dataset.labels("train")))
    make_estimator(spec, layout_of(sources), labels)
    settings = _settings(dataset, sources, spec)
    out = out or Path("models") / _name(settings)
    check_destination(out)
    texts = dataset.texts()
    y, names = index_labels(dataset.table["label"], labels)
    whole = Subset(find_rows(sources, texts), y, find_repeats(texts))
    fit, validation, test = (whole.take(dataset.table["split"].to_numpy() == split) for split in SPLITS)
    _refuse_unknown(validation.y, names, dataset)
    with verified(sources, whole.rows):
        fitted = fit_classifier(
            spec,
            sources,
            fit,
            validation,
            labels=labels,
            memoize=True,
            on_read=lambda: clock.append(time.perf_counter()),
        )
        clock.append(time.perf_counter())
        classifier = Classifier(_record(sources, settings, labels), fitted.feature_map, fitted.head)
        probabilities = classify_rows(classifier, sources, test.rows)
    clock.append(time.perf_counter())
    read_seconds, fit_seconds, test_seconds = (round(end - begin, 3) for begin, end in pairwise(clock))
    training = Training(
        report=evaluate(test.y, probabilities, classifier.decide(probabilities), names),
        settings=settings,
        rows=len(fit.y) + len(validation.y),
        validation_rows=fitted.head.fit_info_["validation_rows"],
        classes=len(labels),
        features=fitted.feature_map.width,
        fit_info=fitted.head.fit_info_,
        threads=count_threads(),
        in_memory=fitted.in_memory,
        read_seconds=read_seconds,
        fit_seconds=fit_seconds,
        test_seconds=test_seconds,
        versions={package: version(package) for package in VERSIONS},
        out=str(out),
    )
    _save(classifier, training, out)
    return training


def _refuse_unknown(validation: np.ndarray, names: Sequence[str], dataset: Dataset) -> None:
    """Refuse a validation split that can judge nothing: none of its labels is one of the training split."""
    known = sorted(set(dataset.labels("train")))
    if len(validation) and validation.min() >= len(known):
        found = name_some(names[index] for index in np.unique(validation))
        raise DatasetError(
            f"{dataset.origin}: none of the {len(validation):,} validation rows has a label of the training rows: "
            f"{found} against {name_some(known)}."
        )


def describe_source(source: Source) -> SourceRecord:
    """Return what identifies the numbers of a source."""
    return SourceRecord(source.cache.backbone, source.cache.spec.fingerprint, source.layers)


def dataset_digest(dataset: Dataset) -> str:
    """Identify texts, labels and splits of a data set, in their order: 16 hex digits."""
    return sha256(json.dumps(dataset.table.rows(), ensure_ascii=False).encode()).hexdigest()[:16]


def _settings(dataset: Dataset, sources: Sequence[Source], spec: TrainingSpec) -> TrainingSettings:
    return TrainingSettings(
        dataset=dataset.name,
        dataset_digest=dataset_digest(dataset),
        backbones=tuple(map(describe_source, sources)),
        **spec.model_dump(),
    )


def _name(settings: TrainingSettings) -> str:
    digest = sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:6]
    backbones = "+".join(each.name for each in settings.backbones)
    return "-".join([settings.dataset, backbones, settings.fusion, settings.head, digest])


def _found_at(cache: Cache) -> str:
    last = cache.last_extraction()
    return cache.backbone if last is None else last.backbone


def _record(sources: Sequence[Source], settings: TrainingSettings, labels: Sequence[str]) -> ClassifierRecord:
    return ClassifierRecord(
        backbones=tuple(
            RecordedBackbone(
                name=source.cache.backbone,
                found_at=_found_at(source.cache),
                spec=source.cache.spec,
                layers=source.layers,
            )
            for source in sources
        ),
        fusion=settings.fusion,
        head=settings.head,
        labels=tuple(labels),
        training=settings,
    )


def _save(classifier: Classifier, training: Training, out: Path) -> None:
    classifier.save(
        out,
        {
            # Without times and paths, so that equal trainings give equal files.
            "metrics.json": {
                **training.settings.model_dump(mode="json"),
                "threads": training.threads,
                "in_memory": training.in_memory,
                **asdict(training.report),
            },
            "report.json": training.to_json(),
        },
    )
