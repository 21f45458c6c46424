import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from refusals import refused

from llmembed.errors import DatasetError
from llmembed.prediction import read_lines

PROGRAM = "from llmembed.cli import main; main()"


def llmembed(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def trained(pydocs_cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "m"
    done = llmembed("train", "--cache", pydocs_cache, "--head", "logistic", "--fusion", "mean", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert "taking the one last extracted, pydocs" in done.stderr
    assert json.loads(done.stdout)["rows"] == 700
    return out


def test_help_and_train_load_no_model():
    heavy = {"numpy", "polars", "pydantic", "torch", "transformers", "vllm", "ray"}
    assert not heavy & modules_after("import llmembed.cli")
    loaded = modules_after("import llmembed.training, llmembed.reports.terminal, llmembed.prediction")
    assert not {"transformers", "tokenizers", "vllm", "ray"} & loaded


def test_help_names_every_command_and_the_exit_codes():
    done = llmembed("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("extract", "train", "predict", "Exit codes"))


def test_one_text_gives_one_json_object(trained):
    done = llmembed("predict", trained, "--text", "Return the eigenvalues of a square array.")
    answer = json.loads(done.stdout)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_stdin_gives_one_object_per_line_in_order(trained):
    done = llmembed("predict", trained, "-", stdin="the nodes of a graph\nthe gradient of a tensor\n")
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert labels == ["networkx", "torch"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_gives_a_table_with_every_row_in_place(trained, tmp_path, suffix):
    texts = ["the nodes of a graph", "tokens, generation, and the model's vocabulary", "the edges of a graph"]
    pl.DataFrame({"id": [7, 8, 9], "body": texts}).write_csv(tmp_path / "in.csv")
    out = tmp_path / f"out{suffix}"
    done = llmembed("predict", trained, tmp_path / "in.csv", "--text-column", "body", "--out", out)
    assert done.returncode == 0, done.stderr
    read = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[suffix]
    table = read(out)
    assert table["body"].to_list() == texts
    assert table["predicted"].to_list() == ["networkx", "transformers", "networkx"]
    assert {"probability", "p_networkx", "p_torch"} <= set(table.columns)


def test_a_data_set_is_predicted_from_the_cache(trained, pydocs_cache, tmp_path):
    done = llmembed("predict", trained, "pydocs", "--cache", tmp_path)
    assert (done.returncode, done.stdout) == (5, "")
    assert "2,380 of 2,380 texts are not in" in done.stderr
    assert "fix: llmembed extract pydocs" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "nowhere"], 3, "No data set 'nowhere'"),
        (["extract", "pydocs", "--backbone", "nothing"], 4, "No backbone 'nothing'"),
        (["train", "pydocs", "--cache", "nowhere"], 5, "fix: llmembed extract pydocs --cache nowhere"),
        (["train", "--label-column", "topic"], 2, "--label-column without a data set"),
        (["extract", "pydocs", "--backbone", "./nowhere"], 4, "There is no folder ./nowhere"),
        (["extract", "pydocs", "--max-length", "2", "--cache", "nowhere"], 4, "leaves no room beside 2 special tokens"),
        (["extract", "pydocs", "--device", "tpu3", "--cache", "nowhere"], 2, "--device tpu3 cannot be used here"),
        (["extract", "pydocs", "--cache", __file__, "--limit", "700"], 5, "cannot be written: Not a directory"),
        (["predict", "nowhere", "--text", "a"], 6, "nowhere is not a classifier"),
        (["predict", "nowhere"], 2, "either --text or a source"),
        (["train", "pydocs", "--layers", "last"], 2, "--layers last: expected whole numbers"),
    ],
)
def test_errors_are_one_line_with_an_exit_code_of_their_own(words, code, message):
    done = llmembed(*words)
    assert done.returncode == code
    assert done.stdout == ""
    assert message in done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith("error: ") and all(line.startswith("fix: llmembed ") for line in others)


def test_a_column_that_would_be_overwritten_is_refused(trained, tmp_path):
    pl.DataFrame({"text": ["a graph"], "predicted": ["mine"]}).write_csv(tmp_path / "in.csv")
    done = llmembed("predict", trained, tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    assert (done.returncode, "'predicted' already" in done.stderr) == (2, True)
    assert not (tmp_path / "out.csv").exists()


def test_an_empty_input_is_refused(trained):
    done = llmembed("predict", trained, "-")
    assert (done.returncode, done.stderr) == (3, "error: There are no texts in the input.\n")


def test_labels_that_look_like_markup_are_shown_as_they_are(pydocs_cache, pydocs, tmp_path):
    table = pydocs.table.with_columns(pl.when(pl.col("label") == "numpy").then(pl.lit("[/x]")).otherwise("label"))
    table.write_csv(tmp_path / "marked.csv")
    shutil.copytree(pydocs_cache / "pydocs", tmp_path / "cache" / "marked")
    words = ("--cache", tmp_path / "cache", "--head", "logistic", "--fusion", "last", "--out", tmp_path / "m")
    done = llmembed("train", tmp_path / "marked.csv", "--label-column", "literal", *words)
    assert done.returncode == 0, done.stderr
    assert "[/x]" in done.stdout


def test_only_line_ends_end_a_line():
    assert read_lines("a\u2028b\r\nc\x0bd\n".encode()) == ["a\u2028b", "c\x0bd"]
    assert read_lines(b"a\n\nb") == ["a", "", "b"]
    with refused(DatasetError, match="0xff in line 2"):
        read_lines(b"a\n\xff")


def test_an_empty_text_is_refused_and_not_shifted(trained):
    done = llmembed("predict", trained, "-", stdin="the nodes of a graph\n\nthe gradient\n")
    assert done.returncode == 3
    assert "1 of 3 texts are null or empty (the first is row 2)" in done.stderr
