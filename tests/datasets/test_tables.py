"""Tables from files: whatever a byte of one is changed to, it is what the file says or a refusal that names it."""

import csv
import io
import json
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from llmembed.datasets import load_dataset
from llmembed.datasets.jobs import Job, load_job
from llmembed.datasets.tables import read_table
from llmembed.errors import DatasetError

ROWS = [{"text": f'text "{i}",\té', "label": "xy"[i % 2], "number": str(i)} for i in range(6)]
FILES = {
    "films.csv": 'text,label\n"a ""b"", c",x\nd,y\n"e\nf",x\n',
    "films.tsv": 'text\tlabel\n"a ""b""\tc"\tx\nd\ty\n',
    "films.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
}
JOB = """backbone = "minilm"
layers = [-5, -1]
[hub]
repo = "a/b"
revision = "c"
train = "d"
test = "e"
"""


def change_a_byte(content: bytes, data: st.DataObject) -> bytes:
    place = data.draw(st.integers(0, len(content) - 1))
    return content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place + 1 :]


def read_elsewhere(path: Path) -> list[list[str | None]]:
    """Read column names and rows with another reader than ours, short rows filled up and empty ones left out."""
    content = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in content.split("\n") if line.strip()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return filled([names, *([row.get(name) for name in names] for row in rows)])
    separator = "," if path.suffix == ".csv" else "\t"
    return filled(list(csv.reader(io.StringIO(content, newline=""), delimiter=separator)))


def filled(rows: list) -> list[list[str | None]]:
    rows = [[cell or None for cell in row] for row in rows if row]
    return [cells for row in rows if any(cells := [*row, *[None] * (len(rows[0]) - len(row))][: len(rows[0])])]


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_changed_byte_is_what_the_file_now_says_or_refused_by_name(name, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(change_a_byte(FILES[name].encode(), data))
    try:
        table = read_table(path)
    except DatasetError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    # The other reader ends a row at a lone CR too.
    if b"\r" not in path.read_bytes():
        assert filled([table.columns, *map(list, table.rows())]) == read_elsewhere(path)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_changed_byte_of_a_parquet_file_is_a_table_or_refused_by_name(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "films.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    path.write_bytes(change_a_byte(path.read_bytes(), data))
    try:
        assert len(read_table(path).rows()) <= len(ROWS)
    except DatasetError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_changed_byte_of_a_job_file_is_a_job_or_refused_by_name(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "films.toml"
    path.write_bytes(change_a_byte(JOB.encode(), data))
    try:
        assert isinstance(load_job(path), Job)
    except DatasetError as error:
        assert str(error).startswith(str(path))


def test_a_parquet_file_that_once_ended_the_process_is_refused(tmp_path):
    path = tmp_path / "films.parquet"
    pl.DataFrame({"text": [f"text {i}" for i in range(40)], "label": ["x", "y"] * 20}).write_parquet(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with suppress(DatasetError):
            read_table(path)


def test_a_csv_file_with_cr_line_ends_is_read(tmp_path):
    (tmp_path / "films.csv").write_bytes(b'text,label\r"a\nb",x\rc,y\r')
    (tmp_path / "films.jsonl").write_bytes(b'{"text":"a"}\r{"text":"b"}\r')
    assert read_table(tmp_path / "films.csv").rows() == [("a\nb", "x"), ("c", "y")]
    assert read_table(tmp_path / "films.jsonl").rows() == [("a",), ("b",)]
    (tmp_path / "films.csv").write_bytes(b"text,label\ra,x\r\nc,y\r\n")
    with refused(DatasetError, match="ends in CR, others in CR LF"):
        read_table(tmp_path / "films.csv")


@pytest.mark.parametrize("depth", [101, 900, 100_000])
def test_deeply_nested_json_is_refused_with_its_line(depth, tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text('{"text":"a","label":"x"}\n{"text":"b","label":' + "[" * depth + "]" * depth + "}\n")
    with refused(DatasetError, match=r"films\.jsonl line 2 is nested more than 100 levels deep"):
        read_table(path)


def test_an_odd_column_matters_only_where_it_is_read(tmp_path):
    path = tmp_path / "films.jsonl"
    rows = [{"text": f"text {i}", "label": "xy"[i % 2], "meta": [i] if i % 2 else i} for i in range(20)]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert len(load_dataset(str(path)).table) == 20
    with refused(DatasetError, match=r"column 'meta' holds .*: a whole number in line 1 and a list in line 3"):
        read_table(path)


def test_labels_of_several_types_are_refused_not_made_one(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text('{"text":"a","label":1}\n{"text":"b","label":null}\n{"text":"c","label":true}\n')
    with refused(DatasetError, match=r"'label' .*: a whole number in line 1 and true or false in line 3"):
        load_dataset(str(path))


def test_doubled_quotes_in_a_name_of_a_column_are_one(tmp_path):
    (tmp_path / "films.csv").write_text('"the ""text""",label\na,x\n')
    assert read_table(tmp_path / "films.csv").columns == ['the "text"', "label"]
