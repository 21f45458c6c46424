"""A classifier that somebody else wrote, with right digests: valid, or a ClassifierError; in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_classifier import make_classifier

from llmembed.classifier.files import seal_folder
from llmembed.heads import make_head
from llmembed.heads.trees import check_trees, cut_trees
from llmembed.identity import unseal

HERE = ROOT / "tests"
MADE = {
    "lda": {},
    "logistic": {},
    "gbdt": {},
    "projected": {"head": "gbdt", "project_above": 10, "components": 5},
    "mlp": {},
    "weighted": {"head": "mlp", "fusion": "weighted"},
    "cooccurrence": {"head": "mlp", "fusion": "cooccurrence", "compressed": 8},
}
LOAD = """
import sys
from pathlib import Path
from llmembed.classifier import Classifier
from llmembed.errors import ClassifierError
for folder in sys.argv[1:]:
    try:
        Classifier.load(Path(folder))
        print(folder, "loaded")
    except ClassifierError as error:
        print(error)
"""


def child(*arguments: object) -> subprocess.CompletedProcess:
    """Run Python in a process that finds the package and the tests as this one does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_changed_values_with_right_digests_are_refused_or_harmless(tmp_path):
    for name, options in MADE.items():
        make_classifier(**{"head": name, **options}).save(tmp_path / name)
    ended = child(HERE / "hostile_classifiers.py", 0, 120, *(tmp_path / name for name in MADE))
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert ended.returncode == 0, ended.stdout + ended.stderr + str(logs)
    refused = {name: int(count) for name, count in (line.split() for line in ended.stdout.splitlines())}
    assert refused.keys() == MADE.keys() and min(refused.values()) > 60


def changed_json(change):
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def changed_record(change):
    def apply(path: Path) -> None:
        record = unseal(path.read_bytes())
        change(record)
        path.unlink()
        seal_folder(path.parent, record)

    return apply


def changed_line(key: str, value: str):
    """Set the first line of a key in the text of the trees, and leave its length."""

    def apply(path: Path) -> None:
        before, _, after = path.read_text().partition(f"\n{key}=")
        old, _, rest = after.partition("\n")
        path.write_text(f"{before}\n{key}={value.ljust(len(old), '0')[: len(old)]}\n{rest}")

    return apply


def without_an_array(path: Path) -> None:
    arrays = load_file(path)
    arrays.popitem()
    save_file(arrays, path)


HOSTILE = {
    "mlp-hidden": ("mlp", "head.json", changed_json(lambda head: head["params"].update(hidden=[10**9]))),
    "mlp-deep": ("mlp", "head.json", changed_json(lambda head: head["params"].update(hidden=[16] * 10**6))),
    "mlp-features": ("mlp", "head.json", changed_json(lambda head: head["fitted"].update(features=10**18))),
    "mlp-dropout": ("mlp", "head.json", changed_json(lambda head: head["params"].update(dropout=2))),
    "mlp-unknown": ("mlp", "head.json", changed_json(lambda head: head["params"].update(depth=2))),
    "mlp-temperature": ("mlp", "head.json", changed_json(lambda head: head["fitted"].update(temperature=-1.0))),
    "mlp-arrays": ("mlp", "head.safetensors", without_an_array),
    "lda-classes": ("lda", "head.json", changed_json(lambda head: head["classes"].reverse())),
    "lda-long": ("lda", "head.json", changed_json(lambda head: head["classes"].append("x" * 10**7))),
    "lda-nested": ("lda", "head.json", lambda path: path.write_text("[" * 10**5)),
    "lda-huge": ("lda", "head.json", lambda path: path.write_text(" " * 2**25)),
    "lda-scaler": ("lda", "scaler.safetensors", without_an_array),
    "record-labels": ("lda", "head.json", changed_record(lambda record: record["labels"].pop())),
    "record-twice": ("lda", "classifier.json", changed_record(lambda record: record["labels"].append("digit 0"))),
    "record-layers": ("lda", "classifier.json", changed_record(lambda r: r["backbones"][0].update(layers=[2, 2]))),
    "record-layer": ("lda", "classifier.json", changed_record(lambda r: r["backbones"][0].update(layers=[2, 3]))),
    "record-fewer": ("lda", "scaler.safetensors", changed_record(lambda r: r["backbones"][0].update(layers=[4]))),
    "record-fusion": ("lda", "head.json", changed_record(lambda record: record.update(fusion="mean"))),
    "record-head": ("lda", "head.json", changed_record(lambda record: record.update(head="logistic"))),
    "record-name": ("lda", "classifier.json", changed_record(lambda r: r["backbones"][0].update(name="../../etc"))),
    "trees-torn": ("gbdt", "head.txt", lambda path: path.write_text(path.read_text()[:3000])),
    "trees-child": ("gbdt", "head.txt", changed_line("left_child", "9")),
    "trees-cycle": ("gbdt", "head.txt", changed_line("left_child", "0")),
    "trees-feature": ("gbdt", "head.txt", changed_line("split_feature", "99")),
    "trees-category": ("gbdt", "head.txt", changed_line("decision_type", "1")),
    "trees-threshold": ("gbdt", "head.txt", changed_line("threshold", "1e999 1e999 1e999 1e999")),
    "trees-classes": ("gbdt", "head.txt", changed_line("num_class", "99")),
    "trees-leaves": ("gbdt", "head.txt", changed_line("num_leaves", "9")),
    "trees-linear": ("gbdt", "head.txt", changed_line("is_linear", "1")),
    "trees-rounds": ("gbdt", "head.txt", changed_json(lambda head: head["fit_info"].update(rounds=3))),
}


