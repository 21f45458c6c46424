"""Data sets: a name, a file or a folder -> one table with the columns text, label, split.

A name is looked up in `$LLMEMBED_DATA/NAME`, then on the public hub as its job file says; `pydocs` is made on this
machine. Everything that could mislead a classifier is refused here, at the door: missing columns, texts or labels,
bytes that are not UTF-8, one class. Knows no backbone and no cache.
"""

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

import polars as pl

from llmembed.choices import OnEmpty
from llmembed.datasets.jobs import Hub, Job, find_job, job_names, load_job, redefinition
from llmembed.datasets.splits import SPLITS, find_overlaps, limit_rows, with_test_split
from llmembed.datasets.tables import SUFFIXES, read_table, write_table
from llmembed.errors import DatasetError, UsageError
from llmembed.requests import Reading

__all__ = ["SPLITS", "SUFFIXES", "Dataset", "load_dataset", "read_table"]

# What a folder may be called: this leaves room for what others put behind it in names of 255 bytes.
NAME_BYTES = 100


@dataclass(frozen=True)
class Dataset:
    """Texts with labels.

    Attributes:
        name: names the folder in the cache.
        reading: what it was read by.
        origin: the folder, files or hub revision that the texts were read from.
        table: columns text, label, split (all strings), in the order of the source.
        skipped: number of rows left out because their text was empty.
        warnings: sentences for the user.
    """

    name: str
    reading: Reading
    origin: str
    job: Job
    table: pl.DataFrame
    skipped: int = 0
    warnings: tuple[str, ...] = field(default=())

    def texts(self, split: str | None = None) -> list[str]:
        """Return the texts [rows], of one split or of all."""
        return self._rows(split)["text"].to_list()

    def labels(self, split: str) -> list[str]:
        """Return the labels [rows] of one split."""
        return self._rows(split)["label"].to_list()

    def _rows(self, split: str | None) -> pl.DataFrame:
        return self.table if split is None else self.table.filter(pl.col("split") == split)


def load_dataset(
    argument: str | Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    on_empty: OnEmpty = "error",
    limit: int | None = None,
) -> Dataset:
    """Read a data set given as a name, a file or a folder.

    `limit` keeps the rows of at most so many distinct texts of each split, chosen by hash and so always the same ones.

    Raises:
        DatasetError: not found, not readable, or unfit to train on; the message says where and why.
    """
    argument = str(argument)
    reading = Reading(
        argument=argument, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit
    )
    path, job = Path(argument), Job()
    # Only a bare name can be a job: ./agnews is the folder here.
    bare = path.name == argument and path.suffix not in SUFFIXES and not argument.startswith("-")
    kind = _kind(path) if argument else "nothing"
    named = bare and argument and (find_job(argument) or (_local_copy(argument) and kind == "nothing"))
    if named:
        name, (table, job, origin) = argument, _read_named(argument, reading)
    elif kind == "folder":
        name, table, origin = path.resolve().name, _read_folder(path, reading), str(path)
    elif kind == "file":
        name, table, origin = path.stem, _read_file(path, reading), str(path)
    else:
        raise DatasetError(
            f"No data set {argument!r}: it is neither a file nor a folder here, nor a job "
            f"({', '.join(job_names())}). Name one of these or write jobs/{argument or 'NAME'}.toml."
        )
    rows = len(table)
    table = table.filter(~is_empty(table["text"]))
    skipped = rows - len(table)
    if "split" not in table.columns:
        table = with_test_split(table)
    if limit is not None:
        table = limit_rows(table, limit)
    _check_classes(table, origin)
    warnings = (*([] if not named else redefinition(argument)), *find_overlaps(table))
    return Dataset(folder_name(name), reading, origin, job, table, skipped, warnings)


def folder_name(name: str) -> str:
    """Return a name that a folder in the cache can bear: the same, unless it would lead elsewhere or could not be made.

    Names that differ stay different.
    """
    plain = "".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in name).lstrip(".")
    short = plain.encode()[:NAME_BYTES].decode(errors="ignore")
    if short == name != "":
        return name
    digest = sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{short}-{digest}".lstrip("-")


