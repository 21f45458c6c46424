"""Attack: damaged and hostile data files, and options that nobody should give. It works, or one line says why not."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.torture import damage, faults
from benchmarks.torture.attacks.flips import chunks, hurts
from benchmarks.torture.children import Outcome, PromiseError, ended_well, run, was_refused
from benchmarks.torture.scene import Scene, make_texts
from benchmarks.torture.verdicts import Attack, each

FORMATS = ("csv", "tsv", "jsonl", "parquet")
LARGE = 400
JOB = 'backbone = "minilm"\nlayers = [-2, -1]\npooling = "mean"\nmax_length = 64\n'
MEGABYTE = 2**20


@dataclass(frozen=True)
class Hostile:
    """A data file.

    Attributes:
        name: of the file.
        content: of it.
        check: what must be true of how `extract` and `train` ended, beside that each works or names the file.
        memory: bytes that each may take beyond those of the program.
        seconds: that each may take.
    """

    name: str
    content: Callable[[], bytes]
    check: Callable[[Outcome, Outcome | None], str] = lambda extracted, trained: ""
    memory: int = 0
    seconds: float = 60.0


def csv(rows: list[tuple[str, str]], *, head: str = "text,label", end: str = "\n") -> Callable[[], bytes]:
    """Make a CSV file."""
    return lambda: (end.join([head, *(f'"{text}","{label}"' for text, label in rows)]) + end).encode()


def jsonl(rows: list[dict[str, Any]]) -> Callable[[], bytes]:
    """Make a JSONL file."""
    return lambda: ("\n".join(map(json.dumps, rows)) + "\n").encode()


def relabelled(*labels: str, count: int = 90) -> list[tuple[str, str]]:
    """Make texts with other labels."""
    return [(text, labels[number % len(labels)]) for number, (text, _) in enumerate(make_texts(count, seed=1))]


def _says_why(extracted: Outcome, trained: Outcome | None) -> str:
    return "it says that a file with rows has none" if "has no rows" in extracted.err else ""


def _classes(count: int) -> Callable[[Outcome, Outcome | None], str]:
    def check(extracted: Outcome, trained: Outcome | None) -> str:
        if trained is None or trained.status != 0:
            return ""
        found = json.loads(trained.out)["classes"]
        return "" if found == count else f"{count} labels became {found} classes"

    return check


def _names_column(extracted: Outcome, trained: Outcome | None) -> str:
    return "" if extracted.status == 0 or "extra" in extracted.err else "the column that is at fault is not named"


PLAIN = relabelled("a", "b", "c")
HOSTILE = (
    Hostile("cr.csv", csv(PLAIN, end="\r"), _says_why),
    Hostile("bom.csv", lambda: b"\xef\xbb\xbf" + csv(PLAIN)()),
    Hostile("utf16.csv", lambda: csv(PLAIN)().decode().encode("utf-16")),
    Hostile("nul.csv", csv([(text + "\0", label) for text, label in PLAIN])),
    Hostile("nul-labels.csv", csv(relabelled("a", "a\0", "b")), _classes(3)),
    Hostile("space-labels.csv", csv(relabelled("a", "a ", "b")), _classes(3)),
    Hostile("long-label.csv", csv(relabelled("a", "b", "c" * 30_000, count=3000)), memory=1200 * MEGABYTE),
    Hostile("long-text.csv", csv([*PLAIN, ("word " * 2_000_000, "a")]), memory=900 * MEGABYTE, seconds=60),
    Hostile("escapes.csv", csv(relabelled("\x1b[31mred\x07", "\x1b]0;title\x07", "c"))),
    Hostile("newlines.csv", csv(relabelled("a\nb", "a\r\nc", "c")), _classes(3)),
    Hostile("formulas.csv", csv(relabelled("=1+1", "@sum", "-2"))),
    Hostile("columns.csv", csv(PLAIN, head="text,text")),
    Hostile("header.csv", csv([])),
    Hostile("empty.csv", lambda: b""),
    Hostile("quotes.csv", lambda: b'text,label\n"open,a\n' * 3),
    Hostile("ragged.csv", lambda: b"text,label\none,a,b,c\ntwo\nthree,b\n"),
    Hostile("deep.jsonl", lambda: b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    Hostile(
        "deep-value.jsonl", lambda: b'{"text": "a", "label": "b", "more": ' + b'{"a":' * 99_999 + b"1" + b"}" * 10**5
    ),
    Hostile("huge-number.jsonl", lambda: b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n"),
    Hostile("nan.jsonl", lambda: b'{"text": "a", "label": NaN}\n{"text": "b", "label": Infinity}\n'),
    Hostile("surrogate.jsonl", lambda: b'{"text": "\\ud800", "label": "a"}\n'),
    Hostile(
        "odd-column.jsonl",
        jsonl([{"text": text, "label": label, "extra": [1, "x", {}][i % 3]} for i, (text, label) in enumerate(PLAIN)]),
        _names_column,
    ),
    Hostile("null.jsonl", lambda: b"null\n[]\n3\n"),
    Hostile("noise.parquet", lambda: b"PAR1" + bytes(range(256)) * 8 + b"PAR1"),
    Hostile("...csv", csv(PLAIN)),
    Hostile("-x.csv", csv(PLAIN)),
    Hostile("[a]*?.csv", csv(PLAIN)),
    Hostile("a b'c\"$(d);e.csv", csv(PLAIN)),
    Hostile("new\nline\x1b[2J.csv", csv(PLAIN)),
    Hostile("n" * 200 + ".csv", csv(PLAIN)),
)


def read_hostile(scene: Scene, hostile: Hostile) -> None:
    """Extract and train a hostile file; look where things were written and what was printed."""
    with scene.copy() as work:
        folder = work / "deep" / "er"
        folder.mkdir(parents=True)
        (folder / hostile.name).write_bytes(hostile.content())
        options = {"memory": hostile.memory, "seconds": hostile.seconds}
        words = ("--cache", "own", "--", hostile.name)
        extracted = scene.call(folder, "extract", "--backbone", scene.model, *words, **options)
        _well_or_named(extracted, hostile.name, "extract")
        trained = None
        if extracted.status == 0:
            trained = scene.call(folder, "train", "--head", "lda", "--out", "model", "--json", *words, **options)
            _well_or_named(trained, hostile.name, "train")
        wrong = hostile.check(extracted, trained)
        if wrong:
            raise PromiseError(wrong)
        written = {path.name for path in [*folder.iterdir(), *folder.parent.iterdir()]}
        stray = written - {hostile.name, "own", "model", "er"}
        if stray:
            raise PromiseError(f"it wrote {min(stray)} outside of --cache and --out")


def _well_or_named(outcome: Outcome, name: str, what: str) -> None:
    if outcome.status != 0:
        was_refused(outcome, what)
    if any(character in outcome.out + outcome.err for character in "\x1b\x07"):
        raise PromiseError(f"{what}: an escape sequence reaches the terminal")
    # An odd name may be shown with its odd characters escaped.
    if outcome.status != 0 and max(name.split("\n"), key=len).split("\x1b")[0].split('"')[-1] not in outcome.err:
        raise PromiseError(f"{what}: the refusal does not name the file: {outcome}")


def advice_is_right(scene: Scene, name: str) -> None:
    """Extract some texts of a file with an odd name, train on all, and do what the refusal says."""
    with scene.copy() as work:
        (work / name).write_bytes(csv(PLAIN)())
        words = ("--cache", "own", "--", name)
        ended_well(scene.call(work, "extract", "--limit", 5, "--backbone", scene.model, *words), "extract --limit 5")
        refused = was_refused(scene.call(work, "train", "--head", "lda", *words), "train on more")
        commands = damage.COMMAND.findall(refused.err)
        if not commands:
            raise PromiseError(f"no command in the refusal: {refused}")
        ended_well(scene.call(work, *shlex.split(commands[0])[1:]), f"what it says to do, {commands[0]}")
        ended_well(scene.call(work, "train", "--head", "lda", *words), "train then")


def formulas(scene: Scene) -> None:
    """Write labels that a spreadsheet would execute into CSV: escaped, or the help names what escapes them."""
    with scene.copy() as work:
        (work / "sums.csv").write_bytes(csv(relabelled("=1+1", "@sum", "-2"))())
        ended_well(scene.call(work, "extract", "sums.csv", "--backbone", scene.model), "extract")
        ended_well(scene.call(work, "train", "sums.csv", "--head", "lda", "--out", "sums"), "train")
        ended_well(scene.call(work, "predict", "sums", "new.csv", "--out", "out.csv"), "predict")
        cells = [cell for line in (work / "out.csv").read_text().splitlines()[1:] for cell in line.split(",")]
        help_text = scene.call(work, "predict", "--help").out.lower()
        if any(cell.strip('"')[:1] in "=@" for cell in cells if cell) and "spreadsheet" not in help_text:
            raise PromiseError(
                "a cell of out.csv begins with = or @, and `predict --help` says nothing of spreadsheets"
            )


TRAIN = ("train", "films", "--head", "mlp")
PREDICT = ("predict", "models/lda")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "--seed -1": (*TRAIN, "--seed", "-1"),
    "--device xyz": (*TRAIN, "--device", "xyz"),
    "--device cuda:99": (*TRAIN, "--device", "cuda:99"),
    "--device xyz of extract": ("extract", "films", "--cache", "own", "--backbone", "MODEL", "--device", "xyz"),
    "--hidden 99999999999": (*TRAIN, "--hidden", "99999999999"),
    "--hidden of 40 digits": (*TRAIN, "--hidden", "9" * 40),
    "--out of 300 letters": (*TRAIN, "--out", "x" * 300),
    "--out of predict with 300 letters": (*PREDICT, "new.csv", "--out", "x" * 300 + ".csv"),
    "--out below a file": (*TRAIN, "--out", "new.csv/model"),
    "--out of predict below a file": (*PREDICT, "new.csv", "--out", "new.csv/out.csv"),
    "--out of predict that is a folder": (*PREDICT, "new.csv", "--out", "films.csv"),
    "--out with somebody's report.json": (*TRAIN, "--out", "theirs"),
    "--cache below a file": ("extract", "films", "--cache", "new.csv/cache", "--backbone", "MODEL"),
    "--layers 99": (*TRAIN, "--layers", "99"),
    "nested columns into CSV": (*PREDICT, "nested.parquet", "--out", "out.csv"),
}


def odd_option(scene: Scene, name: str) -> None:
    """Return one of the odd options where a folder is in the way and another one is somebody's."""
    with scene.copy() as work:
        (work / "films.csv").mkdir()
        (work / "theirs").mkdir()
        (work / "theirs" / "report.json").write_text('{"mine": true}')
        ended_well(run(write_nested, folder=work), "writing nested columns")
        words = [scene.model if word == "MODEL" else word for word in OPTIONS[name]]
        outcome = scene.call(work, *words, faults=[faults.tell_work], memory=1500 * MEGABYTE)
        was_refused(outcome, name)
        # A head may know its own parameters alone; where results go can be known before.
        if "work began" in outcome.err and not name.startswith(("--seed", "--hidden", "--device")):
            raise PromiseError(f"it was refused after the work: {outcome}")
        if (work / "theirs" / "report.json").read_text() != '{"mine": true}':
            raise PromiseError("somebody's file is gone")


