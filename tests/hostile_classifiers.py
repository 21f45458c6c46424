"""Change values inside of a saved classifier, with its digests made anew, and load it: run in a process of its own.

    python hostile_classifiers.py SEED COUNT FOLDER…

Ends with status 0 if every change gave probabilities or a ClassifierError of one line that names the folder. What was
changed last is in FOLDER.log, also after a crash. The memory is limited to 1 GB more than the libraries take.
"""

import json
import random
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightgbm  # noqa: F401  (before the memory is limited)
import numpy as np
import torch
from small_classifier import digit_embeddings

from llmembed.classifier import Classifier
from llmembed.classifier.files import seal_folder
from llmembed.errors import ClassifierError
from llmembed.identity import seal, unseal

EMBEDDINGS = digit_embeddings()[0][600:610]
NESTED: Any = []
for _ in range(500):
    NESTED = [NESTED]
VALUES = [None, True, -1, 0, 1, 2, 7, 64, 10**9, 10**18, 10**30, -(10**30), 0.5, -0.0, 1e-320, 1e308]
VALUES += ["", "x", "a\0", "..", "/etc", "3", "nan", "\ud800", "x" * 10_000, [], {}, [10**9], [[1, 10**9]], NESTED]
TOKENS = [
    "",
    "-1",
    "0",
    "1",
    "2",
    "7",
    "-7",
    "99999999999",
    "1e999",
    "nan",
    "inf",
    "-0",
    "x",
    "0x1F",
    "1 2",
    "1e5",
    "\0",
]


def change_value(draw: random.Random, value: Any) -> Any:
    """Return a JSON value in which one value, anywhere, is another one, is gone, is there twice, or is new."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        changed = dict(value)
        key = draw.choice(list(changed))
        if draw.random() < 0.1:
            changed[draw.choice(["new", "scale.1", "0.0.weight", key + "x"])] = changed.pop(key)
        elif draw.random() < 0.1:
            del changed[key]
        else:
            changed[key] = change_value(draw, changed[key])
        return changed
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        new = draw.choice([[], [value[place]] * 2, [change_value(draw, value[place])]])
        return [*value[:place], *new, *value[place + 1 :]]
    return draw.choice(VALUES)


def change_json(draw: random.Random, content: bytes) -> bytes:
    if draw.random() < 0.02:
        return draw.choice(
            [b"", b"{}", b"[" * 10**5, b'{"a":' * 10**5, b"\xff", b" " * 2**25, b"1e9", b'{"format":NaN}']
        )
    return json.dumps(change_value(draw, json.loads(content))).encode()


def change_bytes(draw: random.Random, content: bytes) -> bytes:
    place = draw.randrange(len(content))
    return draw.choice([content[:place], content[:place] + draw.randbytes(4) + content[place + 4 :], content * 2])


def change_arrays(draw: random.Random, content: bytes) -> bytes:
    if draw.random() < 0.3:
        return change_bytes(draw, content)
    length = int.from_bytes(content[:8], "little")
    header = change_json(draw, content[8 : 8 + length])
    claimed = draw.choice([len(header)] * 9 + [2**63])
    return claimed.to_bytes(8, "little") + header + content[8 + length :]


def change_trees(draw: random.Random, content: bytes) -> bytes:
    lines = content.decode().split("\n")
    place = draw.randrange(len(lines))
    kind = draw.random()
    if kind < 0.1:
        return change_bytes(draw, content)
    if kind < 0.2:
        lines[place : place + 1] = draw.choice([[], [lines[place]] * 2, ["is_linear=1"], ["cat_threshold=1"]])
    else:
        key, _, values = lines[place].partition("=")
        tokens = values.split(" ")
        tokens[draw.randrange(len(tokens))] = draw.choice([*TOKENS, str(draw.randint(-9, 9))])
        lines[place] = f"{key}={' '.join(tokens)}"
    # The sizes that the header gives are made to fit, so that the trees themselves are looked at.
    header, gap, trees = "\n".join(lines).partition("\n\nTree=")
    parts = [f"Tree={part}" for part in trees.removesuffix("end of trees\n").split("Tree=")]
    sizes = " ".join(str(len(part)) for part in parts)
    kept = [line if not line.startswith("tree_sizes=") else f"tree_sizes={sizes}" for line in header.split("\n")]
    return ("\n".join(kept) + gap + trees).encode()


CHANGES = {"head.json": change_json, "head.safetensors": change_arrays, "head.txt": change_trees}
CHANGES |= {"scaler.safetensors": change_arrays, "classifier.json": change_json}


def attack(folder: Path, copy: Path, draw: random.Random) -> str:
    """Make a changed copy; return what was changed."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    name = draw.choice([name for name in CHANGES if (copy / name).exists()])
    record = unseal((folder / "classifier.json").read_bytes())
    (copy / "classifier.json").unlink()
    if name == "classifier.json":
        changed = change_value(draw, record)
        if not isinstance(changed, dict) or draw.random() < 0.2:
            (copy / name).write_bytes(seal(changed) if isinstance(changed, dict) else json.dumps(changed).encode())
        else:
            seal_folder(copy, changed)
    else:
        (copy / name).write_bytes(CHANGES[name](draw, (copy / name).read_bytes()))
        seal_folder(copy, record)
    return f"{name}: {(copy / name).read_bytes()[:3000]!r}"


def main(seed: int, count: int, folders: list[Path]) -> int:
    """Attack each folder `count` times; return the exit status."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for folder in folders:
        Classifier.load(folder).predict_proba([EMBEDDINGS])
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    for folder in folders:
        refused = 0
        for number in range(seed, seed + count):
            copy = folder.with_name(f"{folder.name}-copy")
            what = f"seed {number}, {attack(folder, copy, random.Random(number))}"
            folder.with_suffix(".log").write_text(what)
            try:
                refused += is_refused(copy)
            except BaseException:
                traceback.print_exc()
                print(what)
                return 1
        print(folder.name, refused)
    return 0


def is_refused(folder: Path) -> bool:
    """Return whether a classifier is refused in one line that names a file; else it must give probabilities."""
    try:
        probabilities = Classifier.load(folder).predict_proba([EMBEDDINGS])
    except ClassifierError as error:
        assert "\n" not in str(error), repr(str(error))
        assert folder.name in str(error) or "probabilities" in str(error), str(error)
        return True
    assert np.isfinite(probabilities).all() and len(probabilities) == len(EMBEDDINGS)
    return False


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]]))
