"""Attack: directories, pipes and symbolic links where files belong, and files of another cache where ours belong.

Training and prediction give the right numbers or a refusal that names the thing, nothing hangs, nothing outside is read
into a result or changed; `extract` makes it right, or a person does who removes what was named.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.torture import doors
from benchmarks.torture.attacks.kills import COMPARE
from benchmarks.torture.children import Outcome, PromiseError, ended_well, run
from benchmarks.torture.damage import names
from benchmarks.torture.scene import HEADS, Scene
from benchmarks.torture.verdicts import Attack, each

SECRET = "what lies outside stays as it is"
SECONDS = 60.0


def _folder(place: Path, outside: Path) -> None:
    (place / "inside").mkdir(parents=True)


def _link(target: str) -> Callable[[Path, Path], None]:
    return lambda place, outside: place.symlink_to(outside / target if target else outside)


THINGS: dict[str, Callable[[Path, Path], None]] = {
    "a directory": _folder,
    "a pipe": lambda place, outside: os.mkfifo(place),
    "a link to /etc/passwd": lambda place, outside: place.symlink_to("/etc/passwd"),
    "a link to a file outside": _link("file"),
    "a link to a folder outside": _link(""),
    "a link to nothing": _link("nothing"),
}
# What a foreign thing is called that stands beside ours.
BESIDE = {
    "commits": ("foreign.json", "0123456789abcdef01234567.json"),
    "shards": ("foreign.parquet", "0123456789abcdef01234567-01234567.parquet"),
    "derived": ("foreign.safetensors", "0123456789abcdef01234567-0123456789abcdef.safetensors"),
    "extractions": ("foreign.json", "29991231T000000.000000Z-abcd.json"),
}


def in_cache(scene: Scene, thing: str, folder: str, name: str) -> None:
    """Put a thing into a cache, beside our files or in the place of one (no name); train and extract."""
    with scene.copy() as work:
        outside = _outside(work)
        (cache,) = work.glob("cache/*/*")
        place = _place(cache / folder, name)
        THINGS[thing](place, outside)
        _right_or_named(
            run(doors.trained, "lda", "models/fresh", folder=work, seconds=SECONDS),
            scene.judged,
            place,
            "train",
        )
        extracted = scene.extract(work, seconds=SECONDS)
        if extracted.status != 0:
            _named(extracted, place, "extract")
            _remove(place)
            ended_well(scene.extract(work), f"extract without the {place.name} that it named")
        scene.check_rows(work, "after extract")
        _unharmed(outside)


def in_classifier(scene: Scene, thing: str, head: str, name: str) -> None:
    """Put a thing into a classifier's folder, beside our files or in the place of one; predict, and train over it."""
    with scene.copy() as work:
        outside = _outside(work)
        place = work / "models" / head / name
        if place.exists():
            place.unlink()
        THINGS[thing](place, outside)
        outcome = run(doors.numbers, f"models/{head}", folder=work, seconds=SECONDS)
        _right_or_named(outcome, scene.numbers[head], place, "predict")
        words = ("train", "films", "--head", head, "--out", f"models/{head}")
        trained = scene.call(work, *words, seconds=SECONDS)
        if trained.status == 0:
            scene.check_numbers(work, f"models/{head}", head, "after training again")
        else:
            _named(trained, place, "train --out")
        _unharmed(outside)


def in_comparisons(scene: Scene, thing: str) -> None:
    """Put a thing in the place of a result, and beside it; compare."""
    with scene.copy() as work:
        outside = _outside(work)
        ended_well(scene.call(work, *COMPARE), "compare")
        (folder,) = work.glob("comparisons/*")
        place = _place(folder, "")
        THINGS[thing](place, outside)
        THINGS[thing](folder / "foreign.json", outside)
        outcome = scene.call(work, *COMPARE, seconds=SECONDS)
        if outcome.status != 0:
            _named(outcome, place, "compare")
        _unharmed(outside)


def of_another(scene: Scene, options: tuple[str, ...], taken: str) -> None:
    """Put files of the cache of another fingerprint over ours; train and extract."""
    with scene.copy() as work:
        (ours,) = work.glob("cache/*/*")
        ended_well(scene.extract(work, "--cache", "other", *options), "extracting the other cache")
        (other,) = work.glob("other/*/*")
        if taken == "spec.json":
            shutil.copy(other / taken, ours)
        elif taken == "a new shard":
            _take(ours, other, _commits(ours)[0].name, beside=True)
        else:
            for commit in _commits(ours)[: 1 if taken == "a shard" else None]:
                _take(ours, other, commit.name)
        shutil.rmtree(work / "other")
        outcome = run(doors.rows, folder=work, seconds=SECONDS)
        if outcome.crashed or (outcome.status == 0 and outcome.value != scene.rows):
            raise PromiseError(f"train: {outcome if outcome.crashed else 'other rows, and not a word'}")
        ended_well(scene.extract(work, seconds=SECONDS), "extract")
        scene.check_rows(work, "after extract")


