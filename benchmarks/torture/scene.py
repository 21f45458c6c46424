"""The scene of every attack: a tiny model, a data set, its cache, a classifier of each head, and what is right of them.

`Scene.copy` gives an attack a copy of its own. Knows the folders, and how to ask whether what was right still is.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.torture import doors
from benchmarks.torture.children import Outcome, PromiseError, ended_well, run

HEADS = ("lda", "logistic", "gbdt", "mlp")
TEXTS, TEST_TEXTS, NEW_TEXTS = 300, 60, 150
# Older than what any writer that lives may have left.
TWO_HOURS = 7200.0


class Scene:
    """A folder with everything made once.

    Attributes:
        folder: `model`, and `start`: what `copy` copies.
        rows: digest of the embeddings.
        numbers: digest of what each classifier says, by its name.
        judged: what a training of lda reports.
        labelled: what `predict --out` writes of the new texts, by suffix.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.model, self.start = self.folder / "model", self.folder / "start"
        self.start.mkdir(parents=True)
        texts = make_texts(TEXTS + NEW_TEXTS, seed=0)
        must(run(build_model, self.model, [text for text, _ in texts], folder=self.folder))
        write_texts(self.start, texts)
        must(self.extract(self.start))
        for head in HEADS:
            must(self.call(self.start, "train", "films", "--head", head, "--out", f"models/{head}"))
        must(self.call(self.start, "train", "films", "--head", "lda", "--fusion", "last", "--out", "models/old"))
        self.rows = must(run(doors.rows, folder=self.start)).value
        names = [path.name for path in (self.start / "models").iterdir()]
        self.numbers = {name: must(run(doors.numbers, f"models/{name}", folder=self.start)).value for name in names}
        self.judged = must(run(doors.trained, "lda", "../judged", folder=self.start)).value
        self.labelled = {suffix: self._label(suffix) for suffix in ("csv", "jsonl", "parquet")}
        if len(list(self.start.glob("cache/*/*/commits/*.json"))) < 3:
            raise PromiseError("the data set has not several shards: SHARD_ROWS is not where it was")

    def _label(self, suffix: str) -> bytes:
        must(self.call(self.start, "predict", "models/lda", f"new.{suffix}", "--out", f"out.{suffix}"))
        content = (self.start / f"out.{suffix}").read_bytes()
        (self.start / f"out.{suffix}").unlink()
        return content

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """Return a copy of everything but the model, deleted at the end."""
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            work = Path(folder).resolve() / "work"
            shutil.copytree(self.start, work, symlinks=True)
            yield work

    def call(self, work: Path, *words: Any, **options: Any) -> Outcome:
        """Run the command line in `work`."""
        return run(doors.command, *words, folder=work, **options)

    def extract(self, work: Path, *words: Any, **options: Any) -> Outcome:
        """Run `llmembed extract` of the data set in `work`."""
        return self.call(work, "extract", "films", "--backbone", self.model, *words, **options)

    def check_rows(self, work: Path, when: str) -> None:
        """See that the rows are those of the undisturbed run, bit for bit."""
        if ended_well(run(doors.rows, folder=work), f"reading the rows {when}").value != self.rows:
            raise PromiseError(f"other rows {when}")

    def check_numbers(self, work: Path, folder: str, like: str, when: str) -> None:
        """See that a classifier says what `like` says."""
        outcome = ended_well(run(doors.numbers, folder, folder=work), f"loading {folder} {when}")
        if outcome.value != self.numbers[like]:
            raise PromiseError(f"{folder} gives other numbers {when}")


def must(outcome: Outcome) -> Outcome:
    """Stop when the scene itself cannot be made."""
    return ended_well(outcome, "making the scene")


def make_texts(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Make short texts of three classes that share some words: text, label."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 7))) for _ in range(96)]
    return [
        (" ".join(chance.choices(words[26 * (i % 3) :][:44], k=chance.randint(4, 18))) + f" {i}", "abc"[i % 3])
        for i in range(count)
    ]


def write_texts(folder: Path, texts: list[tuple[str, str]]) -> None:
    """Write the data set `films`, and new texts without labels in every format."""
    (folder / "films").mkdir()
    for split, rows in (("train", texts[TEST_TEXTS:TEXTS]), ("test", texts[:TEST_TEXTS])):
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (folder / "films" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    must(run(write_new, [text for text, _ in texts[TEXTS:]], folder=folder))


def write_new(texts: list[str]) -> None:
    """Write texts as new.csv, new.jsonl and new.parquet."""
    import polars as pl

    table = pl.DataFrame({"text": texts, "note": [f"note {number}" for number in range(len(texts))]})
    table.write_csv("new.csv")
    table.write_ndjson("new.jsonl")
    table.write_parquet("new.parquet")


def build_model(folder: Path, texts: list[str]) -> None:
    """Write the model."""
    from tests.tiny_models import save_llama, save_tokenizer

    save_tokenizer(folder, texts)
    save_llama(folder)


def leftovers(work: Path) -> list[str]:
    """List what a dead writer leaves: hidden entries, and shards that no commit names."""
    hidden = [path for path in work.rglob(".*") if not any(part.startswith(".") for part in path.parent.parts)]
    # A file that processes lock must outlive them: whoever deletes it may delete another one's lock.
    hidden = [path for path in hidden if path.name != ".lock" or path.stat().st_size]
    uncommitted = []
    for cache in work.glob("cache/*/*"):
        commits = "".join(path.read_text(errors="replace") for path in cache.glob("commits/*") if path.is_file())
        uncommitted += [path for path in cache.glob("shards/*") if path.name not in commits]
    return [str(path.relative_to(work)) for path in sorted({*hidden, *uncommitted})]


def check_nothing_left(work: Path, when: str) -> None:
    """See that no hidden or uncommitted file is left."""
    left = leftovers(work)
    if left:
        raise PromiseError(f"{len(left)} files of a dead writer are left {when}, such as {left[0]}")


def grow_old(work: Path) -> None:
    """Make every file two hours older, so that what is left of a dead writer can be told from one that lives."""
    moment = time.time() - TWO_HOURS
    for path in [*work.rglob("*"), *work.rglob(".*")]:
        if not path.is_symlink():
            os.utime(path, (moment, moment))