def column_texts(table: pl.DataFrame, column: str, where: str) -> pl.Series:
    """Return the column that holds the texts.

    Raises:
        DatasetError: no such column, or it does not hold strings.
    """
    if column not in table.columns:
        raise DatasetError(_missing_column(column, table, where, "text_column"))
    if table.schema[column] in (pl.Categorical, pl.Enum):
        return table[column].cast(pl.String)
    if table.schema[column] != pl.String:
        raise DatasetError(
            f"{where}: column {column!r} is {table.schema[column]}, expected strings; "
            "name the column of the texts in `text_column`."
        )
    return table[column]


def refuse_empty(texts: pl.Series, where: str, remedy: str) -> None:
    """Raise a DatasetError if a text is null or only white space; it counts them and names the first row."""
    empty = is_empty(texts)
    if empty.any():
        raise DatasetError(
            f"{where}: {empty.sum():,} of {len(texts):,} texts are null or empty "
            f"(the first is row {(empty.arg_max() or 0) + 1:,}); fix them or {remedy}."
        )


def is_empty(texts: pl.Series) -> pl.Series:
    """Mark the texts that are null or only white space, bool [rows]."""
    return texts.is_null() | (texts.str.strip_chars() == "").fill_null(True)


def _read_named(name: str, reading: Reading) -> tuple[pl.DataFrame, Job, str]:
    job_file = find_job(name)
    job = load_job(job_file) if job_file else Job()
    copy = _local_copy(name)
    if copy is not None:
        return _read_folder(copy, reading), job, str(copy)
    if job.builtin:
        return _read_builtin(), job, "built-in"
    return _read_hub(name, job, reading), job, f"hf://datasets/{job.hub.repo}@{job.hub.revision}" if job.hub else ""


def _local_copy(name: str) -> Path | None:
    folder = Path(os.environ.get("LLMEMBED_DATA", "")) / name
    return folder if os.environ.get("LLMEMBED_DATA") and _kind(folder) == "folder" else None


def is_file(argument: str) -> bool:
    """Return whether there is a file of that name."""
    return _kind(Path(argument)) == "file"


def _kind(path: Path) -> Literal["file", "folder", "nothing"]:
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else "nothing"
    except (OSError, ValueError):
        # A name that is too long, or one with a NUL.
        return "nothing"


def _read_builtin() -> pl.DataFrame:
    from llmembed.datasets.pydocs import build_pydocs, pydocs_version

    # Set but empty means unset (XDG base directory specification).
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmembed"
    path = folder / f"pydocs-{pydocs_version()}.parquet"
    try:
        return read_table(path)
    except DatasetError:
        # Not there, or damaged: it is made again.
        table = build_pydocs()
    try:
        write_table(table, path)
    except UsageError as error:
        raise DatasetError(f"{error} Name a folder for it with XDG_CACHE_HOME.") from error
    return table


def _read_hub(name: str, job: Job, reading: Reading) -> pl.DataFrame:
    unset = "" if os.environ.get("LLMEMBED_DATA") else " (LLMEMBED_DATA is not set)"
    here = (
        f"put it into $LLMEMBED_DATA/{name}/{unset} as train.parquet and test.parquet with the columns text and label"
    )
    if job.hub is None:
        raise DatasetError(f"{name} is not on this machine and jobs/{name}.toml names no public copy: {here}.")
    parts = []
    for split, file in (("train", job.hub.train), ("test", job.hub.test)):
        address = f"hf://datasets/{job.hub.repo}@{job.hub.revision}/{file}"
        try:
            table = pl.read_parquet(address)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DatasetError(
                f"{name} is not on this machine and {address} could not be read: {here}, or connect to the hub."
            ) from error
        columns = reading.model_copy(update={"text_column": job.hub.text_column, "label_column": job.hub.label_column})
        parts.append(_with_split(_named_labels(table, job.hub, address), columns, address, split))
    return pl.concat(parts)