def test_what_was_found_to_crash_or_to_mislead_is_named_in_one_line(tmp_path):
    for head in ("lda", "gbdt", "mlp"):
        make_classifier(head).save(tmp_path / head)
    for name, (head, file, change) in HOSTILE.items():
        folder = shutil.copytree(tmp_path / head, tmp_path / name)
        record = unseal((folder / "classifier.json").read_bytes())
        path = folder / ("classifier.json" if name.startswith("record") else file)
        change(folder / "head.json" if name == "trees-rounds" else path)
        if path.name != "classifier.json":
            (folder / "classifier.json").unlink()
            seal_folder(folder, record)
    ended = child("-c", LOAD, *(tmp_path / name for name in HOSTILE))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    wanted = [f"{tmp_path / name / file} is damaged: " for name, (_, file, _) in HOSTILE.items()]
    assert [line[: len(start)] for line, start in zip(lines, wanted, strict=True)] == wanted


@pytest.fixture(scope="module")
def trees(digits):
    """Return LightGBM's own text of a few trees, and what is in it."""
    X, _, y, _ = digits
    head = make_head("gbdt", rounds=2, leaves=4).fit(X[:200], y[:200])
    return cut_trees(head.booster_.model_to_string()), {"inputs": 64, "classes": 10, "rounds": head.fit_info_["rounds"]}


def test_trees_of_lightgbm_pass_and_other_numbers_of_them_do_not(trees):
    text, about = trees
    assert check_trees(text, **about) == text
    others = [(name, other) for name in about for other in (0, about[name] + 1, 10**15)]
    for name, other in [*others, ("rounds", "2"), ("rounds", 2.0), ("rounds", None)]:
        with pytest.raises(ValueError):
            check_trees(text, **{**about, name: other})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_end_that_is_lost_and_any_byte_too_many_is_refused(data, trees):
    text, about = trees
    place = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ValueError):
        check_trees(text[:place], **about)
    # Of the header only the ranges of the features are free.
    place = max(place, text.index("\ntree_sizes"))
    with pytest.raises(ValueError):
        check_trees(text[:place] + data.draw(st.sampled_from("0 \n=-.eTx")) + text[place:], **about)


def test_probabilities_that_are_no_numbers_are_refused():
    classifier = make_classifier("lda")
    classifier.head.weight_[:] = np.where(np.arange(10) % 2, 3e38, -3e38)
    with pytest.raises(Exception, match="probabilities that are no numbers"), np.errstate(all="ignore"):
        classifier.predict_proba([np.full((1, 2, 32), 60000, np.float16)])
