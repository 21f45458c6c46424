"""Attack: a file system without hard links, or one that loses the reply to one. The same rows, one commit per shard."""

import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.torture import faults
from benchmarks.torture.attacks.disks import can_mount
from benchmarks.torture.attacks.races import meet
from benchmarks.torture.children import Fault, PromiseError, ended_well
from benchmarks.torture.scene import Scene, check_nothing_left
from benchmarks.torture.verdicts import Attack, UnavailableError, each

FAULTS: dict[str, Fault] = {
    "EPERM": partial(faults.refuse_links, errno.EPERM),
    "EOPNOTSUPP": partial(faults.refuse_links, errno.EOPNOTSUPP),
    "a lost reply": faults.lose_replies,
}
COUNTS = ("from nothing", "resumed", "nothing new", "8 at once")


def extract(scene: Scene, fault: str, count: str) -> None:
    """Extract with links that fail in this way."""
    with scene.copy() as work:
        _lay_out(work, count)
        if count == "8 at once":
            meet(scene, work, [("extract", "films", "--backbone", scene.model)] * 8, faults=[FAULTS[fault]])
        else:
            ended_well(scene.extract(work, faults=[FAULTS[fault]]), f"links fail with {fault}")
        _check(scene, work)


def on_fat(scene: Scene, count: str) -> None:
    """Extract into a real FAT file system."""
    with scene.copy() as work, _fat(work) as disk:
        _lay_out(work, count)
        if (work / "cache").exists():
            shutil.copytree(work / "cache", disk, dirs_exist_ok=True)
            shutil.rmtree(work / "cache")
        (work / "cache").symlink_to(disk)
        meet(scene, work, [("extract", "films", "--backbone", scene.model)] * (8 if count == "8 at once" else 1))
        _check(scene, work)


def train(scene: Scene, fault: str) -> None:
    """Train a classifier and compare with links that fail."""
    with scene.copy() as work:
        for derived in work.glob("cache/*/*/derived"):
            shutil.rmtree(derived)
        words = ("train", "films", "--head", "lda", "--out", "models/old")
        ended_well(scene.call(work, *words, faults=[FAULTS[fault]]), f"training, links fail with {fault}")
        scene.check_numbers(work, "models/old", "lda", f"where links fail with {fault}")
        check_nothing_left(work, f"where links fail with {fault}")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attacks on links."""
    for fault in FAULTS:
        cases = [(count, extract, (scene, fault, count)) for count in COUNTS]
        yield Attack(f"hard links: {fault}", each([*cases, ("train", train, (scene, fault))]))
    yield Attack("no hard links: a real FAT", each([(count, on_fat, (scene, count)) for count in COUNTS]))


def _lay_out(work: Path, count: str) -> None:
    if count in ("from nothing", "8 at once"):
        shutil.rmtree(work / "cache")
    if count == "resumed":
        (commit, *_) = sorted(work.glob("cache/*/*/commits/*"))
        for shard in work.glob(f"cache/*/*/shards/{commit.stem}*"):
            shard.unlink()
        commit.unlink()


def _check(scene: Scene, work: Path) -> None:
    scene.check_rows(work, "where links fail")
    check_nothing_left(work, "where links fail")
    commits, shards = (len(list(work.glob(f"cache/*/*/{folder}/*"))) for folder in ("commits", "shards"))
    whole = len(list(scene.start.glob("cache/*/*/commits/*")))
    if not commits == shards == whole:
        raise PromiseError(f"{commits} commits and {shards} shards where there should be {whole} of each")


@contextmanager
def _fat(work: Path) -> Iterator[Path]:
    maker = shutil.which("mkfs.vfat")
    if maker is None or not can_mount():
        raise UnavailableError("needs mkfs.vfat and a mount")
    disk = work / "disk"
    disk.mkdir()
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(16 << 20)
        subprocess.run([maker, image.name], check=True, capture_output=True)
        if subprocess.run(["mount", "-o", "loop", image.name, disk], capture_output=True).returncode:
            raise UnavailableError("a FAT file system cannot be mounted here")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)
