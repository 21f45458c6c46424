"""The paper's table: its data sets and every fusion, beside baselines of the same run and published figures.

In: data sets and the caches that cover them. Out: a `Reproduction`, also as Markdown and JSON files. Every row is
trained once, with one seed, and none is left out. Loads no model.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from llmembed.choices import Fusion
from llmembed.classifier_files import check_destination
from llmembed.compare import FUSIONS
from llmembed.dataset import Dataset
from llmembed.errors import CacheError
from llmembed.evaluate import evaluate
from llmembed.features import Source, locate_rows, open_sources
from llmembed.files import replacing
from llmembed.fusion import LEARNED
from llmembed.heads import learns_fusions
from llmembed.labels import index_labels
from llmembed.left_out import without_quarantined
from llmembed.storage import Location
from llmembed.train import VERSIONS, describe_source, make_estimator, train_on


class PublicSet(NamedTuple):
    """A data set of the paper as it is published: its name and its rows."""

    title: str
    train: int
    test: int


# MR, R8 and R52 are split as TextGCN split them.
PAPER = {
    "sst2": PublicSet("SST-2", 67_349, 872),
    "mr": PublicSet("MR", 7_108, 3_554),
    "agnews": PublicSet("AG News", 120_000, 7_600),
    "r8": PublicSet("R8", 5_485, 2_189),
    "r52": PublicSet("R52", 6_532, 2_568),
}
CARP = 'Sun et al. 2023, "Text Classification via Large Language Models", Findings of EMNLP 2023, arXiv:2305.08377'
# Name, what it is, where the figures are from, and the accuracy in % in the order of PAPER.
PUBLISHED = (
    (
        "RoBERTa-large, fine-tuned (published)",
        "another setting: the whole model is fine-tuned",
        f"a baseline in {CARP}; quoted at second hand, not compared with the table there",
        (95.99, 91.16, 95.55, 97.76, 96.42),
    ),
    (
        "GPT-3, prompted with CARP (published)",
        "another setting: a large model, prompted with examples that a fine-tuned one finds",
        f"the abstract of {CARP}",
        (97.39, 92.39, 96.40, 98.78, 96.95),
    ),
)
FUSED: dict[Fusion, str] = {
    "mean": "mean of the layers",
    "max": "maximum of the layers",
    "concat": "layers side by side",
    "gram": "mean, and how alike the layers are",
    "weighted": "mean with learned weights",
    "cooccurrence": "the paper's: mean, and how alike the compressed layers are",
}
LAST = "last layer alone"
TFIDF = "TF-IDF (1,2-grams) + linear SVC"
Measure = Literal["accuracy", "macro_f1", "fit_seconds"]


@dataclass(frozen=True)
class Score:
    """How a row did on a test split: accuracy and macro-F1 in 0 ... 1; a published one has the accuracy alone."""

    accuracy: float
    macro_f1: float | None = None
    fit_seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table: its scores by data set; `source` says where published ones are from."""

    name: str
    kind: Literal["fusion", "baseline", "published"]
    what: str
    scores: dict[str, Score]
    source: str = ""