def _named_labels(table: pl.DataFrame, hub: Hub, where: str) -> pl.DataFrame:
    column = hub.label_column
    if not hub.label_names or column not in table.columns or not table.schema[column].is_integer():
        return table
    outside = sorted(set(table[column].drop_nulls().unique()) - set(range(len(hub.label_names))))
    if outside:
        raise DatasetError(f"{where}: label ids {outside} have no name among {', '.join(hub.label_names)}.")
    names = dict(enumerate(hub.label_names))
    return table.with_columns(pl.col(column).replace_strict(names, return_dtype=pl.String))


def _read_folder(folder: Path, reading: Reading) -> pl.DataFrame:
    parts = []
    for split in SPLITS:
        files = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
        if len(files) > 1:
            raise DatasetError(f"{folder} has both {files[0].name} and {files[1].name}; keep one of them.")
        parts += [_with_split(read_table(file, reading.columns), reading, str(file), split) for file in files]
    present = {part["split"][0] for part in parts}
    if not {"train", "test"} <= present:
        lacking = " and ".join(sorted({"train", "test"} - present))
        raise DatasetError(f"{folder} has no {lacking} file; expected {lacking} with one of {', '.join(SUFFIXES)}.")
    return pl.concat(parts)


def _read_file(path: Path, reading: Reading) -> pl.DataFrame:
    table = read_table(path, [*reading.columns, "split"])
    if "split" not in table.columns:
        return _standardised(table, reading, str(path))
    if table.schema["split"] not in (pl.String, pl.Categorical, pl.Enum):
        raise DatasetError(f"{path}: column 'split' is {table.schema['split']}; expected {', '.join(SPLITS)}.")
    table = table.with_columns(pl.col("split").cast(pl.String))
    unknown = set(table["split"].unique().to_list()) - set(SPLITS)
    if unknown:
        raise DatasetError(f"{path}: column 'split' holds {sorted(map(str, unknown))}; expected {', '.join(SPLITS)}.")
    if not {"train", "test"} <= set(table["split"].unique()):
        raise DatasetError(
            f"{path}: column 'split' needs rows of both train and test; drop the column to have one made."
        )
    return _standardised(table, reading, str(path)).with_columns(table["split"])


def _with_split(table: pl.DataFrame, reading: Reading, where: str, split: str) -> pl.DataFrame:
    return _standardised(table, reading, where).with_columns(pl.lit(split).alias("split"))


def _standardised(table: pl.DataFrame, reading: Reading, where: str) -> pl.DataFrame:
    texts = column_texts(table, reading.text_column, where)
    if reading.on_empty == "error":
        refuse_empty(texts, where, "leave them out with `on_empty='skip'`")
    label_column = reading.label_column
    if label_column not in table.columns:
        raise DatasetError(_missing_column(label_column, table, where, "label_column"))
    labels = table[label_column]
    if labels.dtype in (pl.Categorical, pl.Enum):
        labels = labels.cast(pl.String)
    if not (labels.dtype == pl.String or labels.dtype.is_integer()):
        raise DatasetError(f"{where}: column {label_column!r} is {labels.dtype}, expected strings or integers.")
    unlabelled = is_empty(labels.cast(pl.String)) & ~is_empty(texts)
    if unlabelled.any():
        raise DatasetError(
            f"{where}: {unlabelled.sum():,} of {len(labels):,} rows have no label (the first is row "
            f"{(unlabelled.arg_max() or 0) + 1:,}); label them or leave them out."
        )
    return pl.DataFrame({"text": texts, "label": labels.cast(pl.String)})


def _missing_column(column: str, table: pl.DataFrame, where: str, argument: str) -> str:
    return f"{where} has no column {column!r}; it has {', '.join(table.columns)}. Name the right one in `{argument}`."


def _check_classes(table: pl.DataFrame, origin: str) -> None:
    for split in ("train", "test"):
        if table.filter(pl.col("split") == split).is_empty():
            raise DatasetError(f"{origin}: no rows are left in the {split} split; give it rows of its own.")
    classes = table.filter(pl.col("split") == "train")["label"].unique()
    if len(classes) < 2:
        raise DatasetError(
            f"{origin}: all training rows have the one label {classes[0]!r}; a classifier needs two or more."
        )
