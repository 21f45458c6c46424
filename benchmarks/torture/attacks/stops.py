"""Attack: SIGTERM or SIGINT at a random moment, and a stdout that is ASCII, closed, or a pipe whose reader has gone.

A stopped command ends with exit code 130 (or by the signal, at its end) and without a traceback. The same command then
ends as if nothing had been, and what was there is whole.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.torture import faults
from benchmarks.torture.attacks.kills import COMMANDS
from benchmarks.torture.children import ENVIRONMENT, PromiseError, ended_well
from benchmarks.torture.scene import Scene, check_nothing_left, grow_old
from benchmarks.torture.verdicts import Attack, each

MOMENTS = 24
STOPPED = ("extract", "extract, a shard damaged", "train --out, replacing", "predict new.csv --out new.csv", "compare")
PROGRAM = "from llmembed.cli import main; main()"
LABEL = "ü☃"


def stop(scene: Scene, name: str, number: int, seed: int) -> None:
    """Send a signal at a random moment, see what is there, and run the command again."""
    command, chance = COMMANDS[name], random.Random(f"{name}{number}{seed}")
    with scene.copy() as work:
        command.prepare(scene, work)
        # From the first file on that it opens, most commands take half a second.
        moment = chance.random() * (1.5 if name == "compare" else 0.5)
        fault = partial(faults.signal_after, work, number, moment)
        outcome = scene.call(work, *command.words(scene), faults=[fault, faults.start_anew], seconds=60)
        # A signal that comes when the work is done ends the process as it ends any other.
        if outcome.status not in (0, 130, 128 + number, -number) or "Traceback (most recent" in outcome.err:
            raise PromiseError(str(outcome))
        command.between(scene, work)
        if command.finished(scene, work) or outcome.status == 0:
            return
        grow_old(work)
        again = ended_well(scene.call(work, *command.words(scene)), "the same command again")
        command.after(scene, work, again)
        check_nothing_left(work, "after the same command again")


def say(scene: Scene, words: tuple[str, ...], stream: str) -> None:
    """Run a real process with an odd stdout (or stdin): it does its work, and no traceback is seen."""
    with scene.copy() as work:
        _relabel(work)
        words = tuple(str(scene.model) if word == "MODEL" else word for word in words)
        for setting in (
            ("extract", "snow.csv", "--backbone", str(scene.model)),
            ("train", "snow.csv", "--head", "lda", "--out", "snow"),
        ):
            ended_well(scene.call(work, *setting), f"{setting[0]} snow.csv")
        status, err = STREAMS[stream](work, words)
        if "Traceback" in err or "Exception ignored" in err:
            raise PromiseError(f"exit code {status}: {err.strip().splitlines()[-1][:200]}")
        allowed = {0} if stream in ("ascii", "latin-1") else {0, 1, 2, 3, 141, -signal.SIGPIPE}
        if status not in allowed:
            raise PromiseError(f"exit code {status}: {err.strip()[-200:]}")
        if words[0] == "train" and not (work / "again" / "classifier.json").exists():
            raise PromiseError("the classifier was not saved")


def _relabel(work: Path) -> None:
    lines = (work / "films" / "train.csv").read_text().replace(",a\n", f",{LABEL}\n")
    (work / "snow.csv").write_text(lines, encoding="utf-8")


def _environment(**more: str) -> dict[str, str]:
    root = str(Path(__file__).parents[3])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": root, **more}


def _encoded(encoding: str) -> Callable[[Path, tuple[str, ...]], tuple[int, str]]:
    def run_it(work: Path, words: tuple[str, ...]) -> tuple[int, str]:
        command = [sys.executable, "-c", PROGRAM, *words]
        given = _environment(PYTHONIOENCODING=encoding)
        done = subprocess.run(command, cwd=work, env=given, capture_output=True, timeout=120)
        return done.returncode, done.stderr.decode(errors="replace")

    return run_it


def _in_shell(after: str) -> Callable[[Path, tuple[str, ...]], tuple[int, str]]:
    def run_it(work: Path, words: tuple[str, ...]) -> tuple[int, str]:
        line = f'set -o pipefail; "$0" -c "{PROGRAM}" "$@" {after}'
        command = ["bash", "-c", line, sys.executable, *words]
        done = subprocess.run(command, cwd=work, env=_environment(), capture_output=True, timeout=120)
        return done.returncode, done.stderr.decode(errors="replace")

    return run_it


STREAMS = {
    "ascii": _encoded("ascii"),
    "latin-1": _encoded("latin-1"),
    "stdout closed": _in_shell(">&-"),
    "stdout full": _in_shell(">/dev/full"),
    "a reader that has gone": _in_shell("| true"),
    "a reader that goes": _in_shell("| head -c 1 >/dev/null"),
}
SAID = {
    "predict": ("predict", "snow", "new.csv", "--backbone", "MODEL"),
    "train": ("train", "snow.csv", "--head", "lda", "--out", "again"),
}


def closed_stdin(scene: Scene) -> None:
    """Predict from a stdin that is closed."""
    with scene.copy() as work:
        status, err = _in_shell("<&-")(work, ("predict", "models/lda", "-", "--backbone", str(scene.model)))
        if "Traceback" in err or status not in (2, 3):
            raise PromiseError(f"exit code {status}: {err.strip()[-200:]}")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attacks on streams, and signals."""
    for number in (signal.SIGTERM, signal.SIGINT):
        for name in STOPPED:
            moments = range(MOMENTS // (3 if name == "compare" else 1))
            cases = [(f"moment {seed}", stop, (scene, name, number, seed)) for seed in moments]
            yield Attack(f"{number.name}: {name}", each(cases))
    cases = [(f"{stream}: {what}", say, (scene, words, stream)) for what, words in SAID.items() for stream in STREAMS]
    yield Attack("odd streams", each([*cases, ("stdin closed: predict -", closed_stdin, (scene,))]))