@dataclass(frozen=True)
class Column:
    """A data set of the table: its rows here, those that the public set has, and what was read of each backbone."""

    dataset: str
    title: str
    train: int
    test: int
    classes: int
    public: dict[str, int] | None
    backbones: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Reproduction:
    """The table and what it was made with; equal calls give an equal one but for the times.

    Attributes:
        columns: the data sets.
        rows: fusions, then baselines of the same run, then published figures.
        head, seed: what every fusion and the last layer alone were trained with.
        versions: versions of the packages.
        seconds: wall time.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    head: str
    seed: int
    versions: dict[str, str]
    seconds: float

    def above(self, baseline: str) -> dict[str, dict[str, float]]:
        """Give by how many points of accuracy each fusion is above a baseline: by fusion, then data set."""
        base = self._scores(baseline)
        return {
            row.name: {
                name: round(100 * (score.accuracy - base[name].accuracy), 4) for name, score in row.scores.items()
            }
            for row in self.rows
            if row.kind == "fusion"
        }

    def verdicts(self) -> list[str]:
        """Say for each fusion on how many data sets it beats the last layer alone, and TF-IDF."""
        titles, over_words = {column.dataset: column.title for column in self.columns}, self.above(TFIDF)
        return [
            f"{fusion} beats the last layer alone on {_wins(points)} of {len(points)} data sets "
            f"({', '.join(f'{titles[name]} {each:+.2f}' for name, each in points.items())} points), "
            f"and TF-IDF on {_wins(over_words[fusion])}."
            for fusion, points in self.above(LAST).items()
        ]

    def notes(self) -> list[str]:
        """Say what must be known to read the table."""
        return [
            *(note for column in self.columns for note in column.notes),
            "The test split chose nothing: every row of this table is printed, whichever is best.",
            "One seed. By the number of test rows alone, the standard error of the last layer's accuracy is "
            f"{self._standard_errors()} points: a difference below that says little.",
            "The published rows are large models, fine-tuned or prompted: another setting than a frozen backbone, on "
            "splits that were not compared with these.",
            "The paper's own system fuses the last five layers of Llama-2-7B with BERT-large and RoBERTa-large; here "
            f"the backbone is {self._backbones()}.",
            "The accuracy tables of the LLMEmbed paper could not be obtained: no row is the paper's own.",
        ]

    def table(self, measure: Measure) -> list[list[str]]:
        """Lay out one measure, shares in %: the headings, then every row that has it."""
        lines = [["", *(column.title for column in self.columns), "what it is"]]
        for row in self.rows:
            values: list[float | None] = [
                getattr(row.scores.get(column.dataset), measure, None) for column in self.columns
            ]
            if any(value is not None for value in values):
                lines.append([row.name, *(_cell(value, measure) for value in values), row.what])
        return lines

    def to_json(self) -> dict[str, Any]:
        """Give one object for `--json`."""
        return {
            **asdict(self),
            "above_last": self.above(LAST),
            "above_tfidf": self.above(TFIDF),
            "verdicts": self.verdicts(),
            "notes": self.notes(),
        }

    def to_markdown(self) -> str:
        """Give a page that explains itself."""
        return "\n".join(
            [
                f"# {len(self.columns)} of the {len(PAPER)} data sets of LLMEmbed (ACL 2024)",
                "",
                f"Test accuracy in %. The layers of a frozen backbone ({self._backbones()}) are fused, and the head "
                f"`{self.head}` is fitted to them (seed {self.seed}).",
                "",
                *_markdown_table(self.table("accuracy")),
                "",
                *(f"- {verdict}" for verdict in self.verdicts()),
                *("", "## How to read it", ""),
                *(f"- {note}" for note in self.notes()),
                *(f"- {row.name}: {row.source}." for row in self.rows if row.source),
                *("", "## Macro-F1 in %", "", *_markdown_table(self.table("macro_f1"))),
                *("", "## Seconds to fit (the head; with TF-IDF all)", "", *_markdown_table(self.table("fit_seconds"))),
                *("", "## What was read", "", *_markdown_table(self._readings())),
                *("", f"Versions: {', '.join(f'{name} {number}' for name, number in self.versions.items())}.", ""),
            ]
        )

    def _backbones(self) -> str:
        return " + ".join(f"{each['name']}, {_listed(each['layers'])}" for each in self.columns[0].backbones)

    def _scores(self, name: str) -> dict[str, Score]:
        return next(row.scores for row in self.rows if row.name == name)

    def _standard_errors(self) -> str:
        shares = [(column, self._scores(LAST)[column.dataset].accuracy) for column in self.columns]
        return ", ".join(f"{each.title} {100 * sqrt(share * (1 - share) / each.test):.2f}" for each, share in shares)

    def _readings(self) -> list[list[str]]:
        lines = [["", "training rows", "test rows", "classes", "backbone and layers"]]
        for column in self.columns:
            read = (f"{each['name']}-{each['fingerprint']}, {_listed(each['layers'])}" for each in column.backbones)
            counts = (f"{count:,}" for count in (column.train, column.test, column.classes))
            lines.append([column.title, *counts, " + ".join(read)])
        return lines


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
        CacheError: caches that are missing, incomplete or damaged, all of them with the commands that mend them; or
            caches of different backbones.
        UsageError: layers that a cache does not hold, or a fusion that the head cannot learn.
        ClassifierError: something else is where a classifier would be saved.
    """
    start = perf_counter()
    chosen = fusions or [fusion for fusion in FUSIONS if fusion not in LEARNED or learns_fusions(head)]
    trained: list[Fusion] = [*(each for each in dict.fromkeys(chosen) if each != "last"), "last"]
    datasets, opened = _open_all(datasets, root, backbones, layers)
    for dataset, fusion in product(datasets, trained):
        make_estimator(head, fusion, opened[dataset.name], seed=seed)
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
            training = train_on(dataset, opened[dataset.name], fusion=fusion, head=head, seed=seed, out=place)
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
            locate_rows(sources, without_quarantined(dataset, sources).texts(), dataset.words)
        except CacheError as error:
            faults.append(str(error))
    if faults:
        total = len(datasets) * len(named)
        raise CacheError(f"{len(faults)} of {total} caches cannot be used, and nothing was trained. {' '.join(faults)}")
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
    faults = []
    for dataset in others:
        for own, wanted in zip(opened[dataset.name], opened[first.name], strict=True):
            here, there = _identity(own), _identity(wanted)
            differing = ", ".join(
                f"{key} {here[key]} instead of {there[key]}" for key in here if here[key] != there[key]
            )
            if differing:
                faults.append(f"{own.cache.url} has {differing}. Run {wanted.cache.mend(dataset.words)} first.")
    if faults:
        raise CacheError(
            f"The data sets were not extracted alike; {opened[first.name][0].cache.url} is the measure. "
            + " ".join(faults)
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


def _wins(points: dict[str, float]) -> int:
    return sum(each > 0 for each in points.values())


def _cell(value: float | None, measure: Measure) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if measure == "fit_seconds" else f"{100 * value:.2f}"


def _listed(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {','.join(map(str, layers))}"


def _markdown_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Write headings and rows as Markdown; columns of figures to the right."""
    headings, *rows = lines
    rule = ["--:" if rows and rows[0][number][:1].isdigit() else "---" for number in range(len(headings))]
    return ["| " + " | ".join(line) + " |" for line in (headings, rule, *rows)]
