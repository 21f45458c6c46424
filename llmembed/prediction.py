"""Prediction: a classifier and texts -> a table of labels with probabilities.

The texts come from a file, from a list, or from a data set whose embeddings are in the cache; then no model is loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from llmembed.cache import Cache
from llmembed.classifier import BLOCK_ROWS, Classifier
from llmembed.datasets import Dataset, column_texts, refuse_empty
from llmembed.datasets.formulas import count_formulas
from llmembed.datasets.labels import index_labels, name_some
from llmembed.datasets.tables import check_columns_fit, check_format, read_table, write_table
from llmembed.errors import DatasetError, UsageError
from llmembed.evaluation import Report, evaluate
from llmembed.features.left_out import without_quarantined
from llmembed.features.sources import LocatedRows, Source, locate_rows, read_embeddings
from llmembed.storage import Location


class Classifies(Protocol):
    """What turns embeddings [rows, layers, dim] of each source into probabilities [rows, classes]."""

    def predict_proba(self, embeddings: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [rows, classes]."""
        ...


def classify_rows(classifier: Classifies, sources: Sequence[Source], rows: LocatedRows) -> np.ndarray:
    """Classify rows of the classifier's caches, a block at a time -> float32 [rows, classes]."""
    order = rows.on_disk()
    blocks = [order[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    given = [classifier.predict_proba(read_embeddings(sources, rows.take(block))) for block in blocks]
    probabilities: np.ndarray = np.concatenate(given)[np.argsort(order)]
    return probabilities


def predict_texts(
    classifier: Classifier, texts: Sequence[str], *, backbones: Sequence[str] = (), device: str | None = None
) -> np.ndarray:
    """Run the backbones over texts and classify them -> float32 [rows, classes].

    `backbones` says where to find them, in the order of the training, if not where they were then.

    Raises:
        ClassifierError: a backbone is not the model that the classifier was trained on.
        DatasetError: a text is empty.
    """
    if not texts:
        raise DatasetError("There are no texts in the input.")
    refuse_empty(pl.Series(texts, dtype=pl.String), "input", "leave them out")
    loaded = classifier.load_backbones(backbones, device=device)
    return np.concatenate(list(classifier.predict_texts(texts, loaded)))


def predict_dataset(classifier: Classifier, dataset: Dataset, *, root: Location, split: str = "test") -> np.ndarray:
    """Classify one split of a data set from the cache -> float32 [rows, classes].

    Raises:
        CacheError: there is no cache of one of the classifier's backbones, or it is damaged or lacks rows; those that
            were quarantined `leave_out_quarantined` leaves out.
        DatasetError: the data set has no such split.
    """
    if not dataset.texts(split):
        raise DatasetError(f"{dataset.origin} has no {split} split; name another `split`.")
    sources = _open_sources(classifier, dataset, root)
    return classify_rows(classifier, sources, locate_rows(sources, dataset.texts(split)))


def leave_out_quarantined(
    classifier: Classifier, dataset: Dataset, *, root: Location, on_warning: Callable[[str], None] = lambda _: None
) -> Dataset:
    """Return the data set without the texts that have no embeddings because `extract` quarantined them.

    Raises:
        CacheError: there is no cache of one of the classifier's backbones.
    """
    return without_quarantined(dataset, _open_sources(classifier, dataset, root), on_warning)


def evaluate_dataset(
    classifier: Classifier,
    dataset: Dataset,
    *,
    root: Location,
    split: str = "test",
    on_warning: Callable[[str], None] = lambda _: None,
) -> Report:
    """Judge a classifier on one split of a data set, whichever it was trained on, from the cache.

    `on_warning` is told which rows are left out because their texts have no embeddings.

    Raises:
        CacheError: as `predict_dataset`.
        DatasetError: the data set has no such split, or none of its labels is known to the classifier.
    """
    dataset = leave_out_quarantined(classifier, dataset, root=root, on_warning=on_warning)
    labels = dataset.labels(split)
    known = set(classifier.record.labels)
    if labels and not known & set(labels):
        raise DatasetError(
            f"{dataset.origin} has the labels {name_some(labels)}, the classifier knows {name_some(known)}. They share "
            "none; name a data set with the same labels."
        )
    probabilities = predict_dataset(classifier, dataset, root=root, split=split)
    truth, names = index_labels(labels, classifier.record.labels)
    return evaluate(truth, probabilities, classifier.decide(probabilities), names)


def _open_sources(classifier: Classifier, dataset: Dataset, root: Location) -> list[Source]:
    return [
        Source(Cache.at(root, dataset.name, each.name, each.spec, dataset.reading), each.layers)
        for each in classifier.record.backbones
    ]


def read_texts(path: Path, text_column: str = "text") -> tuple[pl.DataFrame, list[str]]:
    """Read a file of texts -> the whole table, and its texts [rows].

    Raises:
        DatasetError: unreadable, no such column, or empty texts.
    """
    table = read_table(path)
    texts = column_texts(table, text_column, str(path))
    refuse_empty(texts, str(path), "leave them out")
    return table, texts.to_list()


def read_lines(content: bytes) -> list[str]:
    """Split UTF-8 text at LF or CR LF and nowhere else -> texts [rows].

    Raises:
        DatasetError: not UTF-8.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"input is not UTF-8: byte {content[error.start]:#04x} in line {line:,}.") from error
    # The last line may end in a line end or not.
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


@dataclass(frozen=True)
class Prediction:
    """The label of a text, its probability, and the probability of every label, each in 0 ... 1."""

    label: str
    probability: float
    probabilities: dict[str, float]


def predict(
    classifier: Classifier, texts: Sequence[str], *, backbones: Sequence[str] = (), device: str | None = None
) -> list[Prediction]:
    """Label texts [rows], a `Prediction` each; arguments and errors as those of `predict_texts`."""
    return list(predictions(classifier, predict_texts(classifier, texts, backbones=backbones, device=device)))


def predictions(classifier: Classifier, probabilities: np.ndarray) -> Iterator[Prediction]:
    """Yield the prediction of each row of probabilities [rows, classes]."""
    labels = classifier.record.labels
    for row, predicted in zip(probabilities, classifier.decide(probabilities).tolist(), strict=True):
        by_label = {label: round(float(value), 6) for label, value in zip(labels, row, strict=True)}
        yield Prediction(labels[predicted], by_label[labels[predicted]], by_label)


def write_predictions(
    table: pl.DataFrame,
    decided: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    path: Path,
    *,
    escape_formulas: bool = False,
) -> int:
    """Write a table with predicted, its probability and p_<label> as more columns, as CSV, JSONL or Parquet by suffix.

    `decided` [rows] are the classes that were decided on, int64. What was there is replaced when all of it is written.
    `escape_formulas` puts an apostrophe before the cells of a CSV file that a spreadsheet would take for formulas.

    Returns:
        the number of such cells that stand in the file.

    Raises:
        UsageError: another suffix, the table has columns of these names already, or the place cannot be written to.
    """
    check_format(path)
    check_columns(table, labels, path)
    # As a fixed-width array of NumPy the labels would lose a NUL at their end, and one of 30 kB would cost gigabytes.
    predicted = pl.Series("predicted", labels, dtype=pl.String).gather(decided)
    by_label = pl.DataFrame({f"p_{label}": probabilities[:, column] for column, label in enumerate(labels)})
    added = pl.DataFrame([predicted, pl.Series("probability", probabilities[np.arange(len(decided)), decided])])
    whole = pl.concat([table, added, by_label], how="horizontal")
    write_table(whole, path, escape=escape_formulas)
    return 0 if escape_formulas or path.suffix != ".csv" else count_formulas(whole)


def check_columns(table: pl.DataFrame, labels: Sequence[str], path: Path) -> None:
    """Refuse a table with columns that predictions would overwrite, or that `path` cannot hold, with a UsageError."""
    taken = {"predicted", "probability", *(f"p_{label}" for label in labels)} & set(table.columns)
    if taken:
        raise UsageError(f"The input has a column {min(taken)!r} already, which would be overwritten; rename it.")
    check_columns_fit(table, path)
