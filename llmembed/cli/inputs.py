"""What a command line names -> a data set, with its warnings told, or texts. Knows no model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmembed.choices import OnEmpty
from llmembed.cli.remedies import print_warning
from llmembed.errors import UsageError
from llmembed.printable import print_note

if TYPE_CHECKING:
    from llmembed.datasets import Dataset


def load_or_latest(
    cache: Path,
    backbones: Sequence[str],
    dataset: str | None,
    text_column: str,
    label_column: str,
    on_empty: OnEmpty,
    limit: int | None,
) -> "Dataset":
    """Load the data set that is named, or else the one last extracted, and say which."""
    from llmembed.cache import Cache

    reading: dict[str, Any] = {
        "argument": dataset,
        "text_column": text_column,
        "label_column": label_column,
        "on_empty": on_empty,
        "limit": limit,
    }
    if dataset is None:
        given = {"--text-column": text_column != "text", "--label-column": label_column != "label"}
        given |= {"--on-empty": on_empty != "error", "--limit": limit is not None}
        if any(given.values()):
            options = ", ".join(option for option, is_given in given.items() if is_given)
            raise UsageError(f"{options} without a data set: name the data set that it is for.")
        latest = Cache.latest(cache, backbone=backbones[0] if backbones else None)
        reading = latest.request().reading.model_dump()
        print_note(f"no data set named: taking the one last extracted, {reading['argument']} ({latest.url})")
    return load(**reading)


def load(argument: str, **reading: Any) -> "Dataset":
    """Load a data set and say what must be known of it."""
    from llmembed.datasets import load_dataset

    loaded = load_dataset(argument, **reading)
    for warning in loaded.warnings:
        print_warning(f"{loaded.name}: {warning}")
    return loaded


def read_input(source: str | None, text: str | None, text_column: str) -> tuple[Any, list[str]]:
    """Read the texts of a file, of stdin (`-`) or the one given -> a table, and its texts [rows]."""
    import polars as pl

    from llmembed.prediction import read_lines, read_texts

    if source is not None and source != "-":
        return read_texts(Path(source), text_column)
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        # Bytes of an argument that are not UTF-8 reach Python as lone surrogates.
        raise UsageError("--text is not UTF-8.") from error
    texts = [text] if text is not None else read_lines(_read_stdin())
    return pl.DataFrame({"text": texts}, schema={"text": pl.String}), texts


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise UsageError("stdin is closed: give it texts, a line each, or name a file.")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}.") from error
