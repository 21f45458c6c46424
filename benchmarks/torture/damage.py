"""What a child does with damaged files: hurt one, go through a door, say what came of it, put it back, take the next.

A door gives nothing when all is well, else what is wrong; an error of llmembed is well if it names the file.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.torture import doors
from llmembed.datasets import load_dataset
from llmembed.errors import LLMEmbedError
from llmembed.identity import seal, unseal

# A case that takes longer has hung.
SECONDS = 30.0
# Letters of a shard's name, which its commit shares.
SHARD_ID = 24
COMMAND = re.compile(r"^fix: (.+)$", re.MULTILINE)
_right: dict[str, Any] = {}


def try_all(
    door: Callable[..., str], given: Sequence[Any], hurts: Sequence[Any], log: Path, mend: bool, reseal: bool
) -> None:
    """Try the hurts and append to the log what is wrong after each, nothing where all is well."""
    doors.small_shards()
    _right["films"] = load_dataset(doors.DATASET)
    if door is train_lda:
        _right["judged"] = doors.digest_training(_right["films"], "lda", log.parent / "out")
    for hurt in hurts:
        # The default action ends the process, which the harness sees.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        with put_back(Path(hurt.file)) as whole:
            hurt_file(Path(), hurt)
            if reseal:
                make_digests_match(Path(hurt.file), whole)
            failure = spoken(partial(door, *given, hurt), hurt)
            if mend and not failure:
                failure = mending(*given)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with log.open("a") as lines:
            lines.write(json.dumps(failure) + "\n")


@contextlib.contextmanager
def put_back(file: Path) -> Any:
    """Return the content of a file; put its whole folder back at the end, or the file that stands alone."""
    folder, saved = _root_of(file), Path("..", "saved")
    if folder.is_file():
        yield (content := file.read_bytes())
        file.write_bytes(content)
        return
    shutil.copytree(folder, saved, symlinks=True)
    try:
        yield file.read_bytes()
    finally:
        shutil.rmtree(folder)
        saved.rename(folder)


def hurt_file(root: Path, hurt: Any) -> None:
    """Do to a file what is to be done to it."""
    path = root / hurt.file
    content = bytearray(path.read_bytes())
    if not hurt.cut:
        content[hurt.offset] ^= 1 << hurt.bit
        path.write_bytes(content)
    elif hurt.offset < 0:
        path.unlink()
    else:
        path.write_bytes(content[: hurt.offset])


def spoken(door: Callable[[], str], hurt: Any) -> str:
    """Go through a door; an error of ours is well if it names the file, any other is not."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return door()
    except LLMEmbedError as error:
        return (
            ""
            if names(str(error), hurt.file) or _is_uncommitted(str(error), hurt)
            else (f"the refusal does not name the file: {error}")
        )
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:150]} ({Path(last.filename).name}:{last.lineno})"


def names(sentence: str, file: str) -> bool:
    """Return whether a sentence names a file; a shard and its commit share the first part of their names."""
    name = Path(file).name
    shared = name.partition(".")[0].partition("-")[0]
    return name in sentence or (len(shared) == SHARD_ID and shared in sentence)


def _is_uncommitted(sentence: str, hurt: Any) -> bool:
    """Return whether a commit, which may never have been there, is gone, and a sentence says that rows are missing."""
    file = Path(hurt.file)
    gone = hurt.cut and hurt.offset < 0 and file.parent.name == "commits"
    return gone and f"texts are not in {file.parent.parent}" in sentence


def read_rows(right: str, model: str, hurt: Any) -> str:
    """Read all rows, checked."""
    return "" if doors.digest_rows(_right["films"]) == right else "other rows, and not a word"


def train_lda(hurt: Any) -> str:
    """Train on the cache."""
    judged = doors.digest_training(_right["films"], "lda", Path("models/lda"))
    return "" if judged == _right["judged"] else "another report, and not a word"


def train_any(hurt: Any) -> str:
    """Train on the cache; whoever makes the digests match can make the numbers what he likes."""
    with contextlib.suppress(LLMEmbedError):
        doors.digest_training(_right["films"], "lda", Path("models/lda"))
    return ""


def predict_like(folder: str, right: str, hurt: Any) -> str:
    """Load a classifier and have it classify."""
    return "" if doors.digest_numbers(Path(folder), _right["films"]) == right else "other numbers, and not a word"


def predict_any(folder: str, hurt: Any) -> str:
    """Load a classifier and have it classify, whatever it then says."""
    with contextlib.suppress(LLMEmbedError):
        doors.digest_numbers(Path(folder), _right["films"])
    return ""


def train_again(folder: str, head: str, right: str, hurt: Any) -> str:
    """Train again into a damaged classifier's folder."""
    doors.digest_training(_right["films"], head, Path(folder))
    return "" if doors.digest_numbers(Path(folder), _right["films"]) == right else "other numbers after training again"


def load_data(hurt: Any) -> str:
    """Read a data set; a changed file may be another good one."""
    job = Path(hurt.file).suffix == ".toml"
    os.environ["LLMEMBED_DATA"] = "data"
    load_dataset(Path(hurt.file).stem if job else hurt.file)
    return ""


def mending(right: str, model: str) -> str:
    """Run `extract`, or the command that its refusal names; then the rows must be right."""
    words = ["extract", doors.DATASET, "--backbone", model]
    for _ in range(3):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                doors.command(*words)
        except LLMEmbedError as error:
            printed.write(str(error))
        except SystemExit as end:
            if not end.code:
                break
        except Exception as error:
            return f"extract: {type(error).__name__}: {str(error)[:150]}"
        said = [shlex.split(found) for found in COMMAND.findall(printed.getvalue())]
        others = [own[1:] for own in said if own[0] == "llmembed"]
        words = others[0] if others else words
    else:
        return f"extract never mends it: {printed.getvalue().strip()[:300]}"
    try:
        return "" if doors.digest_rows(_right["films"]) == right else "other rows after extract"
    except LLMEmbedError as error:
        return f"still refused after extract: {error}"


def make_digests_match(file: Path, whole: bytes) -> None:
    """Write a file's new size and SHA-256 wherever a JSON file of its folder has the old ones; seal those again."""
    if not file.exists():
        return
    new = file.read_bytes()
    for record in sorted(_root_of(file).rglob("*.json")):
        content = record.read_bytes()
        changed = content.replace(sha256(whole).hexdigest().encode(), sha256(new).hexdigest().encode())
        if record == file:
            changed = content
        elif changed != content:
            changed = re.sub(rb'("(?:bytes|size)": *)%d\b' % len(whole), rb"\g<1>%d" % len(new), changed)
        with contextlib.suppress(ValueError, UnicodeDecodeError):
            unseal(whole if record == file else content)
            fields = {key: value for key, value in json.loads(changed).items() if key != "sha256"}
            changed = seal(fields)
        record.write_bytes(changed)


def _root_of(file: Path) -> Path:
    """Return the folder that is one thing: a cache with all of its records, or a classifier."""
    return Path(*file.parts[:2])
