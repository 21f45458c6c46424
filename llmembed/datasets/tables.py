"""Tables in files: Parquet, CSV, TSV or JSONL -> a table, and a table -> CSV, JSONL or Parquet.

Bytes that are not UTF-8, torn files and values that are no table are refused with the file, and the line where there
is one. Knows no data set and no split.
"""

import csv
import json
import re
from bisect import bisect_left
from collections.abc import Collection
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from llmembed.datasets.formulas import escape_formulas
from llmembed.errors import DatasetError, UsageError
from llmembed.files import replacing

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
FORMATS = (".csv", ".jsonl", ".parquet")
# Deeper JSON is no table, and polars, which recurses into it, would end the process.
DEEPEST = 100
NO_COLUMN = (TypeError, OverflowError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
# The first line of a CSV file up to its end, which quoted line ends are not.
FIRST_LINE = re.compile(rb'(?:[^"\r\n]|"[^"]*")*(\r\n|\n|\r)')


def read_table(path: Path, needed: Collection[str] | None = None) -> pl.DataFrame:
    """Read one Parquet, CSV, TSV or JSONL file as it is; CSV and TSV columns are all strings.

    `needed` names the columns that decide: of a JSONL file, another one that holds no single type is left out, not
    refused. By default all of them decide.

    Raises:
        DatasetError: another suffix, unreadable, empty, or bytes that are not UTF-8 (with the line).
    """
    if path.suffix not in SUFFIXES:
        raise DatasetError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'!r}; use {', '.join(SUFFIXES)}."
        )
    try:
        if path.suffix == ".parquet":
            table = _read_parquet(path)
        elif path.suffix == ".jsonl":
            table = _read_jsonl(path, needed)
        else:
            table = _read_csv(path, "\t" if path.suffix == ".tsv" else ",")
    except DatasetError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        # For bytes that are no such file the readers have all kinds of errors (UnicodeDecodeError, KeyError, …).
        raise DatasetError(f"{path} cannot be read: {_reason(error)}.") from error
    if table.is_empty():
        raise DatasetError(f"{path} has no rows.")
    return table


def write_table(table: pl.DataFrame, path: Path, *, escape: bool = False) -> None:
    """Write a table as the suffix says; what was there is replaced when all of it is written.

    `escape` puts an apostrophe before the cells of a CSV file that a spreadsheet would take for formulas.

    Raises:
        UsageError: another suffix, or the place cannot be written to.
    """
    check_format(path)
    with replacing(path) as partial:
        try:
            if path.suffix == ".csv":
                (escape_formulas(table) if escape else table).write_csv(partial)
            elif path.suffix == ".jsonl":
                table.write_ndjson(partial)
            else:
                table.write_parquet(partial)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            # A full disk is one of these too, where polars does not hand the system's error on.
            raise OSError(_reason(error)) from error


def check_format(path: Path) -> None:
    """Refuse a suffix that a table cannot be written as, with a UsageError."""
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: predictions are written as {', '.join(FORMATS)}.")


def check_columns_fit(table: pl.DataFrame, path: Path) -> None:
    """Refuse a table with a column that the format of `path` cannot hold, with a UsageError that names the column."""
    for column, dtype in table.schema.items():
        if not _fits(dtype, path.suffix):
            ways = ".parquet" if path.suffix == ".jsonl" or not _fits(dtype, ".jsonl") else ".jsonl or .parquet"
            raise UsageError(
                f"{path}: {path.suffix} cannot hold the column {column!r}, which is {dtype}; write {ways}, or "
                "leave the column out of the input."
            )


def _fits(dtype: pl.DataType, suffix: str) -> bool:
    if suffix == ".parquet":
        return True
    if suffix == ".csv":
        return not dtype.is_nested() and dtype not in (pl.Binary, pl.Duration, pl.Object)
    if isinstance(dtype, pl.Struct):
        return all(_fits(field.dtype, suffix) for field in dtype.fields)  # type: ignore[arg-type]
    if isinstance(dtype, pl.List | pl.Array):
        return _fits(dtype.inner, suffix)  # type: ignore[arg-type]
    return dtype not in (pl.Binary, pl.Object)


