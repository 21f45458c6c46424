"""Cells of a table that a spreadsheet would take for formulas and run. Knows no file and no label."""

import polars as pl

# What spreadsheets begin a formula with (OWASP, "CSV Injection").
OPENING = r"^[=+\-@\t\r]"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def count_formulas(table: pl.DataFrame) -> int:
    """Count the cells, column names included, that begin as a formula does; numbers are none."""
    cells = _texts(table)
    return sum(int(_is_formula(column).sum()) for column in [pl.Series(table.columns, dtype=pl.String), *cells])


def escape_formulas(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with an apostrophe before each of these cells, which a spreadsheet shows as text."""
    escaped = table.with_columns(_escape(column) for column in _texts(table))
    return escaped.rename(dict(zip(table.columns, _escape(pl.Series(table.columns, dtype=pl.String)), strict=True)))


def _texts(table: pl.DataFrame) -> list[pl.Series]:
    columns = [column for column in table if column.dtype in (pl.String, pl.Categorical, pl.Enum)]
    return [column.cast(pl.String) for column in columns]


def _is_formula(cells: pl.Series) -> pl.Series:
    return (cells.str.contains(OPENING) & ~cells.str.contains(NUMBER)).fill_null(False)


def _escape(cells: pl.Series) -> pl.Series:
    return cells.zip_with(~_is_formula(cells), "'" + cells)
