"""Attack: a bit of a file is flipped, or it is cut, empty or gone. The numbers are the same, or a refusal names it.

Then `extract`, or training again, makes all as it was. Also with every digest made to match, as whoever tampers with a
file would do: then the numbers may differ, but there is no traceback, crash, hang, or memory without end.
"""

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture import damage
from benchmarks.torture.attacks.kills import COMPARE, lines
from benchmarks.torture.children import Outcome, run
from benchmarks.torture.scene import HEADS, Scene
from benchmarks.torture.verdicts import Attack, UnavailableError, Verdict

SEED = 20261124
# Files up to this size are attacked at every byte, larger ones at so many.
SMALL, LARGE_CASES = 1500, 250
# What is read again and mended again is a share of what is read.
MENDED, TRAINED = 11, 7
# Cases of one child.
CHUNK = 150
GIGABYTE = 2**30


@dataclass(frozen=True)
class Hurt:
    """What is done to a file: a bit flipped at an offset, or cut to a size (-1: the file is gone)."""

    file: str
    offset: int
    bit: int = 0
    cut: bool = False

    def __str__(self) -> str:
        if not self.cut:
            return f"bit {self.bit} of byte {self.offset:,} of {self.file} flipped"
        return f"{self.file} is gone" if self.offset < 0 else f"{self.file} cut to {self.offset:,} bytes"


def hurts(folder: Path, pattern: str, *, small: int = SMALL, large: int = LARGE_CASES, last: int = 0) -> list[Hurt]:
    """List what is done to files: every byte of small ones, a stride over large ones (or their `last` bytes), cuts."""
    chance = random.Random(SEED)
    found = []
    for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
        size, file = path.stat().st_size, str(path.relative_to(folder))
        first = max(0, size - last) if last else 0
        step = 1 if size <= small else max(1, (size - first) // large)
        offsets = range(first + chance.randrange(step), size, step)
        found += [Hurt(file, offset, chance.randrange(8)) for offset in offsets]
        found += [Hurt(file, cut, cut=True) for cut in sorted({-1, 0, 1, size // 2, size - 1})]
    return found


def strike(
    scene: Scene,
    hurt: Sequence[Hurt],
    door: Callable[..., str],
    *given: object,
    mend: bool = False,
    reseal: bool = False,
) -> Iterator[Verdict]:
    """Try some hurts, one after the other, in one child; where it crashes or hangs, the next one goes on.

    `door` is called with `given` and the hurt; with `mend` all is to be as it was after `extract`.
    """
    todo = list(hurt)
    while todo:
        with scene.copy() as work:
            log = work.parent / "verdicts"
            log.touch()
            outcome = run(
                damage.try_all, door, given, todo, log, mend, reseal, folder=work, seconds=600, memory=3 * GIGABYTE
            )
            done = [json.loads(line) for line in log.read_text().splitlines()]
        yield from (Verdict(str(case), failure) for case, failure in zip(todo, done, strict=False))
        todo = todo[len(done) :]
        if todo and (outcome.status != 0 or not done):
            yield Verdict(str(todo.pop(0)), _end(outcome))


def _end(outcome: Outcome) -> str:
    return "it hung" if outcome.status == -signal.SIGALRM else str(outcome)


def chunks(
    scene: Scene,
    hurt: Sequence[Hurt],
    door: Callable[..., str],
    *given: object,
    mend: bool = False,
    reseal: bool = False,
) -> list[Callable[[], Iterable[Verdict]]]:
    """Make strikes of so many hurts each."""

    def one(part: Sequence[Hurt]) -> Callable[[], Iterable[Verdict]]:
        return lambda: strike(scene, part, door, *given, mend=mend, reseal=reseal)

    # Each is a sample of the whole, so that some of them tell of all.
    count = -(-len(hurt) // CHUNK)
    return [one(hurt[number::count]) for number in range(count)]


def compare_again(scene: Scene, number: int) -> Iterator[Verdict]:
    """Flip a bit of a result that `compare` keeps, and compare again."""
    with scene.copy() as work:
        first = scene.call(work, *COMPARE)
        result = hurts(work, "comparisons/*/*", small=0, large=6)[number::7]
        for hurt in result:
            shutil.copytree(work / "comparisons", work.parent / "whole")
            damage.hurt_file(work, hurt)
            again = scene.call(work, *COMPARE)
            shutil.rmtree(work / "comparisons")
            shutil.move(work.parent / "whole", work / "comparisons")
            if again.status != 0:
                named = Path(hurt.file).name in again.err and again.refused
                yield Verdict(str(hurt), "" if named else str(again))
            else:
                yield Verdict(str(hurt), "" if lines(again) == lines(first) else "another leaderboard")
    if not result:
        raise UnavailableError("compare keeps no results")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attacks on cache and classifiers."""
    reading, training = damage.read_rows, damage.train_lda
    right = scene.rows, str(scene.model)
    for pattern in ("spec.json", "commits/*", "extractions/*", "shards/*"):
        hurt = hurts(scene.start, f"cache/*/*/{pattern}")
        yield Attack(f"flip: cache, {pattern}, read", chunks(scene, hurt, reading, *right))
        mended = chunks(scene, hurt[::MENDED], reading, *right, mend=True)
        yield Attack(f"flip: cache, {pattern}, then `extract`", mended)
        yield Attack(f"flip: cache, {pattern}, `train`", chunks(scene, hurt[::TRAINED], training))
    footers = hurts(scene.start, "cache/*/*/shards/*", last=2500, large=120)
    tampered = chunks(scene, footers, damage.train_any, reseal=True)
    yield Attack("tamper: cache, footers of shards, digests made to match, `train`", tampered)
    yield Attack(
        "flip: cache, derived/, `train`", chunks(scene, hurts(scene.start, "cache/*/*/derived/*")[::3], training)
    )
    yield Attack("flip: comparisons, `compare`", [lambda n=n: compare_again(scene, n) for n in range(7)])
    for head in HEADS:
        hurt = hurts(scene.start, f"models/{head}/*")
        door = damage.predict_like
        yield Attack(f"flip: classifier of {head}", chunks(scene, hurt, door, f"models/{head}", scene.numbers[head]))
        some = hurt[:: 3 if head in ("gbdt", "mlp") else 5]
        tampered = chunks(scene, some, damage.predict_any, f"models/{head}", reseal=True)
        yield Attack(f"tamper: classifier of {head}, digests made to match", tampered)
        mended = chunks(scene, hurt[::101], damage.train_again, f"models/{head}", head, scene.numbers[head])
        yield Attack(f"flip: classifier of {head}, trained again", mended)
