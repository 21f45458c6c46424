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
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.choices import Fusion
from llmembed.classifier import Classifier, ClassifierRecord, RecordedBackbone
from llmembed.classifier.files import check_destination
from llmembed.datasets import SPLITS, Dataset
from llmembed.datasets.labels import index_labels, index_options, name_some
from llmembed.errors import DatasetError, UsageError
from llmembed.evaluation import Report, evaluate
from llmembed.features.fusion import LEARNED
from llmembed.features.left_out import without_quarantined
from llmembed.features.scaling import Scaler
from llmembed.features.sources import (
    Features,
    LocatedRows,
    Source,
    find_rows,
    locate_rows,
    memoize_scalers,
    open_sources,
    verified,
)
from llmembed.folds import find_repeats
from llmembed.heads import HEADS, Head, learns_fusions, make_head
from llmembed.memory import total_memory
from llmembed.parallel import count_threads
from llmembed.prediction import classify_rows
from llmembed.storage import Location

# Features that fill no more of the machine's memory are read once; larger ones stay on disk and are read in blocks.
# A head may copy them, and other programs need some too.
RESIDENT_SHARE = 1 / 8
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
    settings: dict[str, Any]
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
        """Give one flat object for `--json`."""
        report = asdict(self.report)
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("report", "settings")}
        return {**self.settings, **own, "test_rows": report.pop("rows"), **report}


@dataclass(frozen=True)
class Part:
    """Some rows of a data set: where their embeddings lie, their class indices y and their groups, both int64 [rows].

    Rows of one group, such as those of equal texts, are held out together.
    """

    rows: LocatedRows
    y: np.ndarray
    groups: np.ndarray

    def take(self, chosen: np.ndarray) -> "Part":
        """Give the chosen rows, a bool or integer index."""
        return Part(self.rows.take(chosen), self.y[chosen], self.groups[chosen])


