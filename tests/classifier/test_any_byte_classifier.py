"""Whatever happens to a file of a saved classifier: the same numbers, or a ClassifierError that names the file."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused
from small_classifier import digit_embeddings, make_classifier

from llmembed.choices import HeadName
from llmembed.classifier import Classifier
from llmembed.errors import ClassifierError
from llmembed.features.fusion import fused_width

HEADS = get_args(HeadName)
each_head = pytest.mark.parametrize("head", HEADS)
EMBEDDINGS = digit_embeddings()[0][600:640]
REPORTS = {"metrics.json": {"accuracy": 0.5}, "report.json": {"accuracy": 0.5, "seconds": 1.0}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a saved classifier of each head, and their numbers."""
    folder = tmp_path_factory.mktemp("models")
    for head in HEADS:
        make_classifier(head).save(folder / head, REPORTS)
        make_classifier(head, seed=1, class_weight="balanced").save(folder / f"other-{head}", REPORTS)
    return folder


@cache
def numbers(folder: Path) -> np.ndarray:
    return Classifier.load(folder).predict_proba([EMBEDDINGS])


def same_numbers_or_a_refusal(folder: Path, wanted: Path, name: str) -> bool:
    """Return whether the classifier is refused, and fail unless it is refused by name or gives the same numbers."""
    try:
        found = Classifier.load(folder).predict_proba([EMBEDDINGS])
    except ClassifierError as error:
        assert name in str(error) and "\n" not in str(error)
        return True
    np.testing.assert_array_equal(found, numbers(wanted))
    return False


def copied(saved: Path, head: str, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(saved / head, copy)


@each_head
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_changed_byte_or_lost_end_is_harmless_or_refused_by_name(head, data, saved, tmp_path):
    folder = copied(saved, head, tmp_path / "m")
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.none() | st.integers(0, 255))
    path.write_bytes(content[:place] if byte is None else content[:place] + bytes([byte]) + content[place + 1 :])
    same_numbers_or_a_refusal(folder, saved / head, path.name)


def test_300_flipped_bits_are_all_found(saved, tmp_path):
    draw, found = np.random.default_rng(0), 0
    for number in range(300):
        folder = copied(saved, HEADS[number % 4], tmp_path / "m")
        path = sorted(folder.iterdir())[draw.integers(len(list(folder.iterdir())))]
        content = bytearray(path.read_bytes())
        content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
        path.write_bytes(content)
        found += same_numbers_or_a_refusal(folder, saved / HEADS[number % 4], path.name)
    assert found == 300


@each_head
def test_a_file_that_is_gone_or_another_classifiers_is_named(head, saved, tmp_path):
    for name in sorted(path.name for path in (saved / head).iterdir()):
        folder = copied(saved, head, tmp_path / "m")
        (folder / name).unlink()
        assert same_numbers_or_a_refusal(folder, saved / head, name)
        shutil.copy(saved / f"other-{head}" / name, folder / name)
        own = (saved / head / name).read_bytes() == (folder / name).read_bytes()
        assert same_numbers_or_a_refusal(folder, saved / head, "") is not own
        (folder / name).unlink()
        (folder / name).mkdir()
        assert same_numbers_or_a_refusal(folder, saved / head, name)


@each_head
def test_a_file_that_is_not_a_part_of_it_changes_nothing(head, saved, tmp_path):
    folder = copied(saved, head, tmp_path / "m")
    (folder / "notes.md").write_text("mine")
    if head != "gbdt":
        shutil.copy(saved / "gbdt" / "head.txt", folder)
    assert not same_numbers_or_a_refusal(folder, saved / head, "")


@pytest.mark.parametrize("fusion", ["last", "mean", "max", "gram", "weighted", "cooccurrence"])
def test_every_fusion_is_saved_and_loaded_with_equal_numbers(fusion, tmp_path):
    made = make_classifier("mlp", fusion=fusion)
    made.save(tmp_path / "m")
    loaded = Classifier.load(tmp_path / "m")
    assert loaded.head.n_features_in_ == fused_width(fusion, ((2, 32),))
    assert loaded.head.get_params() == made.head.get_params()
    np.testing.assert_array_equal(loaded.predict_proba([EMBEDDINGS]), made.predict_proba([EMBEDDINGS]))


def test_a_classifier_of_an_older_format_says_what_to_do(saved, tmp_path):
    folder = copied(saved, "lda", tmp_path / "m")
    record = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps({**record, "format": 2}))
    with refused(
        ClassifierError, match=r"has format 2.*format 3\. Train it again: .*still in the cache\. fix: llmembed train"
    ):
        Classifier.load(folder)


def test_weights_that_are_not_finite_are_not_saved(saved, tmp_path):
    folder = copied(saved, "lda", tmp_path / "m")
    broken = make_classifier("lda")
    broken.head.bias_[3] = np.nan
    with refused(ClassifierError, match=r"m was not written.*'bias' holds values that are no finite"):
        broken.save(folder)
    assert not same_numbers_or_a_refusal(folder, saved / "lda", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_the_record_has_the_digest_of_every_other_file(saved):
    record = json.loads((saved / "gbdt" / "classifier.json").read_text())
    names = {path.name for path in (saved / "gbdt").iterdir()} - {"classifier.json"}
    assert record["files"].keys() == names and len(names) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record["files"].values())
