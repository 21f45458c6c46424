"""Tables of predictions: whole files, labels as they are, and what a format cannot hold is refused at the entrance."""

import subprocess
import sys
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from refusals import refused

from llmembed.datasets.formulas import count_formulas, escape_formulas
from llmembed.datasets.tables import read_table
from llmembed.errors import UsageError
from llmembed.prediction import check_columns, write_predictions

WRITE = """
import sys, numpy as np, resource, signal
from pathlib import Path
from llmembed.prediction import write_predictions
from llmembed.datasets.tables import read_table
path = Path(sys.argv[1])
table = read_table(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
decided = np.zeros(len(table), np.int64)
write_predictions(table, decided, np.full((len(table), 2), 0.5, np.float32), ["x", "y"], path)
"""
# Of a process of its own, because a peak of memory never goes down again; in kB.
LARGE = """
import sys, numpy as np, polars as pl, resource
from pathlib import Path
from llmembed.prediction import write_predictions
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
probabilities, before = np.tile(np.array([[0.1, 0.9]], np.float32), (9000, 1)), peak()
table = pl.DataFrame({"text": [f"text {i}" for i in range(9000)]})
write_predictions(table, probabilities.argmax(axis=1), probabilities, ["x" * 30_000, "y"], Path(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_disk_that_is_full_leaves_the_input_whole(suffix, tmp_path):
    path = tmp_path / f"new{suffix}"
    table = pl.DataFrame({"text": [f"text {i} {i * 7919 % 10007}" for i in range(2000)]})
    {".csv": table.write_csv, ".jsonl": table.write_ndjson, ".parquet": table.write_parquet}[suffix](path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", WRITE, path], capture_output=True, text=True)
    assert "UsageError" in done.stderr and "What was there is unchanged" in done.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_that_differ_in_a_nul_at_their_end_are_written_as_they_are(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6]], np.float32)
    write_predictions(pl.DataFrame({"text": ["a", "b"]}), np.array([0, 1]), probabilities, ["x", "x\0"], path)
    table = read_table(path)
    assert table["predicted"].to_list() == ["x", "x\0"] and {"p_x", "p_x\0"} <= set(table.columns)


def test_a_label_of_30_kilobytes_costs_no_gigabytes(tmp_path):
    done = subprocess.run([sys.executable, "-c", LARGE, tmp_path / "out.parquet"], capture_output=True, text=True)
    assert int(done.stdout) < 400_000, done


def test_cells_that_a_spreadsheet_would_run_are_counted_and_escaped_where_asked(tmp_path):
    cells = ["=1+1", "+49 30", "-5", "+3.5e2", "-", "@x", "\tx", "\rx", "a=1", "", None, ".5", "-.5", "--1"]
    table = pl.DataFrame({"=id": range(len(cells)), "text": cells})
    assert count_formulas(table) == 8
    escaped = escape_formulas(table)
    changed = [cell for cell, new in zip(cells, escaped["text"], strict=True) if cell != new]
    assert changed == ["=1+1", "+49 30", "-", "@x", "\tx", "\rx", "--1"]
    assert set(escaped["text"]) - set(cells) == {f"'{cell}" for cell in changed} and escaped.columns == ["'=id", "text"]


def test_only_a_csv_file_has_formulas(tmp_path):
    table, probabilities = pl.DataFrame({"text": ["=1", "b"]}), np.full((2, 1), 1, np.float32)
    found = {
        (suffix, escape): write_predictions(
            table, np.array([0, 0]), probabilities, ["@x"], tmp_path / f"o{suffix}", escape_formulas=escape
        )
        for suffix, escape in ((".csv", False), (".csv", True), (".jsonl", False), (".parquet", False))
    }
    assert list(found.values()) == [3, 0, 0, 0]


@pytest.mark.parametrize(
    ("values", "suffix", "ways"),
    [
        ([[1]], ".csv", ".jsonl or .parquet"),
        ([{"a": 1}], ".csv", ".jsonl or .parquet"),
        ([[b"a"]], ".csv", ".parquet"),
        ([b"a"], ".csv", ".parquet"),
        ([b"a"], ".jsonl", ".parquet"),
        ([[{"a": b"a"}]], ".jsonl", ".parquet"),
        ([timedelta(1)], ".csv", ".jsonl or .parquet"),
    ],
)
def test_a_column_that_the_format_cannot_hold_is_named_with_the_ways_out(values, suffix, ways, tmp_path):
    table = pl.DataFrame({"text": ["a"], "meta": values})
    with refused(UsageError, match=rf"\{suffix} cannot hold the column 'meta', .*; write {ways}, or leave"):
        check_columns(table, ["x"], tmp_path / f"out{suffix}")
    write_predictions(table, np.array([0]), np.ones((1, 1), np.float32), ["x"], tmp_path / f"out{ways[-8:]}")