def train(
    dataset: Dataset,
    *,
    root: Location,
    backbones: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    fusion: Fusion = "concat",
    head: str = "mlp",
    head_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path | None = None,
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
        CacheError: no cache, rows missing from it, or a damaged shard, with the command that mends it.
        UsageError: layers that a cache does not hold, parameters that the head does not have, or a fusion that it
            cannot learn.
        ClassifierError: `out` holds something else.
    """
    sources = open_sources(root, dataset, backbones, layers)
    dataset = without_quarantined(dataset, sources, on_warning)
    return train_on(dataset, sources, fusion=fusion, head=head, head_options=head_options, seed=seed, out=out)


def train_on(
    dataset: Dataset,
    sources: Sequence[Source],
    *,
    fusion: Fusion,
    head: str,
    head_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> Training:
    """Do what `train` does, with caches that are open."""
    start = time.perf_counter()
    sources = [source.fused(fusion) for source in sources]
    labels = sorted(set(dataset.labels("train")))
    estimator = make_estimator(head, fusion, sources, seed=seed, **index_options(head_options or {}, labels))
    settings = _settings(dataset, sources, fusion, head, head_options, seed)
    out = out or Path("models") / _name(settings)
    check_destination(out)
    texts = dataset.texts()
    y, names = index_labels(dataset.table["label"], labels)
    whole = Part(find_rows(sources, texts, dataset.words), y, find_repeats(texts))
    fit, validation, test = (whole.take(dataset.table["split"].to_numpy() == split) for split in SPLITS)
    _refuse_unknown(validation.y, names, dataset)
    with verified(sources, whole.rows):
        scalers = memoize_scalers(sources, fit.rows)
        features, fit = read_features(sources, fit, scalers, fusion)
        held_out = None
        if len(validation.y):
            unseen, validation = read_features(sources, validation, scalers, fusion)
            held_out = unseen, validation.y
        read = time.perf_counter()
        estimator.fit(features, fit.y, validation=held_out, groups=fit.groups)
        fitted = time.perf_counter()
        classifier = Classifier(_record(sources, settings, labels), scalers, estimator)
        probabilities = classify_rows(classifier, sources, test.rows)
    training = Training(
        report=evaluate(test.y, probabilities, classifier.decide(probabilities), names),
        settings=settings,
        rows=len(fit.y) + len(validation.y),
        validation_rows=estimator.fit_info_["validation_rows"],
        classes=len(labels),
        features=features.shape[1],
        fit_info=estimator.fit_info_,
        threads=count_threads(),
        in_memory=isinstance(features, np.ndarray),
        read_seconds=round(read - start, 3),
        fit_seconds=round(fitted - read, 3),
        test_seconds=round(time.perf_counter() - fitted, 3),
        versions={package: version(package) for package in VERSIONS},
        out=str(out),
    )
    _save(classifier, training, out)
    return training


def make_estimator(head: str, fusion: Fusion, sources: Sequence[Source], *, seed: int, **options: Any) -> Head:
    """Make the head; a fusion that is learned becomes its first part.

    Raises:
        UsageError: the head has no such option, or cannot learn the fusion.
    """
    if fusion not in LEARNED:
        return make_head(head, seed=seed, **options)
    if not learns_fusions(head):
        learners = " or ".join(name for name in HEADS if learns_fusions(name))
        raise UsageError(
            f"--fusion {fusion} is learned inside --head {learners}, and --head {head} cannot do that. "
            "Without weights there are --fusion mean and --fusion gram."
        )
    layout = tuple((len(source.layers), source.cache.spec.dim) for source in sources)
    return make_head(head, seed=seed, fusion=fusion, layout=layout, **options)


def dataset_digest(dataset: Dataset) -> str:
    """Identify texts, labels and splits of a data set, in their order: 16 hex digits."""
    return sha256(json.dumps(dataset.table.rows(), ensure_ascii=False).encode()).hexdigest()[:16]


def _settings(
    dataset: Dataset,
    sources: Sequence[Source],
    fusion: Fusion,
    head: str,
    head_options: Mapping[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset_digest(dataset),
        "backbones": [describe_source(source) for source in sources],
        "fusion": fusion,
        "head": head,
        "head_options": dict(head_options or {}),
        "seed": seed,
    }


def describe_source(source: Source) -> dict[str, Any]:
    """Give what identifies the numbers of a source, as JSON values."""
    spec = source.cache.spec
    return {"name": source.cache.backbone, "fingerprint": spec.fingerprint, "layers": list(source.layers)}


def _name(settings: dict[str, Any]) -> str:
    digest = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    backbones = "+".join(each["name"] for each in settings["backbones"])
    return "-".join([settings["dataset"], backbones, settings["fusion"], settings["head"], digest])


def training_part(dataset: Dataset, sources: Sequence[Source], groups: np.ndarray | None = None) -> Part:
    """Give the rows of the training split; its groups, if none are given, are those of equal texts.

    Raises:
        CacheError: rows missing from a cache, or a damaged shard, with the command that mends it.
    """
    texts = dataset.texts("train")
    groups = find_repeats(texts) if groups is None else groups
    labels = dataset.labels("train")
    y, _ = index_labels(labels, sorted(set(labels)))
    return Part(locate_rows(sources, texts, dataset.words), y, groups)


def read_features(
    sources: Sequence[Source], part: Part, scalers: Sequence[Scaler], fusion: Fusion, *, processes: int = 1
) -> tuple[Features | np.ndarray, Part]:
    """Give the features [rows, features] of a part, and the part in their order.

    What fits into an eighth of the machine's memory, or the part of that for one of several `processes`, is read now,
    as it stands; what is larger whenever the head asks for it, in the order in which the rows lie on disk.
    """
    features = Features(sources, part.rows, scalers, fusion)
    if 4 * features.shape[0] * features.shape[1] <= RESIDENT_SHARE * total_memory() / processes:
        return features[:], part
    order = part.rows.on_disk()
    return features.select_rows(order), part.take(order)


def _refuse_unknown(validation: np.ndarray, names: Sequence[str], dataset: Dataset) -> None:
    """Refuse a validation split that can judge nothing: none of its labels is one of the training split."""
    known = sorted(set(dataset.labels("train")))
    if len(validation) and validation.min() >= len(known):
        found = name_some(names[index] for index in np.unique(validation))
        raise DatasetError(
            f"{dataset.origin}: none of the {len(validation):,} validation rows has a label of the training rows: "
            f"{found} against {name_some(known)}."
        )


def _record(sources: Sequence[Source], settings: dict[str, Any], labels: Sequence[str]) -> ClassifierRecord:
    return ClassifierRecord(
        backbones=tuple(
            RecordedBackbone(
                name=source.cache.backbone,
                found_at=source.cache.last_extraction().get("backbone", source.cache.backbone),
                spec=source.cache.spec,
                layers=source.layers,
            )
            for source in sources
        ),
        fusion=settings["fusion"],
        head=settings["head"],
        labels=tuple(labels),
        training=settings,
    )


def _save(classifier: Classifier, training: Training, out: Path) -> None:
    classifier.save(
        out,
        {
            # Without times and paths, so that equal trainings give equal files.
            "metrics.json": {
                **training.settings,
                "threads": training.threads,
                "in_memory": training.in_memory,
                **asdict(training.report),
            },
            "report.json": training.to_json(),
        },
    )
