"""Data sets from names, files and folders: what is read exactly, and what is refused at the door."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from documents import ROOT
from refusals import printed, refused

from llmembed.cli.remedies import extract_command
from llmembed.datasets import folder_name, load_dataset
from llmembed.datasets.jobs import LAST_FIVE, Job, job_names, load_job
from llmembed.errors import DatasetError
from llmembed.requests import ExtractionRequest

JOBS = sorted((ROOT / "jobs").glob("*.toml"))
TRAIN = [("good film", "pos"), ("bad film", "neg"), ("fine film", "pos")]
TEST = [("dull film", "neg"), ("great film", "pos")]


def write_table(path, rows, columns=("text", "label"), **types):
    """Write rows in the format that the suffix names."""
    table = pl.DataFrame(rows, schema=list(columns), orient="row", schema_overrides=types)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".jsonl":
        table.write_ndjson(path)
    else:
        table.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def many(count=100):
    return [(f"text {i}", "xy"[i % 2]) for i in range(count)]


def refusal(argument, **options):
    """Return what the command line says when it refuses a data set; it is one line."""
    with pytest.raises(DatasetError) as caught:
        load_dataset(argument, **options)
    assert "\n" not in str(caught.value)
    return printed(caught.value)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty folder of data sets, looked up by name."""
    monkeypatch.setenv("LLMEMBED_DATA", str(tmp_path / "sets"))
    return tmp_path / "sets"


@pytest.mark.parametrize(
    "suffixes", [[".parquet"] * 3, [".csv"] * 3, [".tsv"] * 3, [".jsonl"] * 3, [".csv", ".jsonl", ".parquet"]]
)
def test_a_folder_holds_its_splits_in_any_format(suffixes, tmp_path):
    parts = {"train": TRAIN, "validation": [('a "b",\tc\nd', "neg")], "test": TEST}
    for (split, rows), suffix in zip(parts.items(), suffixes, strict=True):
        write_table(tmp_path / "films" / f"{split}{suffix}", rows)
    loaded = load_dataset(str(tmp_path / "films"))
    assert loaded.table.rows() == [(*row, split) for split, rows in parts.items() for row in rows]
    assert loaded.table.columns == ["text", "label", "split"]
    assert (loaded.name, loaded.origin) == ("films", str(tmp_path / "films"))
    assert (loaded.job, loaded.skipped, loaded.warnings) == (Job(), 0, ())


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_a_file_with_a_split_column_is_read_as_it_says(suffix, tmp_path):
    rows = [(*row, split) for split, part in (("test", TEST), ("train", TRAIN)) for row in part]
    path = write_table(tmp_path / f"films{suffix}", rows, ("text", "label", "split"))
    loaded = load_dataset(path)
    assert loaded.table.rows() == rows
    assert (loaded.name, loaded.origin) == ("films", path)
    assert loaded.texts() == [text for text, _, _ in rows]
    assert loaded.texts("train") == [text for text, _ in TRAIN]
    assert loaded.labels("test") == [label for _, label in TEST]


def test_a_job_name_is_looked_up_in_the_data_folder(data):
    write_table(data / "agnews" / "train.csv", TRAIN)
    write_table(data / "agnews" / "test.csv", TEST)
    loaded = load_dataset("agnews")
    assert (loaded.name, loaded.origin) == ("agnews", str(data / "agnews"))
    assert loaded.job.hub is not None and loaded.job.layers == LAST_FIVE
    assert loaded.labels("train") == ["pos", "neg", "pos"]


def test_a_folder_of_the_data_folder_needs_no_job(data):
    write_table(data / "films" / "train.csv", TRAIN)
    write_table(data / "films" / "test.csv", TEST)
    loaded = load_dataset("films")
    assert (loaded.name, loaded.origin, loaded.job) == ("films", str(data / "films"), Job())


def test_a_path_is_a_path_even_where_a_job_has_its_name(data, tmp_path, monkeypatch):
    for folder, text in ((data, "named"), (tmp_path, "local")):
        for split in ("train", "test"):
            write_table(folder / "mr" / f"{split}.csv", [(f"{text} a", "x"), (f"{text} b", "y")])
    monkeypatch.chdir(tmp_path)
    assert load_dataset("mr").texts("test") == ["named a", "named b"]
    assert load_dataset("./mr").texts("test") == ["local a", "local b"]


