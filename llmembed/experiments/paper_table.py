"""A reproduction as a result: the scores of every row on every data set, and the table and the page made of them.

In: scores, and what they were made with. Out: verdicts, lines of a table, JSON and Markdown. Trains nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Literal

from llmembed.classifier import SourceRecord
from llmembed.experiments.paper import PAPER

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
    backbones: tuple[SourceRecord, ...]
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
        """Return by how many points of accuracy each fusion is above a baseline: by fusion, then data set."""
        base = self._scores(baseline)
        return {
            row.name: {
                name: round(100 * (score.accuracy - base[name].accuracy), 4) for name, score in row.scores.items()
            }
            for row in self.rows
            if row.kind == "fusion"
        }

    def verdicts(self) -> list[str]:
        """Return for each fusion on how many data sets it beats the last layer alone, and TF-IDF."""
        titles, over_words = {column.dataset: column.title for column in self.columns}, self.above(TFIDF)
        return [
            f"{fusion} beats the last layer alone on {_wins(points)} of {len(points)} data sets "
            f"({', '.join(f'{titles[name]} {each:+.2f}' for name, each in points.items())} points), "
            f"and TF-IDF on {_wins(over_words[fusion])}."
            for fusion, points in self.above(LAST).items()
        ]

    def notes(self) -> list[str]:
        """Return what must be known to read the table."""
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
        """Return one object of JSON values."""
        return {
            **asdict(self),
            "above_last": self.above(LAST),
            "above_tfidf": self.above(TFIDF),
            "verdicts": self.verdicts(),
            "notes": self.notes(),
        }

    def to_markdown(self) -> str:
        """Return a page that explains itself."""
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
        return " + ".join(f"{each.name}, {_listed(each.layers)}" for each in self.columns[0].backbones)

    def _scores(self, name: str) -> dict[str, Score]:
        return next(row.scores for row in self.rows if row.name == name)

    def _standard_errors(self) -> str:
        shares = [(column, self._scores(LAST)[column.dataset].accuracy) for column in self.columns]
        return ", ".join(f"{each.title} {100 * sqrt(share * (1 - share) / each.test):.2f}" for each, share in shares)

    def _readings(self) -> list[list[str]]:
        lines = [["", "training rows", "test rows", "classes", "backbone and layers"]]
        for column in self.columns:
            read = (f"{each.name}-{each.fingerprint}, {_listed(each.layers)}" for each in column.backbones)
            counts = (f"{count:,}" for count in (column.train, column.test, column.classes))
            lines.append([column.title, *counts, " + ".join(read)])
        return lines


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
