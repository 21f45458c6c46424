"""Attacks: a full disk, a place that may only be read. One line of ours, nothing torn counts, what was there is whole.

The disk is a real one of 1.5 MB in memory (tmpfs) where one can be mounted; elsewhere the kernel fails writes beyond a
size, which the table says. Root ignores permissions, so that only a read-only mount is read-only.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.torture import faults
from benchmarks.torture.attacks.kills import COMPARE, lines
from benchmarks.torture.children import Outcome, PromiseError, ended_well, was_refused
from benchmarks.torture.scene import Scene, check_nothing_left
from benchmarks.torture.verdicts import Attack, UnavailableError, each

DISK = "1500k"
# Bytes that are free; the cache needs 208,000, a classifier of lda 11,000, the predictions 20,000.
ROOM = {
    "extract": (0, 4096, 20_000, 50_000, 60_000, 100_000, 150_000, 190_000, 204_000),
    "train --out, new": (0, 4096, 8192, 12_288, 16_384),
    "train --out, replacing": (0, 4096, 8192, 12_288, 16_384),
    "predict --out": (0, 4096, 8192),
    "compare": (0, 4096, 12_288, 20_480, 28_672),
}


def can_mount() -> bool:
    """Return whether this process may mount."""
    return os.geteuid() == 0 and shutil.which("mount") is not None and _tmpfs_works()


def _tmpfs_works() -> bool:
    made = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return made.returncode == 0


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Return a folder that is a disk of its own."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "torture", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Make a folder read-only."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, room: int) -> Path:
    """Fill a disk but for so many bytes with one file."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    return filler


def full(scene: Scene, name: str, room: int) -> None:
    """Run a command whose output does not fit; then make room and run it again."""
    with scene.copy() as work:
        if not can_mount():
            _limited(scene, work, name, room)
            return
        with small_disk(work / "disk") as disk:
            words = prepare(scene, work, name)
            filler = fill(disk, room)
            outcome = scene.call(work, *words)
            if outcome.status != 0:
                was_refused(outcome, "with no room")
                check_nothing_left(work, "after the disk was full")
                untouched(scene, work, name)
            filler.unlink()
            if outcome.status != 0:
                outcome = ended_well(scene.call(work, *words), "the same command with room")
            finished(scene, work, name, outcome)
            check_nothing_left(work, "at the end")


def _limited(scene: Scene, work: Path, name: str, room: int) -> None:
    (work / "disk").mkdir()
    words = prepare(scene, work, name)
    outcome = scene.call(work, *words, faults=[partial(faults.limit_files, room)])
    if outcome.status != 0:
        was_refused(outcome, "with no room (by RLIMIT_FSIZE)")
        check_nothing_left(work, "after a write failed (by RLIMIT_FSIZE)")
        untouched(scene, work, name)
        outcome = ended_well(scene.call(work, *words), "the same command with room")
    finished(scene, work, name, outcome)


def prepare(scene: Scene, work: Path, name: str) -> tuple[Any, ...]:
    """Lay out what a command begins with and give its words; it writes to `disk`."""
    if name == "extract":
        shutil.rmtree(work / "cache")
        (work / "cache").symlink_to("disk")
        return "extract", "films", "--backbone", scene.model
    if name == "compare":
        return *COMPARE, "--results", "disk/comparisons", "--out", "disk/best"
    if name == "predict --out":
        shutil.copy(work / "new.csv", work / "disk")
        return "predict", "models/lda", "disk/new.csv", "--out", "disk/new.csv"
    if name == "train --out, replacing":
        shutil.copytree(work / "models" / "old", work / "disk" / "lda")
    return "train", "films", "--head", "lda", "--out", "disk/lda"


def untouched(scene: Scene, work: Path, name: str) -> None:
    """See that what was there is there."""
    if name == "train --out, replacing":
        scene.check_numbers(work, "disk/lda", "old", "after the disk was full")
    if name == "train --out, new" and (work / "disk" / "lda").exists():
        raise PromiseError("a classifier that was not written whole has its name")
    if name == "predict --out" and (work / "disk" / "new.csv").read_bytes() != (work / "new.csv").read_bytes():
        raise PromiseError("the input, which was to be replaced, is lost")