def _take(ours: Path, other: Path, commit: str, *, beside: bool = False) -> None:
    # Equal texts have equal commit names in every cache; the commit says which shard is meant, and its digest.
    stem = Path(commit).stem
    theirs = next(other.glob(f"shards/{stem}*"))
    if beside:
        # As a commit of its own name that is read first.
        shutil.copy(theirs, ours / "shards")
        shutil.copy(other / "commits" / commit, ours / "commits" / ("0" * len(stem) + ".json"))
        return
    for shard in ours.glob(f"shards/{stem}*"):
        shard.unlink()
    shutil.copy(theirs, ours / "shards")
    shutil.copy(other / "commits" / commit, ours / "commits")


def escaping(scene: Scene, path: str) -> None:
    """Have a commit name a shard outside of the cache."""
    with scene.copy() as work:
        (cache,) = work.glob("cache/*/*")
        commit = _commits(cache)[0]
        shard = next(cache.glob(f"shards/{commit.stem}*"))
        elsewhere = work / "elsewhere.parquet"
        shutil.copy(shard, elsewhere)
        target = str(elsewhere) if path == "absolute" else "../../../elsewhere.parquet"
        commit.write_text(commit.read_text().replace(f"shards/{shard.name}", target))
        outcome = run(doors.rows, folder=work)
        if outcome.status == 0:
            raise PromiseError("a commit's path out of the cache is followed")
        _named(outcome, commit, "train")
        ended_well(scene.extract(work), "extract")
        scene.check_rows(work, "after extract")
        if not elsewhere.exists():
            raise PromiseError("extract deleted a file outside of the cache")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attacks with foreign things."""
    for folder, beside in BESIDE.items():
        cases = [
            (f"{thing} {f'called {name}' if name else 'in the place of ours'}", in_cache, (scene, thing, folder, name))
            for thing in THINGS
            for name in (*beside, "")
        ]
        yield Attack(f"foreign: in {folder}/", each(cases))
    cases = [(f"{thing} as spec.json", in_cache, (scene, thing, ".", "spec.json")) for thing in THINGS]
    yield Attack("foreign: as spec.json", each(cases))
    for head in HEADS:
        files = sorted(path.name for path in (scene.start / "models" / head).iterdir())
        cases = [
            (f"{thing} as {name}", in_classifier, (scene, thing, head, name))
            for thing in THINGS
            for name in (*files, "foreign.txt")
            if head == "lda" or name.startswith("head") or name == "foreign.txt"
        ]
        yield Attack(f"foreign: in the classifier of {head}", each(cases))
    yield Attack("foreign: in comparisons/", each((thing, in_comparisons, (scene, thing)) for thing in THINGS))
    others = {
        "another pooling": ("--pooling", "max"),
        "other layers": ("--layers", "2,3"),
        "another dtype": ("--dtype", "float32"),
        "another template": ("--template", "It is {text}"),
    }
    given: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [
        (f"{taken} of {what}", of_another, (scene, options, taken))
        for what, options in others.items()
        for taken in ("a shard", "a new shard", "all shards", "spec.json")
    ]
    given += [(f"a commit that names an {path} path", escaping, (scene, path)) for path in ("absolute", "upward")]
    yield Attack("foreign: files of another cache, digests and all", each(given))


def _commits(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("commits/*.json") if path.is_file())


def _outside(work: Path) -> Path:
    outside = work.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text(SECRET)
    return outside


def _place(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    place = folder / name if name else max(folder.iterdir())
    if place.exists():
        place.unlink()
    return place


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _right_or_named(outcome: Outcome, right: Any, place: Path, what: str) -> None:
    if outcome.status == 0 and outcome.value != right:
        raise PromiseError(f"{what}: other numbers, and not a word")
    if outcome.status != 0:
        _named(outcome, place, what)


def _named(outcome: Outcome, place: Path, what: str) -> None:
    if not outcome.refused:
        raise PromiseError(f"{what}: {outcome}")
    if not names(outcome.err, place.name):
        raise PromiseError(f"{what}: the refusal does not name {place.name}: {outcome}")


def _unharmed(outside: Path) -> None:
    if [path.name for path in outside.iterdir()] != ["file"] or (outside / "file").read_text() != SECRET:
        raise PromiseError("something outside was changed")