def write_nested() -> None:
    """Write a table with a column of lists."""
    import polars as pl

    pl.DataFrame({"text": ["one", "two"], "more": [[1, 2], [3]]}).write_parquet("nested.parquet")


def add_data(scene: Scene) -> None:
    """Have `write_data` done, once."""
    if not (scene.start / "data").exists():
        ended_well(run(write_data, folder=scene.start), "writing data files")


def write_data() -> None:
    """Write `data/films` in every format, and a job `shows`."""
    import polars as pl

    table = pl.DataFrame(make_texts(60, seed=2), schema=["text", "label"], orient="row")
    Path("data/shows").mkdir(parents=True)
    Path("jobs").mkdir()
    Path("jobs/shows.toml").write_text(JOB)
    for place in ("data/films", "data/shows/train", "data/shows/test"):
        table.write_csv(f"{place}.csv")
    table.write_csv("data/films.tsv", separator="\t")
    table.write_ndjson("data/films.jsonl")
    table.write_parquet("data/films.parquet")


def attacks(scene: Scene) -> Iterator[Attack]:
    """Return the attacks on what is read."""
    add_data(scene)
    for suffix in FORMATS:
        hurt = hurts(scene.start, f"data/films.{suffix}", small=0, large=LARGE)
        yield Attack(f"flip: a data set, .{suffix}", chunks(scene, hurt, damage.load_data))
    yield Attack("flip: a job, .toml", chunks(scene, hurts(scene.start, "jobs/*.toml"), damage.load_data))
    yield Attack("hostile data files", each((repr(file.name)[:60], read_hostile, (scene, file)) for file in HOSTILE))
    yield Attack("labels that a spreadsheet executes", each([("=1+1, @sum, -2", formulas, (scene,))]))
    odd = ("-x.csv", "a b'c\"$(d);e.csv", "[a]*?.csv", "--help.csv")
    yield Attack("advice for odd names", each((name, advice_is_right, (scene, name)) for name in odd))
    yield Attack("odd options and places", each((name, odd_option, (scene, name)) for name in OPTIONS))
