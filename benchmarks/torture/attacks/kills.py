"""Attack: a kill at a write step, or in the middle of a write. The same command then ends as if nothing had been.

What was there before must be whole until then: the old or the new classifier, the old or the new file.
"""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.torture import doors, faults
from benchmarks.torture.children import Outcome, PromiseError, ended_well, run
from benchmarks.torture.scene import Scene, check_nothing_left, grow_old
from benchmarks.torture.verdicts import Attack, each

COMPARE = ("compare", "films", "--fusion", "mean", "--head", "lda", "--layers", "-2,-1", "--folds", "2", "--json")
# A torn file has so many bytes: none, and some.
TORN = (0, 200)


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        words: of the command line.
        prepare: makes the state in which it begins.
        between: checks what must be true after a kill at any moment.
        after: checks what must be true when it has ended well.
        finished: tells that the killed one had done all of its work, so that it cannot be run again.
    """

    words: Callable[[Scene], tuple[Any, ...]]
    prepare: Callable[[Scene, Path], None]
    between: Callable[[Scene, Path], None]
    after: Callable[[Scene, Path, Outcome], None]
    finished: Callable[[Scene, Path], bool] = lambda scene, work: False


def strike(scene: Scene, name: str, share: float, size: int | None = None) -> None:
    """Kill a command at the step at `share` of all; with `size`, at the next write beyond so many bytes of a file."""
    steps = list_steps(scene, name)
    strike_at(scene, name, min(int(share * len(steps)), len(steps) - 1), size)


def strike_at(scene: Scene, name: str, number: int, size: int | None) -> None:
    """Kill a command at the step of this number, see what is there, and run it again."""
    command = COMMANDS[name]
    with scene.copy() as work:
        command.prepare(scene, work)
        fault = (
            partial(faults.kill_at, work, number) if size is None else partial(faults.tear_after, work, number, size)
        )
        outcome = scene.call(work, *command.words(scene), faults=[fault])
        if outcome.status not in (0, -signal.SIGKILL, -signal.SIGXFSZ):
            raise PromiseError(f"it was to be killed, and {outcome}")
        command.between(scene, work)
        if outcome.status == 0 or command.finished(scene, work):
            return
        grow_old(work)
        again = ended_well(scene.call(work, *command.words(scene)), "the same command again")
        command.after(scene, work, again)
        check_nothing_left(work, "after the same command again")


def list_steps(scene: Scene, name: str) -> list[str]:
    """List the write steps of a command that nobody disturbs."""
    with scene.copy() as work, tempfile.NamedTemporaryFile() as log:
        COMMANDS[name].prepare(scene, work)
        fault = partial(faults.record_steps, work, Path(log.name))
        ended_well(scene.call(work, *COMMANDS[name].words(scene), faults=[fault]), f"{name}, undisturbed")
        return Path(log.name).read_text().splitlines()


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attack on every command: a kill at every step, and torn writes from every step on."""
    for name in COMMANDS:
        steps = list_steps(scene, name)
        cases = [
            (f"killed before step {number + 1}, {step}", strike_at, (scene, name, number, None))
            for number, step in enumerate(steps)
        ]
        cases += [
            (f"killed after {size} bytes of the first write after step {number + 1}, {step}", strike_at, given)
            for number, step in enumerate(steps)
            for size in TORN
            for given in [(scene, name, number, size)]
        ]
        yield Attack(f"kill at every write step: {name}", each(cases))


def nothing(scene: Scene, work: Path, *_: Any) -> None:
    """Need nothing."""


def without_cache(scene: Scene, work: Path) -> None:
    """Begin without embeddings."""
    shutil.rmtree(work / "cache")


def damaged_shard(scene: Scene, work: Path) -> None:
    """Begin with one bit of one shard flipped."""
    shard = min(work.glob("cache/*/*/shards/*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)


def rows_are_right(scene: Scene, work: Path, _: Outcome) -> None:
    """See that the rows are right."""
    scene.check_rows(work, "after the same command again")


def rows_or_refusal(scene: Scene, work: Path) -> None:
    """See that whoever reads now gets the right rows or is refused."""
    outcome = run(doors.rows, folder=work)
    if outcome.crashed or (outcome.status == 0 and outcome.value != scene.rows):
        raise PromiseError(f"reading the rows after the kill: {'other rows' if outcome.status == 0 else outcome}")


def loads(folder: str, *allowed: str) -> Callable[[Scene, Path], None]:
    """Make a check that a classifier says what one of `allowed` says; `none`: it may be missing."""

    def check(scene: Scene, work: Path) -> None:
        outcome = run(doors.numbers, folder, folder=work)
        if outcome.crashed or (outcome.refused and "none" not in allowed):
            raise PromiseError(f"loading the classifier after the kill: {outcome}")
        right = [scene.numbers[name] for name in allowed if name != "none"]
        if outcome.status == 0 and outcome.value not in right:
            raise PromiseError("after the kill the classifier gives other numbers")

    return check


def says(folder: str, like: str) -> Callable[[Scene, Path, Outcome], None]:
    """Make a check that a classifier says what another one does."""
    return lambda scene, work, _: scene.check_numbers(work, folder, like, "after the same command again")


def labelled_or_not(suffix: str) -> Callable[..., None]:
    """Make a check that the file is what it was or has all predictions."""

    def check(scene: Scene, work: Path, *_: Any) -> None:
        content = (work / f"new.{suffix}").read_bytes() if (work / f"new.{suffix}").exists() else b""
        if content not in ((scene.start / f"new.{suffix}").read_bytes(), scene.labelled[suffix]):
            raise PromiseError(f"new.{suffix}, which it read and replaced, is neither the old nor the new file")

    return check


def same_lines(scene: Scene, work: Path, outcome: Outcome) -> None:
    """See that the leaderboard is the one of an undisturbed run, but for the times."""
    with scene.copy() as undisturbed:
        right = ended_well(scene.call(undisturbed, *COMPARE), "compare, undisturbed")
    if lines(outcome) != lines(right):
        raise PromiseError("compare gives another leaderboard")


def lines(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the leaderboard that `compare --json` printed, without times."""
    return [{**line, "fit_seconds": 0} for line in json.loads(outcome.out)["lines"]]


COMMANDS = {
    "extract": Command(
        lambda scene: ("extract", "films", "--backbone", scene.model), without_cache, rows_or_refusal, rows_are_right
    ),
    "extract, a shard damaged": Command(
        lambda scene: ("extract", "films", "--backbone", scene.model), damaged_shard, rows_or_refusal, rows_are_right
    ),
    "train --out, new": Command(
        lambda _: ("train", "films", "--head", "lda", "--out", "models/fresh"),
        nothing,
        loads("models/fresh", "lda", "none"),
        says("models/fresh", "lda"),
    ),
    "train --out, replacing": Command(
        lambda _: ("train", "films", "--head", "lda", "--out", "models/old"),
        nothing,
        loads("models/old", "lda", "old"),
        says("models/old", "lda"),
    ),
    **{
        f"predict new.{suffix} --out new.{suffix}": Command(
            lambda _, suffix=suffix: ("predict", "models/lda", f"new.{suffix}", "--out", f"new.{suffix}"),
            nothing,
            labelled_or_not(suffix),
            labelled_or_not(suffix),
            lambda scene, work, suffix=suffix: (work / f"new.{suffix}").read_bytes() == scene.labelled[suffix],
        )
        for suffix in ("csv", "parquet")
    },
    "compare": Command(
        lambda _: (*COMPARE, "--out", "models/best"),
        nothing,
        nothing,
        same_lines,
    ),
}