def test_columns_may_have_other_names(tmp_path):
    rows = [(split, text, label, "noise") for split, part in (("train", TRAIN), ("test", TEST)) for text, label in part]
    path = write_table(tmp_path / "films.csv", rows, ("split", "sentence", "mood", "text"))
    loaded = load_dataset(path, text_column="sentence", label_column="mood")
    assert loaded.table.rows() == [(text, label, split) for split, text, label, _ in rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_text_of_digits_stays_a_string(suffix, tmp_path):
    texts = ["007", "1e5", "1.0", "true", "NA", "null", "nan", "2020-01-01", "  spaced ", "#comment", "a\u2028b\x0bc"]
    rows = [(text, f"{i % 2:02}", "test" if i < 2 else "train") for i, text in enumerate(texts)]
    loaded = load_dataset(write_table(tmp_path / f"codes{suffix}", rows, ("text", "label", "split")))
    assert loaded.table.rows() == rows


def test_integer_labels_become_strings(tmp_path):
    write_table(tmp_path / "train.parquet", [("a", 0), ("b", 1), ("c", -1)], label=pl.Int8)
    write_table(tmp_path / "test.jsonl", [("d", 1)])
    loaded = load_dataset(str(tmp_path))
    assert loaded.labels("train") == ["0", "1", "-1"] and loaded.labels("test") == ["1"]


def test_any_text_survives_csv(tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices("ab\",\n\r\t 'é;", k=draw.randint(1, 40))) + "." for _ in range(20_000)]
    rows = [(text, str(i), "test" if i % 5 == 0 else "train") for i, text in enumerate(texts)]
    for suffix in (".csv", ".tsv"):
        loaded = load_dataset(write_table(tmp_path / f"wild{suffix}", rows, ("text", "label", "split")))
        assert loaded.table.rows() == rows


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,x\r\nb,y\r\n")
    (tmp_path / "test.csv").write_bytes(b"text,label\r\nc,x\r\n")
    assert load_dataset(str(tmp_path)).table.rows() == [("a", "x", "train"), ("b", "y", "train"), ("c", "x", "test")]


def test_a_parquet_file_with_brackets_in_its_name_is_itself(tmp_path):
    write_table(tmp_path / "films1.parquet", [("another file", "xy"[i % 2]) for i in range(20)])
    path = write_table(tmp_path / "films[1].parquet", many())
    assert sorted(load_dataset(path).texts()) == sorted(text for text, _ in many())


def test_equal_texts_never_lie_on_both_sides(tmp_path):
    draw = random.Random(0)
    rows = [(f"text {draw.randrange(60)}", draw.choice("xyz")) for _ in range(300)]
    loaded = load_dataset(write_table(tmp_path / "films.csv", rows))
    assert loaded.table.select("text", "label").rows() == rows
    assert not set(loaded.texts("train")) & set(loaded.texts("test"))
    assert len(set(loaded.texts("test"))) >= 5


def test_limit_keeps_the_same_rows_whatever_their_order(tmp_path):
    rows = [(*row, "test" if i % 3 == 0 else "train") for i, row in enumerate(many())]
    path = write_table(tmp_path / "films.csv", rows, ("text", "label", "split"))
    first, less = load_dataset(path, limit=7), load_dataset(path, limit=3)
    random.Random(0).shuffle(rows)
    again = load_dataset(write_table(tmp_path / "films.csv", rows, ("text", "label", "split")), limit=7)
    assert sorted(first.table.rows()) == sorted(again.table.rows())
    assert set(less.table.rows()) < set(first.table.rows()) < set(rows)
    assert (len(first.texts("train")), len(first.texts("test"))) == (7, 7)
    assert load_dataset(path, limit=1000).table.rows() == rows


def test_limit_keeps_the_same_rows_where_a_text_has_two_labels(tmp_path):
    rows = [(f"text {i // 2}", "xy"[i % 2], "test" if i < 50 else "train") for i in range(200)]
    columns = ("text", "label", "split")
    first = load_dataset(write_table(tmp_path / "films.csv", rows, columns), limit=7)
    again = load_dataset(write_table(tmp_path / "reversed.csv", rows[::-1], columns), limit=7)
    assert sorted(first.table.rows()) == sorted(again.table.rows())


def test_what_a_data_set_was_read_by_reads_it_again(tmp_path):
    path = write_table(tmp_path / "films.csv", many(), ("sentence", "label"))
    loaded = load_dataset(path, text_column="sentence", on_empty="skip", limit=9)
    asked = extract_command(ExtractionRequest(reading=loaded.reading))
    assert asked == f"llmembed extract {path} --text-column sentence --on-empty skip --limit 9"
    assert load_dataset(**loaded.reading.model_dump()).table.equals(loaded.table)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("option", ["--text-column", "--label-column"])
