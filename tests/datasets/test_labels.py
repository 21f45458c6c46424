"""Labels of any length and with any characters: they are indices wherever there is one per row."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from refusals import refused
from small_comparison import small_comparison

from llmembed.classifier import Classifier
from llmembed.datasets.labels import index_labels
from llmembed.errors import DatasetError, InputError
from llmembed.evaluation import evaluate
from llmembed.prediction import evaluate_dataset, predict_dataset, predictions, write_predictions
from llmembed.training import train

# Prints by how many MB the peak of its memory grew while it trained, after a training with short labels.
PROGRAM = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import polars as pl
from llmembed.datasets import load_dataset
from llmembed.prediction import evaluate_dataset
from llmembed.classifier import Classifier
from llmembed.training import train

dataset, root, out = load_dataset("pydocs", limit=700), Path(sys.argv[1]), Path(sys.argv[2])
train(dataset, root=root, head="lda", fusion="mean", out=out)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
longer = replace(dataset, table=dataset.table.with_columns(pl.col("label").replace("numpy", "x" * 300_000)))
train(longer, root=root, head="lda", fusion="mean", out=out)
evaluate_dataset(Classifier.load(out), longer, root=root)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def relabelled(dataset, **names):
    return replace(dataset, table=dataset.table.with_columns(pl.col("label").replace(names)))


def renamed_apart(dataset):
    """Let the first two labels differ by a NUL at the end alone; their order stays what it was."""
    first, second = sorted(set(dataset.labels("train")))[:2]
    return relabelled(dataset, **{first: "numpy", second: "numpy\0"})


def test_labels_that_differ_by_a_nul_alone_are_two_classes(pydocs, pydocs_cache, tmp_path):
    renamed = renamed_apart(pydocs)
    plain = train(pydocs, root=pydocs_cache, head="lda", out=tmp_path / "m")
    assert train(renamed, root=pydocs_cache, head="lda", out=tmp_path / "n").report.accuracy == plain.report.accuracy
    classifier = Classifier.load(tmp_path / "n")
    assert classifier.record.labels[:2] == ("numpy", "numpy\0")
    assert evaluate_dataset(classifier, renamed, root=pydocs_cache).accuracy == plain.report.accuracy
    found = [each.label for each in predictions(classifier, predict_dataset(classifier, renamed, root=pydocs_cache))]
    assert np.mean([label == true for label, true in zip(found, renamed.labels("test"), strict=True)]) == pytest.approx(
        plain.report.accuracy, abs=1e-6
    )
    assert {"numpy", "numpy\0"} <= set(found)


def test_labels_that_differ_by_a_nul_alone_are_compared_and_written_apart(pydocs, pydocs_cache, tmp_path):
    renamed = renamed_apart(pydocs)
    plain, other = (
        small_comparison(each, pydocs_cache, tmp_path / name, fusions=["mean"])
        for name, each in (("m", pydocs), ("n", renamed))
    )
    assert sorted(line.accuracy for line in other.lines) == sorted(line.accuracy for line in plain.lines)
    classifier = Classifier.load(tmp_path / "n" / "model")
    table, probabilities = pl.DataFrame({"row": range(9)}), np.eye(9, len(classifier.record.labels), dtype=np.float32)
    decided = classifier.decide(probabilities)
    write_predictions(table, decided, probabilities, classifier.record.labels, tmp_path / "p.parquet")
    assert pl.read_parquet(tmp_path / "p.parquet")["predicted"][:2].to_list() == ["numpy", "numpy\0"]


def test_a_long_label_costs_its_length_and_not_that_times_the_rows(pydocs_cache, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(pydocs_cache), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200, "an array of 1,400 strings of 300,000 characters has 1,700 MB"


def test_heads_learn_indices_and_the_record_names_them(pydocs, pydocs_cache, tmp_path):
    train(pydocs, root=pydocs_cache, head="lda", out=tmp_path / "m")
    labels = sorted(set(pydocs.labels("train")))
    assert json.loads((tmp_path / "m" / "head.json").read_bytes())["classes"] == list(range(len(labels)))
    assert list(Classifier.load(tmp_path / "m").record.labels) == labels


def test_weights_by_label_are_obeyed_by_train_and_compare(pydocs, pydocs_cache, tmp_path):
    def recall(weight):
        options = {"class_weight": {"numpy": weight}}
        report = train(pydocs, root=pydocs_cache, head="lda", head_options=options, out=tmp_path / "m").report
        return next(each.recall for each in report.per_class if each.label == "numpy")

    assert recall(0.01) < recall(1.0) < recall(100.0)
    with refused(InputError, match=r"class_weight names nunpy; the labels are networkx, numpy"):
        train(pydocs, root=pydocs_cache, head="lda", head_options={"class_weight": {"nunpy": 2.0}}, out=tmp_path / "m")
    options = {"logistic": [{"class_weight": {"numpy": 100.0}}]}
    assert small_comparison(pydocs, pydocs_cache, tmp_path, fusions=["mean"], options=options).computed == 6


def test_a_validation_split_with_other_labels_is_refused_by_their_names(pydocs, pydocs_cache, tmp_path):
    odd = pl.DataFrame({"text": pydocs.texts("test")[:2], "label": ["jax", "dask"], "split": ["validation"] * 2})
    with refused(DatasetError, match=r"none of the 2 validation rows .* training rows: dask, jax against netw"):
        train(replace(pydocs, table=pl.concat([pydocs.table, odd])), root=pydocs_cache, out=tmp_path / "m")


def test_a_true_label_that_no_class_has_is_an_error_with_a_line_of_its_own():
    truth, names = index_labels(["b", "new", "a", "b"], ["a", "b"])
    assert (truth.tolist(), names) == ([1, 2, 0, 1], ["a", "b", "new"])
    report = evaluate(truth, np.float32([[0.2, 0.8]] * 4), np.array([1, 1, 1, 1]), names)
    assert (report.accuracy, [each.rows for each in report.per_class]) == (0.5, [1, 2, 1])
    assert report.confusion == ((0, 1, 0), (0, 2, 0), (0, 1, 0))
    assert report.calibration_error == pytest.approx(0.3)
