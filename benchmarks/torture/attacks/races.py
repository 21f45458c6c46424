"""Attack: several processes do the same at once, and wait here and there. All end well, nothing is lost or left."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.torture import doors, faults
from benchmarks.torture.attacks.kills import COMPARE, damaged_shard, lines
from benchmarks.torture.children import Fault, Outcome, PromiseError, ended_well, start
from benchmarks.torture.scene import Scene, check_nothing_left
from benchmarks.torture.verdicts import Attack, each

ROUNDS = 12


def meet(
    scene: Scene,
    work: Path,
    commands: Sequence[tuple[Any, ...]],
    *,
    faults: Sequence[Fault] = (),
    seed: int | None = None,
    longest: float = 0.15,
) -> list[Outcome]:
    """Run commands at once and see that all end well; with a seed each waits at its steps for times of its own."""
    children = [
        start(doors.command, *words, folder=work, faults=[*faults, *_waits(work, seed, number, longest)])
        for number, words in enumerate(commands)
    ]
    outcomes = [child.wait(120) for child in children]
    for number, outcome in enumerate(outcomes, start=1):
        ended_well(outcome, f"number {number} of {len(outcomes)} at once")
    return outcomes


def _waits(work: Path, seed: int | None, number: int, longest: float) -> list[Fault]:
    # One of them is slow: what it saw is no longer so when it acts.
    slow = seed is not None and number == seed % 2
    return [] if seed is None else [partial(faults.stutter, work, 100 * seed + number, longest if slow else 0.02)]


def extractions(scene: Scene, work: Path, count: int, seed: int) -> None:
    """Extract everything, several at once."""
    shutil.rmtree(work / "cache")
    meet(scene, work, [("extract", "films", "--backbone", scene.model)] * count, seed=seed)
    scene.check_rows(work, f"after {count} extractions at once")


def repairs(scene: Scene, work: Path, count: int, seed: int) -> None:
    """Repair one damaged shard, several at once."""
    damaged_shard(scene, work)
    # One may have seen the damage, and act on it when another has repaired it: so long takes a repair.
    meet(scene, work, [("extract", "films", "--backbone", scene.model)] * count, seed=seed, longest=0.8)
    scene.check_rows(work, f"after {count} repairs at once")


def trainings(scene: Scene, work: Path, count: int, seed: int) -> None:
    """Train into one folder, several at once; what is derived beside the cache is made by all of them."""
    for derived in work.glob("cache/*/*/derived"):
        shutil.rmtree(derived)
    meet(scene, work, [("train", "films", "--head", "lda", "--out", "models/old")] * count, seed=seed)
    scene.check_numbers(work, "models/old", "lda", f"after {count} trainings at once")


def comparisons(scene: Scene, work: Path, count: int, seed: int) -> None:
    """Compare the same, several at once."""
    outcomes = meet(scene, work, [(*COMPARE, "--out", "models/best")] * count, seed=seed)
    if any(lines(outcome) != lines(outcomes[0]) for outcome in outcomes):
        raise PromiseError("the leaderboards differ")


def predictions(scene: Scene, work: Path, count: int, seed: int) -> None:
    """Write predictions to one file, several at once."""
    meet(scene, work, [("predict", "models/lda", "new.csv", "--out", "out.csv")] * count, seed=seed)
    if (work / "out.csv").read_bytes() != scene.labelled["csv"]:
        raise PromiseError("out.csv is not what one process writes")


RACES: dict[str, tuple[Callable[[Scene, Path, int, int], None], int]] = {
    "4 extractions": (extractions, 4),
    "8 extractions": (extractions, 8),
    "2 repairs": (repairs, 2),
    "4 repairs": (repairs, 4),
    "2 trainings, one --out": (trainings, 2),
    "2 comparisons": (comparisons, 2),
    "3 predictions, one --out": (predictions, 3),
}


def race(scene: Scene, name: str, seed: int) -> None:
    """Have a race and see what it leaves."""
    run_race, count = RACES[name]
    with scene.copy() as work:
        run_race(scene, work, count, seed)
        check_nothing_left(work, f"after {name} at once")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return every race in several rounds."""
    for name in RACES:
        rounds = range(4 if name == "2 comparisons" else ROUNDS)
        yield Attack(f"at once: {name}", each((f"round {seed}", race, (scene, name, seed)) for seed in rounds))