def test_a_missing_column_names_the_others_and_the_option(option, suffix, tmp_path):
    columns = {"--text-column": ("sentence", "label"), "--label-column": ("text", "mood")}[option]
    path = write_table(tmp_path / f"films{suffix}", TRAIN, columns)
    message = refusal(path)
    missing = option.strip("-").partition("-")[0]
    assert message.startswith(f"{path} has no column {missing!r}; it has {', '.join(columns)}.") and option in message


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_an_empty_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"films{suffix}"
    path.touch()
    message = refusal(str(path))
    assert message.startswith(str(path)) and ("empty" in message or "cannot be read" in message)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_a_file_without_rows_is_refused(suffix, tmp_path):
    path = write_table(tmp_path / f"films{suffix}", [])
    assert refusal(path) == f"{path} has no rows."


@pytest.mark.parametrize(
    ("present", "lacking"), [("train", "test"), ("test", "train"), ("validation", "test and train")]
)
def test_a_folder_without_train_or_test_is_refused(present, lacking, tmp_path):
    write_table(tmp_path / f"{present}.csv", TRAIN)
    assert f"{tmp_path} has no {lacking} file; expected {lacking} with one of .parquet" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (["train", "train"], "needs rows of both train and test"),
        (["test", "validation"], "needs rows of both train and test"),
        (["train", "Test"], "holds ['Test']; expected train, validation, test"),
        (["train", None], "holds ['None']; expected train, validation, test"),
    ],
)
def test_a_split_column_must_say_train_and_test(splits, found, tmp_path):
    rows = [(*row, split) for row, split in zip(TRAIN, splits, strict=False)]
    path = write_table(tmp_path / "films.parquet", rows, ("text", "label", "split"))
    message = refusal(path)
    assert message.startswith(f"{path}: column 'split'") and found in message


def test_one_class_is_refused(tmp_path):
    write_table(tmp_path / "train.csv", [("a", "pos"), ("b", "pos")])
    write_table(tmp_path / "test.csv", TEST)
    assert "all training rows have the one label 'pos'" in refusal(str(tmp_path))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_a_row_without_a_label_is_refused_with_its_number(suffix, tmp_path):
    path = write_table(tmp_path / f"films{suffix}", [("a", "x"), ("b", "y"), ("c", None), ("d", None)])
    message = refusal(path)
    assert message.startswith(f"{path}: 2 of 4 rows have no label (the first is row 3)")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(("labels", "kind"), [((0.0, 1.5), "Float64"), ((True, False), "Boolean")])
def test_labels_that_are_no_names_are_refused(labels, kind, suffix, tmp_path):
    path = write_table(tmp_path / f"films{suffix}", list(zip("ab", labels, strict=True)))
    assert refusal(path) == f"{path}: column 'label' is {kind}, expected strings or integers."


