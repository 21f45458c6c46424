"""The paper's table: its data sets and every fusion, beside baselines of the same run and published figures.

In: data sets and the caches that cover them. Out: a `Reproduction`, also as Markdown and JSON files. Every row is
trained once, with one seed, and none is left out. Loads no model.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from llmembed.choices import Fusion
from llmembed.classifier.files import check_destination
from llmembed.datasets import Dataset
from llmembed.datasets.labels import index_labels
from llmembed.errors import CacheError
from llmembed.evaluation import evaluate
from llmembed.experiments.comparison import FUSIONS
from llmembed.experiments.paper import PAPER, PUBLISHED, PublicSet
from llmembed.experiments.paper_table import LAST, TFIDF, Column, Reproduction, Row, Score
from llmembed.features.fusion import LEARNED
from llmembed.features.left_out import without_quarantined
from llmembed.features.sources import Source, locate_rows, open_sources
from llmembed.files import replacing
from llmembed.fitting import layout_of, make_estimator
from llmembed.heads import learns_fusions
from llmembed.requests import TrainingSpec
from llmembed.storage import Location
from llmembed.training import VERSIONS, describe_source, train_on

FUSED: dict[Fusion, str] = {
    "mean": "mean of the layers",
    "max": "maximum of the layers",
    "concat": "layers side by side",
    "gram": "mean, and how alike the layers are",
    "weighted": "mean with learned weights",
    "cooccurrence": "the paper's: mean, and how alike the compressed layers are",
}


def reproduce(
    datasets: Sequence[Dataset],
    *,
    root: Location,
    out: Path = Path("reproduction"),
    backbones: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    fusions: Sequence[Fusion] = (),
    head: str = "mlp",
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reproduction:
    """Train every fusion, and the baselines, on every data set; write reproduction.md and .json beside the classifiers.

    `backbones` name one cache each, by default the one extracted last; `layers` are read of each of them, by default
    all. Without `fusions` all are taken that the head can learn; the last layer alone is always a baseline.

    Raises:
        CacheError: caches that are missing, incomplete or damaged, with the extractions that make them
            again; or caches of different backbones.
        UsageError: layers that a cache does not hold, or a fusion that the head cannot learn.
        ClassifierError: something else is where a classifier would be saved.
    """
    start = perf_counter()
    chosen = fusions or [fusion for fusion in FUSIONS if fusion not in LEARNED or learns_fusions(head)]
    trained: list[Fusion] = [*(each for each in dict.fromkeys(chosen) if each != "last"), "last"]
    spec_of = {fusion: TrainingSpec(fusion=fusion, head=head, seed=seed) for fusion in trained}
    datasets, opened = _open_all(datasets, root, backbones, layers)
    for dataset, fusion in product(datasets, trained):
        make_estimator(spec_of[fusion], layout_of(opened[dataset.name]), ())
        check_destination(out / dataset.name / fusion)
    rows = [Row(fusion, "fusion", FUSED[fusion], {}) for fusion in trained[:-1]]
    rows += [
        Row(LAST, "baseline", "baseline: the same backbone and head", {}),
        Row(TFIDF, "baseline", "baseline: no language model", {}),
    ]
    fusion_of = dict(zip([row.name for row in rows], trained, strict=False))
    for done, (dataset, row) in enumerate(product(datasets, rows), start=1):
        if row.name in fusion_of:
            fusion = fusion_of[row.name]
            place = out / dataset.name / fusion
            training = train_on(dataset, opened[dataset.name], spec_of[fusion], out=place)
            report = training.report
            row.scores[dataset.name] = Score(report.accuracy, report.macro_f1, training.fit_seconds)
        else:
            row.scores[dataset.name] = _score_words(dataset, seed)
        on_progress(done, len(datasets) * len(rows))
    reproduction = Reproduction(
        columns=tuple(_column(dataset, opened[dataset.name]) for dataset in datasets),
        rows=(*rows, *_published_rows(datasets)),
        head=head,
        seed=seed,
        versions={package: version(package) for package in VERSIONS},
        seconds=round(perf_counter() - start, 3),
    )
    content = json.dumps(reproduction.to_json(), ensure_ascii=False, indent=1)
    for name, text in (("reproduction.json", content + "\n"), ("reproduction.md", reproduction.to_markdown())):
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return reproduction


def _open_all(
    datasets: Sequence[Dataset], root: Location, backbones: Sequence[str], layers: Sequence[int] | None
) -> tuple[list[Dataset], dict[str, tuple[Source, ...]]]:
    """Open the caches -> the data sets, without the rows that were quarantined, and their sources by name."""
    faults = []
    named: Sequence[str | None] = backbones or [None]
    for dataset, backbone in product(datasets, named):
        try:
            sources = open_sources(root, dataset, [backbone] if backbone else [], layers)
            locate_rows(sources, without_quarantined(dataset, sources).texts())
        except CacheError as error:
            faults.append(error)
    if faults:
        total = len(datasets) * len(named)
        raise CacheError(
            f"{len(faults)} of {total} caches cannot be used, and nothing was trained. {' '.join(map(str, faults))}",
            missing=len(faults),
            total=total,
            extractions=[each for fault in faults for each in fault.extractions],
        )
    opened = {dataset.name: open_sources(root, dataset, backbones, layers) for dataset in datasets}
    _refuse_mixed(datasets, opened)
    return [_covered(dataset, opened[dataset.name]) for dataset in datasets], opened


def _covered(dataset: Dataset, sources: Sequence[Source]) -> Dataset:
    """Return the data set without the rows that were quarantined, with a warning that says so."""
    warnings = list(dataset.warnings)
    covered = without_quarantined(dataset, sources, warnings.append)
    return replace(covered, warnings=tuple(warnings))


def _refuse_mixed(datasets: Sequence[Dataset], opened: dict[str, tuple[Source, ...]]) -> None:
    """Refuse caches that differ between data sets in more than the length limit: a row is one system."""
    first, *others = datasets
    faults, again = [], []
    for dataset in others:
        for own, wanted in zip(opened[dataset.name], opened[first.name], strict=True):
            here, there = _identity(own), _identity(wanted)
            differing = ", ".join(
                f"{key} {here[key]} instead of {there[key]}" for key in here if here[key] != there[key]
            )
            if differing:
                faults.append(f"{own.cache.url} has {differing}.")
                again.append(wanted.cache.request(dataset.reading))
    if faults:
        raise CacheError(
            f"The data sets were not extracted alike; {opened[first.name][0].cache.url} is the measure. "
            + " ".join(faults),
            extractions=again,
        )


def _identity(source: Source) -> dict[str, Any]:
    return source.cache.spec.model_dump(exclude={"max_length"}) | {"layers": source.layers}


def _score_words(dataset: Dataset, seed: int) -> Score:
    """Score the plain baseline: words and pairs of words, weighted by TF-IDF with logarithmic counts."""
    start = perf_counter()
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(C=1.0, random_state=seed)
    )
    labels = sorted(set(dataset.labels("train")))
    classifier.fit(dataset.texts("train"), index_labels(dataset.labels("train"), labels)[0])
    seconds = perf_counter() - start
    predicted = classifier.predict(dataset.texts("test"))
    truth, names = index_labels(dataset.labels("test"), labels)
    report = evaluate(truth, np.eye(len(labels), dtype=np.float32)[predicted], predicted, names)
    return Score(report.accuracy, report.macro_f1, round(seconds, 3))


def _published_rows(datasets: Sequence[Dataset]) -> list[Row]:
    rows = []
    for name, what, source, shares in PUBLISHED:
        known = dict(zip(PAPER, shares, strict=True))
        scores = {each.name: Score(round(known[each.name] / 100, 4)) for each in datasets if each.name in known}
        rows.append(Row(name, "published", what, scores, source))
    return rows


def _column(dataset: Dataset, sources: Sequence[Source]) -> Column:
    train, test = (len(dataset.labels(split)) for split in ("train", "test"))
    public = PAPER.get(dataset.name, PublicSet(dataset.name, train, test))
    title, notes = public.title, list(dataset.warnings)
    if (train, test) != (public.train, public.test):
        kind = "subset" if train <= public.train and test <= public.test else "other split"
        notes.insert(
            0,
            f"is a {kind} here, with {train:,} training rows (public: {public.train:,}) and {test:,} test rows "
            f"(public: {public.test:,}): its column is not a result on {public.title}.",
        )
        title = f"{title} ({kind})"
    if dataset.name == "sst2":
        notes.append("the test rows are the validation split of GLUE, as the labels of its test split are not public.")
    return Column(
        dataset=dataset.name,
        title=title,
        train=train,
        test=test,
        classes=len(set(dataset.labels("train"))),
        public=None if dataset.name not in PAPER else {"train": public.train, "test": public.test},
        backbones=tuple(describe_source(source) for source in sources),
        notes=tuple(f"{public.title}: {note}" for note in notes),
    )
