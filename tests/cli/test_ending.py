"""How real processes end: stopped, unread, with streams that are closed, full or not UTF-8; and what they print."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from llmembed.cli import main
from llmembed.datasets import load_dataset
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.printable import UNPRINTABLE, printable

STOPPED_WHILE_A_PROCESS_STARTS = """
import signal, time
from multiprocessing import get_context, resource_tracker, util
from llmembed.cli.ending import run
from llmembed.parallel import starting_processes

def start_and_stop(*arguments, start=util.spawnv_passfds):
    number = start(*arguments)
    signal.raise_signal(signal.SIGTERM)
    return number

def work():
    resource_tracker.ensure_running()
    util.spawnv_passfds = start_and_stop
    with starting_processes():
        get_context("spawn").Process(target=time.sleep, args=(60,)).start()

if __name__ == "__main__":
    raise SystemExit(run(work))
"""
PROGRAM = [sys.executable, "-c", "from llmembed.cli import main; main()"]
LABELS = ("po\x1b[31ms", "n\u202eég\x9b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with films.csv, whose labels are hostile, its cache, and the classifier m."""
    folder = tmp_path_factory.mktemp("films")
    rows = [(f"{word} film, number {i}", LABELS[i % 2]) for i in range(12) for word in (("good", "bad")[i % 2], "=1")]
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(folder / "films.csv")
    run_extraction(plan_extraction(load_dataset(str(folder / "films.csv")), root=folder / "cache"))
    done = run(folder, "train", "films.csv", "--head", "logistic", "--fusion", "mean", "--out", "m")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command; `shell` is what a shell reads behind it, such as a redirection."""
    command = ["bash", "-c", f'"$@" {shell}', "bash", *PROGRAM, *words] if shell else [*PROGRAM, *words]
    stdin = None if shell else subprocess.DEVNULL
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, stdin=stdin, capture_output=True, text=True, errors="replace"
    )


def test_control_characters_become_escapes_on_one_line():
    assert printable("a\x1b[31m\n\t\x9b\u202e\x7f\ud800é…") == r"a\x1b[31m\n\t\x9b\u202e\x7f\ud800é…"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "films.csv", "--head", "logistic", "--fusion", "mean", "--out", "m2"),
        ("evaluate", "m", "films.csv"),
        ("predict", "m", "films.csv"),
        ("extract", "films.csv", "--text-column", "no\x1b[31m"),
        ("extract", "no\x1b]0;title\x07"),
        ("train", "films.csv", "--fusion", "\x1b[31m"),
        ("predict", "m\x1b[31m", "--text", "a"),
    ],
)
def test_no_escape_sequence_reaches_the_terminal(folder, words):
    done = run(folder, *words)
    assert not UNPRINTABLE.search((done.stdout + done.stderr).replace("\n", "")), done
    assert ("Traceback" not in done.stderr and r"\x1b" in done.stdout + done.stderr) or r"\u001b" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_of_the_streams_will_do(folder, encoding):
    for words in (("evaluate", "m", "films.csv"), ("train", "--help"), ("extract", "ähm…")):
        done = run(folder, *words, PYTHONIOENCODING=encoding)
        assert "Traceback" not in done.stderr and (done.stdout or "No data set" in done.stderr)
    done = run(folder, "evaluate", "m", "films.csv", "--json", PYTHONIOENCODING=encoding)
    assert {each["label"] for each in json.loads(done.stdout)["per_class"]} == set(LABELS)


@pytest.mark.parametrize(
    ("shell", "code", "error"),
    [
        ("| head -0; exit ${PIPESTATUS[0]}", 141, ""),
        ("2>&1 | head -0; exit ${PIPESTATUS[0]}", 141, ""),
        (">/dev/full", 2, "error: The output cannot be written: No space left on device.\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_ends_the_command_quietly(folder, shell, code, error):
    done = run(folder, "evaluate", "m", "films.csv", shell=shell)
    assert (done.returncode, done.stderr) == (code, error)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_a_help_that_cannot_be_written_is_one_error(folder, words):
    done = run(folder, *words, shell=">/dev/full")
    assert (done.returncode, done.stderr) == (2, "error: The output cannot be written: No space left on device.\n")


def test_a_closed_stdin_is_named(folder):
    done = run(folder, "predict", "m", "-", shell="<&-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "stdin is closed" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_one_line_and_130(folder, number):
    command = [*PROGRAM, "predict", "m", "-"]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_until_it_handles_signals(running.pid)
        running.send_signal(number)
        # Not communicate(): that would close its stdin, which ends it too.
        error = running.stderr.read()
    assert running.returncode == 130
    assert error == "stopped; what was finished before is kept, and no file is written by half.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("everyone", [False, True])
def test_a_signal_ends_a_comparison_and_its_processes(folder, number, everyone, tmp_path):
    command = [
        *PROGRAM,
        "compare",
        "films.csv",
        "--results",
        str(tmp_path),
        "--folds",
        "2",
        "--head",
        "mlp",
        "--seeds",
        "99",
    ]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        while not list(tmp_path.rglob("*.json")):
            assert running.poll() is None
            time.sleep(0.1)
        (os.killpg if everyone else os.kill)(running.pid, number)
        error = running.stderr.read()
    assert (running.returncode, error.splitlines()[-1][:8], "Traceback" in error) == (130, "stopped;", False)


def wait_until_it_handles_signals(pid: int) -> None:
    caught = 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.1)
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("predict", "nowhere", "--text", "a", "--out", "x" * 300 + ".csv"), "--out'.*File name too long"),
        (("predict", "nowhere", "--text", "a", "--out", "films.csv/out.csv"), "films.csv/out.csv cannot be written"),
        (("train", "nowhere", "--out", "x" * 300), "--out'.*File name too long"),
        (("train", "nowhere", "--out", "films.csv/m"), "--out films.csv/m cannot be written: Not a directory"),
        (("train", "nowhere", "--out", ""), "--out'.*it is empty"),
        (("compare", "nowhere", "--results", "films.csv"), "--results films.csv cannot be written: Not a directory"),
        (("compare", "nowhere", "--picture", "films.csv/a.png"), "films.csv/a.png cannot be written"),
        (("compare", "nowhere", "--out", "films.csv"), "--out films.csv cannot be written"),
        (("reproduce", "--out", "films.csv"), "--out films.csv cannot be written"),
        (("extract", "nowhere", "--cache", "films.csv"), "--cache films.csv cannot be written: Not a directory"),
        (("train", "nowhere", "--seed", "-1"), "--seed"),
        (("train", "nowhere", "--seed", str(2**32)), "--seed"),
        (("train", "nowhere", "--dropout", "nan"), "--dropout"),
        (("train", "nowhere", "--hidden", "99999999999"), "--hidden 99999999999: .* up to 1,048,576"),
        (("train", "nowhere", "--hidden", str(2**20 + 1)), "--hidden 1048577: widths go from 1 to 1,048,576"),
        (("check-parity", "films.csv", "--tolerance", "nan"), "--tolerance"),
        (("train", "films.csv", "--backbone", "x" * 5000), "--backbone'.*File name too long"),
        (("predict", "m", "films.csv", "--escape-formulas"), "--escape-formulas without --out FILE.csv"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_read(folder, words, found, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["llmembed", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (5 if words[0] == "extract" else 2, "", 1)
    assert re.search(found, said.err)


def test_formulas_in_a_csv_file_are_counted_with_the_option_that_escapes_them(folder):
    done = run(folder, "predict", "m", "films.csv", "--out", "out.csv")
    assert "12 cells of out.csv begin as formulas" in done.stderr and "--escape-formulas" in done.stderr
    done = run(folder, "predict", "m", "films.csv", "--out", "out.csv", "--escape-formulas")
    assert done.stderr == "24 predictions written to out.csv\n" and "'=1 film" in (folder / "out.csv").read_text()


def test_a_damaged_cache_in_the_working_folder_does_not_stop_a_comparison_of_engines(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (spec,) = (tmp_path / "copy").glob("cache/films/*/spec.json")
    spec.write_text("{}")
    done = run(tmp_path / "copy", "check-parity", "films.csv")
    assert done.returncode != 5 and "spec.json" not in done.stderr


def test_overlaps_are_told_by_every_command_that_loads_the_data_set(folder):
    table = pl.read_csv(folder / "films.csv", infer_schema=False)
    both = pl.concat([table.with_columns(split=pl.lit(split)) for split in ("train", "test")])
    both.write_csv(folder / "both.csv")
    shutil.copytree(folder / "cache" / "films", folder / "cache" / "both", dirs_exist_ok=True)
    (folder / "sets" / "both").mkdir(parents=True)
    for split in ("train", "test"):
        table.write_csv(folder / "sets" / "both" / f"{split}.csv")
    for words in (
        ("extract", "both.csv"),
        ("train", "both.csv"),
        ("evaluate", "m", "both.csv"),
        ("predict", "m", "both"),
    ):
        done = run(folder, *words, LLMEMBED_DATA=str(folder / "sets"))
        assert "both: All 24 distinct test texts stand in the training split too" in done.stderr, done


def test_a_process_that_is_being_started_when_sigterm_comes_prints_no_traceback(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STOPPED_WHILE_A_PROCESS_STARTS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "stopped; what was finished before is kept, and no file is written by half.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_an_extension_makes_a_panic_of_stops_all_the_same(number):
    program = f"""
import signal, sys
from llmembed.cli.ending import run

class Panic(BaseException):
    pass

def command():
    try:
        signal.raise_signal({int(number)})
    except KeyboardInterrupt as interrupt:
        raise Panic from interrupt

sys.exit(run(command))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (130, "", 1) and "stopped" in done.stderr