def test_texts_that_are_no_strings_are_refused(tmp_path):
    path = write_table(tmp_path / "films.parquet", [(1, "x"), (2, "y")])
    assert refusal(path).startswith(f"{path}: column 'text' is Int64, expected strings") and "--text-column" in refusal(
        path
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_empty_texts_are_refused_with_their_number_and_the_remedy(suffix, tmp_path):
    texts = ["a", "b", None, "", " \t\u00a0", "f"]
    path = write_table(tmp_path / f"films{suffix}", [(text, "xy"[i % 2]) for i, text in enumerate(texts)])
    message = refusal(path)
    assert message.startswith(f"{path}: 3 of 6 texts are null or empty (the first is row 3)")
    assert "--on-empty skip" in message


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_skipped_texts_shift_no_other_row(suffix, tmp_path):
    empty = {0: None, 7: "", 8: "  \n", 39: None}
    rows = [(empty.get(i, f"text {i}"), f"label {i}", ("train", "test")[i % 2]) for i in range(40)]
    path = write_table(tmp_path / f"films{suffix}", rows, ("text", "label", "split"))
    loaded = load_dataset(path, on_empty="skip")
    assert loaded.skipped == 4
    assert loaded.table.rows() == [row for i, row in enumerate(rows) if i not in empty]


def test_a_made_split_ignores_skipped_texts(tmp_path):
    rows = [row for pair in zip(many(50), [("", "x"), (None, "y")] * 25, strict=True) for row in pair]
    loaded = load_dataset(write_table(tmp_path / "gaps.csv", rows), on_empty="skip")
    assert loaded.skipped == 50
    assert loaded.table.equals(load_dataset(write_table(tmp_path / "films.csv", many(50))).table)


def test_a_folder_without_rows_left_to_test_is_refused(tmp_path):
    write_table(tmp_path / "train.csv", TRAIN)
    write_table(tmp_path / "test.csv", [(" ", "pos"), ("", "neg")])
    assert (
        refusal(str(tmp_path), on_empty="skip")
        == f"{tmp_path}: no rows are left in the test split; give it rows of its own."
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_bytes_that_are_not_utf8_are_refused_with_their_line(suffix, tmp_path):
    path = tmp_path / f"films{suffix}"
    write_table(path, [("a", "x"), ("b", "y"), ("cafe", "x")])
    path.write_bytes(path.read_bytes().replace(b"cafe", "café".encode("latin-1")))
    line = 3 if suffix == ".jsonl" else 4
    assert refusal(str(path)) == f"{path} is not UTF-8: byte 0xe9 in line {line}; convert it to UTF-8."


def test_an_unknown_suffix_is_refused(tmp_path):
    (tmp_path / "films.xlsx").write_bytes(b"PK")
    message = refusal(str(tmp_path / "films.xlsx"))
    assert "cannot read '.xlsx'; use .parquet, .csv, .tsv, .jsonl" in message


def test_an_unknown_name_lists_the_jobs(data):
    message = refusal("nosuchset")
    assert "No data set 'nosuchset'" in message and "agnews" in message and "jobs/nosuchset.toml" in message


def test_two_files_of_one_split_are_refused(tmp_path):
    write_table(tmp_path / "train.csv", TRAIN)
    write_table(tmp_path / "train.parquet", TRAIN)
    write_table(tmp_path / "test.csv", TEST)
    assert refusal(str(tmp_path)) == f"{tmp_path} has both train.parquet and train.csv; keep one of them."


@pytest.mark.parametrize("cut", [1, 8, 300, 0.5])
def test_a_torn_parquet_file_is_refused(cut, tmp_path):
    path = Path(write_table(tmp_path / "films.parquet", many()))
    whole = path.read_bytes()
    path.write_bytes(whole[: -int(cut * len(whole) if cut < 1 else cut)])
    assert refusal(str(path)).startswith(f"{path} cannot be read: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("torn.jsonl", '{"text":"a","label":"x"}\n{"text":"b","la'),
        ("list.jsonl", '[{"text":"a","label":"x"},{"text":"b","label":"y"}]\n'),
        ("comma.csv", "text,label\nhello, world,x\nb,y\n"),
        ("quote.csv", 'text,label\na,x\n"b,x\nc,y\nd,y\n'),
        ("quote.tsv", 'text\tlabel\na\tx\n"b\tx\nc\ty\nd\ty\n'),
        ("pair.tsv", 'text\tlabel\na\tx\n"b\tx\nc\ty\n"d\ty\ne\tx\n'),
    ],
)
def test_a_malformed_file_is_refused_rather_than_read_in_part(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert refusal(str(tmp_path / name)).startswith(f"{tmp_path / name} ")


def test_half_a_surrogate_pair_is_refused(tmp_path):
    rows = [json.dumps({"text": f"text {i} \ud83d!", "label": "xy"[i % 2]}) for i in range(20)]
    (tmp_path / "films.jsonl").write_text("\n".join(rows))
    refusal(str(tmp_path / "films.jsonl"))


def test_a_label_that_only_test_rows_have_gives_a_warning(tmp_path):
    write_table(tmp_path / "train.csv", TRAIN)
    write_table(tmp_path / "test.csv", [*TEST, ("odd film", "weird"), ("odder film", "weird"), ("meh", "mild")])
    (warning,) = load_dataset(str(tmp_path)).warnings
    assert warning.startswith("3 test rows have a label that no training row has") and "'mild', 'weird'" in warning


def test_the_jobs_are_those_of_the_paper_and_the_built_in_one():
    assert {path.stem for path in JOBS} >= {"agnews", "mr", "pydocs", "r52", "r8", "sst2"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_loads(path):
    job = load_job(path)
    assert path.stem in job_names()
    assert (job.backbone, job.layers, job.pooling) == ("minilm", LAST_FIVE, "mean")
    assert job.hub is None or len(job.hub.revision) == 40


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max_lenght = 12", "'max_lenght': Extra inputs"),
        ('[hub]\nrepo = "a/b"', "'hub.revision': Field required"),
        ('pooling = "median"', "'pooling': Input should be 'mean'"),
        ("layers = [-1", "not valid TOML"),
    ],
)
def test_a_bad_job_file_is_refused(content, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "films.toml").write_text(content)
    message = refusal("films")
    assert str(Path("jobs", "films.toml")) in message and expected in message


def test_a_job_of_the_working_directory_comes_first(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mr.toml").write_text("max_length = 7")
    for split in ("train", "test"):
        write_table(data / "mr" / f"{split}.csv", TRAIN)
    assert load_dataset("mr").job == Job(max_length=7)


def test_a_name_without_public_copy_says_where_to_put_it(data):
    message = refusal("r8")
    assert "jobs/r8.toml names no public copy" in message and "$LLMEMBED_DATA/r8/ as train.parquet" in message


def test_an_unreachable_hub_names_both_ways_out():
    # A proxy that nothing listens at: the request fails at once on a machine with a network too.
    code = "from llmembed.datasets import load_dataset; load_dataset('sst2')"
    environment = {name: value for name, value in os.environ.items() if name != "LLMEMBED_DATA"}
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""},
        capture_output=True,
        text=True,
    )
    assert time.perf_counter() - start < 10
    kind, _, message = run.stderr.splitlines()[-1].partition(": ")
    assert kind == "llmembed.errors.DatasetError" and "hf://datasets/stanfordnlp/sst2@" in message
    assert "put it into $LLMEMBED_DATA/sst2/ (LLMEMBED_DATA is not set)" in message and "connect to the hub" in message


