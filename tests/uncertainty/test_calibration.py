"""Probabilities say how often a class is right, whatever the class weights; these change the decision alone."""

import json

import numpy as np
import polars as pl
import pytest
from every_head import QUICK, each_head
from refusals import refused

from llmembed.classifier import Classifier
from llmembed.errors import ClassifierError
from llmembed.heads import load_head, make_head
from llmembed.heads.classes import decide
from llmembed.prediction import evaluate_dataset, predict_dataset, predictions, write_predictions
from llmembed.training import train
from llmembed.uncertainty.calibration import calibrate, softmax

EVEN = np.ones(2, np.float32)


def overlapping(rows, seed):
    """Draw two classes that overlap, one of them with a tenth of the rows."""
    draw = np.random.default_rng(seed)
    y = (draw.random(rows) < 0.1).astype(int)
    X = draw.standard_normal((rows, 20)).astype(np.float32)
    X[:, :4] += 0.7 * y[:, None]
    return X, y


@each_head
@pytest.mark.parametrize("class_weight", [None, "sqrt", "balanced", {1: 5.0}])
def test_a_rare_class_is_expected_as_often_as_it_occurs(name, class_weight, tmp_path):
    (X, y), (X_test, y_test) = overlapping(4000, seed=0), overlapping(20_000, seed=1)
    head = make_head(name, class_weight=class_weight, **QUICK[name]).fit(X, y)
    probabilities = head.predict_proba(X_test)
    assert probabilities[:, 1].mean() / y_test.mean() == pytest.approx(1, abs=0.1)
    surest = np.argsort(probabilities[:, 1])[-2000:]
    assert probabilities[surest, 1].mean() == pytest.approx(y_test[surest].mean(), abs=0.08)
    np.testing.assert_array_equal(head.predict(X_test), decide(probabilities, head.class_weights_))
    assert (head.class_weights_ == 1).all() == (class_weight is None)
    head.save(tmp_path)
    np.testing.assert_array_equal(load_head(tmp_path).predict(X_test), head.predict(X_test))


@each_head
def test_class_weights_find_more_rows_of_a_rare_class_without_making_it_look_likelier(name):
    X, y = overlapping(4000, seed=0)
    heads = [make_head(name, class_weight=each, **QUICK[name]).fit(X, y) for each in (None, "sqrt", "balanced")]
    found = [int((head.predict(X) == 1).sum()) for head in heads]
    assert found[0] < found[1] < found[2] and found[2] > 3 * found[0]
    expected = [head.predict_proba(X)[:, 1].mean() for head in heads]
    assert max(expected) < 1.15 * min(expected)


@pytest.mark.parametrize("weight", [1.0, 9.0])
def test_calibration_undoes_what_weights_and_too_much_certainty_did(weight):
    draw = np.random.default_rng(0)
    true_logits = np.stack([np.zeros(20_000), draw.normal(-3, 2, 20_000)], axis=1)
    codes = (draw.random(20_000) < softmax(true_logits)[:, 1]).astype(int)
    weights, shares = np.float32([1, weight]), np.bincount(codes).astype(np.float32) / 20_000
    found = calibrate(3 * (true_logits + np.log(weights)), codes, shares, weights)
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert found.offset[1] - found.offset[0] == pytest.approx(-np.log(weight), abs=0.15)


def test_without_rows_to_judge_by_the_weights_are_taken_at_their_word():
    found = calibrate(np.zeros((0, 2)), np.zeros(0, int), np.float32([0.9, 0.1]), np.float32([0.5, 4.0]))
    np.testing.assert_allclose(found.offset, -np.log([0.5, 4.0]), rtol=1e-6)
    assert found.temperature == 1


def test_a_few_rows_without_an_error_ask_for_nothing_extreme():
    found = calibrate(np.float32([[5, -5], [-5, 5], [5, -5]]), np.array([0, 1, 0]), np.float32([0.99, 0.01]), EVEN)
    assert 0.5 < found.temperature < 100 and np.ptp(found.offset) < 5


def test_everything_that_labels_follows_one_decision(pydocs, pydocs_cache, tmp_path):
    options = {"class_weight": {"numpy": 30.0}}
    report = train(pydocs, root=pydocs_cache, head="lda", head_options=options, out=tmp_path / "m").report
    classifier = Classifier.load(tmp_path / "m")
    probabilities = predict_dataset(classifier, pydocs, root=pydocs_cache)
    assert evaluate_dataset(classifier, pydocs, root=pydocs_cache) == report
    rows = list(predictions(classifier, probabilities))
    table, decided = pl.DataFrame({"text": pydocs.texts("test")}), classifier.decide(probabilities)
    write_predictions(table, decided, probabilities, classifier.record.labels, tmp_path / "p.parquet")
    table = pl.read_parquet(tmp_path / "p.parquet")
    labels = [row.label for row in rows]
    likeliest = [max(row.probabilities, key=row.probabilities.get) for row in rows]
    assert labels == table["predicted"].to_list() != likeliest
    assert np.mean([label == true for label, true in zip(labels, pydocs.labels("test"), strict=True)]) == pytest.approx(
        report.accuracy, abs=1e-6
    )
    assert all(row.probability == row.probabilities[row.label] for row in rows)
    np.testing.assert_allclose(table["probability"], [row.probability for row in rows], atol=1e-6)


def test_a_head_of_an_older_format_is_refused_with_what_to_do(digits, tmp_path):
    make_head("lda").fit(digits[0], digits[2]).save(tmp_path)
    content = json.loads((tmp_path / "head.json").read_bytes())
    (tmp_path / "head.json").write_text(json.dumps({**content, "format": 1}))
    with refused(ClassifierError, match=r"head.json has format 1; this llmembed reads format 3.*Train it again"):
        load_head(tmp_path)