def finished(scene: Scene, work: Path, name: str, outcome: Outcome) -> None:
    """See that all is there."""
    if name == "extract":
        scene.check_rows(work, "with room")
    elif name == "compare":
        with scene.copy() as undisturbed:
            if lines(outcome) != lines(ended_well(scene.call(undisturbed, *COMPARE), "compare, undisturbed")):
                raise PromiseError("compare gives another leaderboard")
    elif name == "predict --out":
        if (work / "disk" / "new.csv").read_bytes() != scene.labelled["csv"]:
            raise PromiseError("other predictions with room")
    else:
        scene.check_numbers(work, "disk/lda", "lda", "with room")


def full_cache(scene: Scene, room: int) -> None:
    """Train from a cache whose disk is full: what would be derived and stored beside it is not needed."""
    with scene.copy() as work, _disk(work) as disk:
        shutil.copytree(work / "cache", disk, dirs_exist_ok=True)
        shutil.rmtree(work / "cache")
        (work / "cache").symlink_to("disk")
        for derived in disk.glob("*/*/derived"):
            shutil.rmtree(derived)
        fill(disk, room)
        words = ("train", "films", "--head", "lda", "--out", "models/fresh")
        ended_well(scene.call(work, *words), "training from a cache on a full disk")
        scene.check_numbers(work, "models/fresh", "lda", "after training from a cache on a full disk")
        check_nothing_left(work, "after training from a cache on a full disk")


@contextmanager
def _disk(work: Path) -> Iterator[Path]:
    if not can_mount():
        raise UnavailableError("needs a disk of its own, and nothing can be mounted here")
    with small_disk(work / "disk") as disk:
        yield disk


def locked(scene: Scene, place: str, words: tuple[Any, ...], expected: str) -> None:
    """Run a command while a place is read-only: it works, or is refused, or is refused before any model or fit."""
    if not can_mount():
        raise UnavailableError("needs a read-only mount, and nothing can be mounted here")
    with scene.copy() as work:
        for derived in work.glob("cache/*/*/derived") if expected == "works" else ():
            shutil.rmtree(derived)
        with read_only(work / place):
            outcome = scene.call(work, *words, faults=[faults.tell_work])
        if expected == "works":
            ended_well(outcome, f"{place} is read-only")
        else:
            was_refused(outcome, f"{place} is read-only")
        if expected == "refused before" and "work began" in outcome.err:
            raise PromiseError(f"{place} is read-only, and it was refused after the work: {outcome}")
        if "train" in words and expected == "works":
            scene.check_numbers(work, "fresh", "lda", "after training from a read-only cache")
        check_nothing_left(work, f"though {place} is read-only")


def locked_cases(scene: Scene) -> dict[str, tuple[Scene, str, tuple[Any, ...], str]]:
    """Return what is done with which place read-only."""
    train = "train", "films", "--head", "lda", "--out"
    new = "predict", "models/lda", "new.csv", "--out"
    more = "extract", "films", "--backbone", scene.model, "--pooling", "max"
    return {
        "train from a read-only cache": (scene, "cache", (*train, "fresh"), "works"),
        "predict from a read-only cache": (scene, "cache", ("predict", "models/lda", "films"), "works"),
        "predict with a read-only classifier": (scene, "models", ("predict", "models/lda", "films"), "works"),
        "extract into a read-only cache": (scene, "cache", more, "refused before"),
        "train into read-only models": (scene, "models", (*train, "models/fresh"), "refused before"),
        "train over a read-only classifier": (scene, "models", (*train, "models/old"), "refused before"),
        "predict into a read-only folder": (scene, "films", (*new, "films/out.csv"), "refused before"),
        "compare into a read-only folder": (scene, "films", (*COMPARE, "--results", "films/r"), "refused before"),
        "compare, its best into a read-only folder": (
            scene,
            "models",
            (*COMPARE, "--out", "models/b"),
            "refused before",
        ),
    }


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attacks on disks."""
    how = "tmpfs" if can_mount() else "RLIMIT_FSIZE"
    for name, rooms in ROOM.items():
        cases = [(f"{room:,} bytes free", full, (scene, name, room)) for room in rooms]
        yield Attack(f"full disk ({how}): {name}", each(cases))
    cases = [(f"{room:,} bytes free", full_cache, (scene, room)) for room in (0, 4096)]
    yield Attack(f"full disk ({how}): the cache that is trained from", each(cases))
    yield Attack("read-only places", each((case, locked, given) for case, given in locked_cases(scene).items()))