def test_a_job_that_redefines_one_of_llmembeds_own_is_named_with_both_files(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    for split, rows in (("train", TRAIN), ("test", TEST)):
        write_table(data / "mr" / f"{split}.csv", rows)
    own = next(path for path in JOBS if path.stem == "mr")
    (tmp_path / "jobs" / "mr.toml").write_bytes(own.read_bytes())
    assert load_dataset("mr").warnings == ()
    (tmp_path / "jobs" / "mr.toml").write_text("max_length = 7")
    (warning,) = load_dataset("mr").warnings
    assert warning.startswith("jobs/mr.toml of the working directory is used for mr") and str(own) in warning


@pytest.mark.parametrize("name", ["...csv", "....jsonl", ".hidden.csv", "\x1b[31m.csv", "x" * 240 + ".csv"])
def test_the_name_of_a_file_never_leads_out_of_the_cache_folder(name, tmp_path):
    loaded = load_dataset(write_table(tmp_path / name, many()))
    assert loaded.name.isprintable() and len(loaded.name) < 120
    assert (tmp_path / "cache" / loaded.name).resolve().parent == tmp_path / "cache"
    assert not loaded.name.startswith(".") and loaded.name != load_dataset(write_table(tmp_path / "a.csv", many())).name


def test_a_plain_name_is_that_of_its_folder_and_others_stay_different():
    plain = ["films", "films[1]", "my films", "évidence", "a.b"]
    odd = ["", ".", "..", "a\nb", "a\rb", ".a", "a\udcff", "/", "x" * 101]
    assert [folder_name(name) for name in plain] == plain
    assert len({folder_name(name) for name in [*plain, *odd, "a"]}) == 15


@pytest.mark.parametrize("argument", ["", "x" * 300, "x" * 5000 + ".csv", "a\0b", "a\0b.csv", "-x", "\udcff"])
def test_what_can_be_no_data_set_is_refused(argument):
    with refused(DatasetError, match="No data set"):
        load_dataset(argument)


def test_a_name_that_begins_with_a_dash_is_no_option_in_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "-x.csv", many())
    asked = ExtractionRequest(reading=load_dataset("-x.csv").reading, layers=(-2, -1), root="caches")
    assert extract_command(asked) == "llmembed extract ./-x.csv --layers -2,-1 --cache caches"


def test_labels_that_differ_in_a_nul_at_their_end_stay_two(tmp_path):
    rows = [("a", "x", "train"), ("b", "x\0", "train"), ("c", "x\0", "test")]
    for suffix in (".csv", ".jsonl", ".parquet"):
        loaded = load_dataset(write_table(tmp_path / f"films{suffix}", rows, ("text", "label", "split")))
        assert loaded.labels("train") == ["x", "x\0"]