def _read_parquet(path: Path) -> pl.DataFrame:
    # By pyarrow: with one changed byte polars asked for so much memory that the process ended (2 of 4,781 changes).
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    table.validate(full=True)
    # Between the libraries names end at a NUL; the columns of two labels "a" and "a\0" would become one.
    numbered = pl.DataFrame(pl.from_arrow(table.rename_columns([str(number) for number in range(table.num_columns)])))
    numbered.columns = table.column_names
    return numbered


def _read_csv(path: Path, separator: str) -> pl.DataFrame:
    content = _utf8(path)
    first = FIRST_LINE.match(content)
    line_end = "\r" if first and first[1] == b"\r" else "\n"
    if line_end == "\r" and b"\r\n" in content:
        raise DatasetError(f"{path}: the first line ends in CR, others in CR LF; give all of them the same line end.")
    # Inferred types would turn the text "007" into a number.
    table = pl.read_csv(content, separator=separator, eol_char=line_end, infer_schema=False)
    # polars leaves doubled quotes doubled in the names of columns alone.
    if first and any('""' in name for name in table.columns):
        names = next(csv.reader(StringIO(first[0].decode("utf-8-sig"), newline=""), delimiter=separator))
        table = table.rename(dict(zip(table.columns, names, strict=True)))
    return table


def _read_jsonl(path: Path, needed: Collection[str] | None) -> pl.DataFrame:
    rows, lines = [], []
    content = _utf8(path).decode("utf-8-sig")
    # splitlines would also break at U+2028 and its like, which JSON allows inside a string.
    for number, line in enumerate(content.split("\n" if "\n" in content else "\r"), start=1):
        if line.strip():
            rows.append(_json_object(line, f"{path} line {number:,}"))
            lines.append(number)
    for name in needed or ():
        values = [row.get(name) for row in rows]
        # polars would make "1" of 1 and 1 of true, and so one label of two.
        if (place := _mixed_place(values)) is not None:
            raise DatasetError(_odd_column(path, name, values, lines, place))
    try:
        return pl.DataFrame(rows, infer_schema_length=None, strict=True)
    except NO_COLUMN:
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        odd = {name: values for name, values in columns.items() if not _is_column(values)}
    for name, values in odd.items():
        if needed is None or name in needed or len(odd) == len(columns):
            raise DatasetError(_odd_column(path, name, values, lines, _odd_place(values)))
    kept = [{name: value for name, value in row.items() if name not in odd} for row in rows]
    return pl.DataFrame(kept, infer_schema_length=None, strict=True)


def _odd_column(path: Path, name: str, values: list[Any], lines: list[int], place: int) -> str:
    first = next(index for index, value in enumerate(values) if value is not None)
    types = [f"{_json_type(values[index])} in line {lines[index]:,}" for index in dict.fromkeys((first, place))]
    return f"{path}: column {name!r} holds values of several types: {' and '.join(types)}; give it one type."


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if line.count("[") + line.count("{") > DEEPEST and _depth(row) > DEEPEST:
            raise RecursionError
        # Half of a surrogate pair is valid JSON and no text.
        json.dumps(row, ensure_ascii=False).encode()
    except RecursionError as error:
        raise DatasetError(f"{where} is nested more than {DEEPEST} levels deep, which is no row of a table.") from error
    except ValueError as error:
        raise DatasetError(f"{where} is not JSON in UTF-8: {error}.") from error
    if not isinstance(row, dict):
        raise DatasetError(f"{where} is not a JSON object.")
    return row


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _mixed_place(values: list[Any]) -> int | None:
    kinds = [_json_type(value) for value in values]
    first = next((kind for kind in kinds if kind != "null"), "null")
    return next((place for place, kind in enumerate(kinds) if kind not in (first, "null")), None)


def _odd_place(values: list[Any]) -> int:
    return bisect_left(range(len(values)), True, key=lambda end: not _is_column(values[: end + 1]))


def _is_column(values: list[Any]) -> bool:
    try:
        pl.DataFrame([{"": value} for value in values], infer_schema_length=None, strict=True)
    except NO_COLUMN:
        return False
    return True


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {"text": str, "a whole number": int, "a number": float, "a list": list, "an object": dict}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "null")


def _utf8(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} in line {line:,}; convert it to UTF-8."
        ) from error
    if not content.strip():
        raise DatasetError(f"{path} is empty.")
    return content


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).removesuffix(".")
