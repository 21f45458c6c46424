"""The heads, on scikit-learn's own handwritten digits: 1,797 real rows, 64 features, 10 classes, no download."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from every_head import QUICK, OnDisk, each_head
from refusals import refused
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from llmembed.choices import HeadName
from llmembed.errors import ClassifierError, UsageError
from llmembed.heads import HEADS, load_head, make_head
from llmembed.heads.learned import Cooccurrence, WeightedMean
from llmembed.heads.steps import shuffle_rows
from llmembed.uncertainty.calibration import softmax


@pytest.fixture(scope="module", params=["narrow", "wide"])
def widths(request, digits):
    """The digits as they are, and with products of neighbouring features: wide enough to be projected."""
    X, X_test, y, y_test = digits
    if request.param == "narrow":
        return X, X_test, y, y_test
    wide = [np.hstack([part, *(part * np.roll(part, shift, axis=1) for shift in range(1, 5))]) for part in (X, X_test)]
    return *wide, y, y_test


@pytest.mark.parametrize(("name", "least"), [("logistic", 0.95), ("lda", 0.92), ("gbdt", 0.92), ("mlp", 0.95)])
def test_every_head_reads_handwritten_digits(name, least, widths):
    X, X_test, y, y_test = widths
    head = make_head(name, **QUICK[name]).fit(X, y)
    probabilities = head.predict_proba(X_test)
    assert np.mean(head.predict(X_test) == y_test) > least
    assert probabilities.shape == (len(X_test), 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@each_head
def test_a_saved_head_gives_the_same_probabilities_and_holds_no_pickle(name, widths, tmp_path):
    X, X_test, y, _ = widths
    head = make_head(name, seed=3, **QUICK[name]).fit(X, y)
    head.save(tmp_path / "head")
    loaded = load_head(tmp_path / "head")
    np.testing.assert_array_equal(loaded.predict_proba(X_test), head.predict_proba(X_test))
    assert (loaded.get_params(), loaded.fit_info_) == (head.get_params(), head.fit_info_)
    assert {path.suffix for path in (tmp_path / "head").iterdir()} <= {".json", ".safetensors", ".txt"}


@each_head
def test_the_same_seed_gives_the_same_probabilities(name, widths):
    X, X_test, y, _ = widths
    first, second = (make_head(name, seed=1, **QUICK[name]).fit(X, y).predict_proba(X_test) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@each_head
def test_string_labels_come_back_as_strings(name, digits, tmp_path):
    X, X_test, y, y_test = digits
    names = np.array([f"digit {value}" for value in range(10)])
    make_head(name, **QUICK[name]).fit(X, names[y]).save(tmp_path)
    predicted = load_head(tmp_path).predict(X_test)
    assert np.mean(predicted == names[y_test]) > 0.9


@each_head
def test_a_class_with_one_row_and_a_constant_feature_do_no_harm(name, widths):
    X, X_test, y, y_test = widths
    keep = np.flatnonzero((y != 7) | (np.arange(len(y)) == np.flatnonzero(y == 7)[0]))
    X, X_test = X.copy(), X_test.copy()
    X[:, 0] = X_test[:, 0] = 0
    head = make_head(name, **QUICK[name]).fit(X[keep], y[keep])
    assert len(head.classes_) == 10
    assert np.mean(head.predict(X_test)[y_test != 7] == y_test[y_test != 7]) > 0.9


@each_head
def test_huge_values_give_no_nan(name, widths):
    X, X_test, y, _ = widths
    X, X_test = X.copy(), X_test.copy()
    X[::50] *= 1e30
    X_test[::2] *= 1e30
    assert np.isfinite(make_head(name, **QUICK[name]).fit(X, y).predict_proba(X_test)).all()


@each_head
def test_validation_may_lack_a_class_and_hold_one_that_is_unknown(name, digits):
    X, X_test, y, y_test = digits
    known, held = y != 9, y_test != 0
    head = make_head(name, **QUICK[name]).fit(X[known], y[known], validation=(X_test[held], y_test[held]))
    assert head.classes_.tolist() == list(range(9))
    assert np.mean(head.predict(X)[known] == y[known]) > 0.9


@each_head
def test_a_handful_of_rows_is_enough_to_fit(name, digits):
    X, X_test, y, _ = digits
    rows = np.concatenate([np.flatnonzero(y == digit)[:2] for digit in range(10)])
    assert np.isfinite(make_head(name, **QUICK[name]).fit(X[rows], y[rows]).predict_proba(X_test)).all()


@each_head
def test_more_classes_than_rows_in_a_batch_can_be_learnt(name):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 20))
    y = np.repeat(np.arange(40), 6)
    X = (centres[y] + 0.1 * generator.normal(size=(len(y), 20))).astype(np.float32)
    params = {"batch_rows": 16} if name == "mlp" else {"rows_per_leaf": 3, "rounds": 20} if name == "gbdt" else {}
    assert np.mean(make_head(name, **params).fit(X, y).predict(X) == y) > 0.8


@each_head
def test_two_classes_give_two_columns(name, digits):
    X, X_test, y, y_test = digits
    head = make_head(name, **QUICK[name]).fit(X, y > 4)
    assert head.predict_proba(X_test).shape == (len(X_test), 2)
    assert np.mean(head.predict(X_test) == (y_test > 4)) > 0.85


@each_head
def test_scikit_learn_can_clone_and_cross_validate_a_head(name, digits):
    X, _, y, _ = digits
    head = make_head(name, seed=5, **QUICK[name])
    assert clone(head).get_params() == head.get_params()
    assert cross_val_score(head, X, y, cv=2).min() > 0.85


@each_head
def test_refusals_say_what_was_found_and_expected(name, digits, tmp_path):
    X, _, y, _ = digits
    head = make_head(name, **QUICK[name])
    with refused(ClassifierError, match="two or more"):
        head.fit(X, np.zeros(len(X)))
    with refused(ClassifierError, match="NaN"):
        head.fit(np.where(X > 2, np.nan, X), y)
    with refused(ClassifierError, match=r"X has 10 features, but .* is expecting 64 features"):
        head.fit(X, y).predict(X[:, :10])
    head.save(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"torn")
    with refused(ClassifierError, match="damaged"):
        load_head(tmp_path)


def test_unknown_heads_parameters_and_folders_are_refused():
    with refused(UsageError, match="mlp, gbdt, logistic, lda"):
        make_head("forest")
    with refused(UsageError, match="no parameter depth; it has batch_rows"):
        make_head("mlp", depth=3)
    with refused(ClassifierError, match="no head in"):
        load_head(Path("nowhere"))


def test_importing_the_heads_loads_no_learner_and_no_cache():
    unwanted = {"torch", "lightgbm", "sklearn", "scipy", "polars", "pyarrow", "llmembed.cache"}
    code = f"import sys, llmembed.heads; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "components"), [("gbdt", 64), ("logistic", 100)])
def test_heads_that_project_wide_features_keep_what_they_learnt_from(name, components, digits, tmp_path):
    X, X_test, y, y_test = digits
    wide = [np.hstack([part, part * np.roll(part, 1, axis=1)]) for part in (X, X_test)]
    head = make_head(name, project_above=100, components=components, **QUICK[name]).fit(OnDisk(wide[0]), y)
    assert head.fit_info_["projected"] and head.fit_info_["steps"] > 0
    assert (head.predict(wide[1]) == y_test).mean() > 0.92
    head.save(tmp_path)
    np.testing.assert_array_equal(load_head(tmp_path).predict(wide[1]), head.predict(wide[1]))


def test_an_mlp_has_the_hidden_layers_that_it_is_asked_for(digits, tmp_path):
    X, X_test, y, _ = digits
    head = make_head("mlp", hidden=(24, 8), dropout=0.1, epochs=2).fit(X, y)
    weights = [tuple(layer.weight.shape) for layer in head.network_[0] if hasattr(layer, "in_features")]
    assert weights == [(24, 64), (8, 24), (10, 8)]
    head.save(tmp_path)
    loaded = load_head(tmp_path)
    assert loaded.get_params() == head.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(X_test), head.predict_proba(X_test))


def test_every_head_that_can_be_chosen_is_there():
    assert sorted(HEADS) == sorted(get_args(HeadName))


def test_an_mlp_without_hidden_layers_is_linear(digits):
    X, X_test, y, y_test = digits
    head = make_head("mlp", hidden=(), epochs=8, learning_rate=1e-2).fit(X, y)
    assert [len(member) for member in head.network_] == [1, 1]
    assert np.mean(head.predict(X_test) == y_test) > 0.9


def learned(fusion, layout, rows=8):
    """Make a learned fusion without dropout, and standardised layers for it."""
    torch.manual_seed(0)
    made = WeightedMean(layout) if fusion == "weighted" else Cooccurrence(layout, compressed=16, dropout=0.0)
    return made.eval(), torch.randn(rows, sum(layers * dim for layers, dim in layout), requires_grad=True)


def test_cooccurrence_gives_what_its_formula_says():
    pooling, features = learned("cooccurrence", ((2, 6), (1, 10)))
    row = features[0].detach()
    layers = [row[:6], row[6:12], row[12:]]
    compressed = [linear(layer).relu() for linear, layer in zip(pooling.compress, layers, strict=True)]
    cosines = [torch.cosine_similarity(compressed[a], compressed[b], dim=0) for a, b in ((0, 1), (0, 2), (1, 2))]
    pooled = pooling(features)[0].detach()
    assert pooled.shape == (pooling.width,) == (3 + 6 + 10,)
    assert torch.allclose(pooled[:3], 2 * torch.sigmoid(torch.stack(cosines)).detach() - 1, atol=1e-4)
    assert torch.allclose(pooled[3:], torch.cat([(row[:6] + row[6:12]) / 2, row[12:]]), atol=1e-6)


@pytest.mark.parametrize("fusion", ["weighted", "cooccurrence"])
def test_gradients_of_learned_fusions_are_right_and_finite_for_rows_of_zeros(fusion):
    pooling, features = learned(fusion, ((3, 4), (2, 5)))
    assert torch.autograd.gradcheck(pooling.double(), features.detach().double().requires_grad_())
    for scale in (0.0, 1.0, 1e4):
        pooling.zero_grad()
        pooled = pooling((features.detach() * scale).double())
        pooled.square().sum().backward()
        assert torch.isfinite(pooled).all()
        assert all(torch.isfinite(weight.grad).all() for weight in pooling.parameters())


def test_cooccurrence_does_not_saturate_however_long_the_layers_are():
    pooling, features = learned("cooccurrence", ((5, 64),), rows=100)
    for scale in (1, 1e4):
        cosines = pooling(features * scale)[:, :10]
        assert cosines.abs().max() < 0.47, "tanh(1 / 2), far from 1"
        assert cosines.std() > 0.01


def test_equal_rows_are_pooled_alike_wherever_they_stand():
    pooling, features = learned("cooccurrence", ((3, 4), (2, 5)))
    twice = torch.cat([features, features.flip(0)])
    assert torch.allclose(pooling(twice)[:8], pooling(twice)[8:].flip(0), atol=1e-6)


@pytest.mark.parametrize("fusion", ["weighted", "cooccurrence"])
def test_a_learned_fusion_learns_and_is_saved(fusion, digits, tmp_path):
    X, X_test, y, y_test = digits
    layout = ((3, 16), (1, 16))
    head = make_head("mlp", fusion=fusion, layout=layout, compressed=32, epochs=12).fit(X, y)
    assert np.mean(head.predict(X_test) == y_test) > 0.85
    head.save(tmp_path)
    loaded = load_head(tmp_path)
    assert loaded.get_params() == head.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(X_test), head.predict_proba(X_test))
    with refused(ClassifierError, match="does not make up the 64 features"):
        make_head("mlp", fusion=fusion, layout=((3, 16),)).fit(X, y)


def test_weights_of_layers_find_the_layer_that_tells():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 600)
    layers = draw.standard_normal((600, 4, 8)).astype(np.float32)
    layers[:, 2, :3] += 3 * np.eye(3)[y]
    head = make_head("mlp", fusion="weighted", layout=((4, 8),), epochs=30).fit(layers.reshape(600, -1), y)
    assert np.argmax(head.fit_info_["layer_weights"][0]) == 2
    assert max(head.fit_info_["layer_weights"][0]) > 0.4


def test_dropout_leaves_the_cosines_of_cooccurrence_what_they_are_in_prediction():
    torch.manual_seed(0)
    pooling, features = Cooccurrence(((3, 16),), compressed=64, dropout=0.5), torch.randn(1, 48)
    wanted = pooling.eval()(features)[0, :3].detach()
    drawn = pooling.train()(features.expand(4000, -1))[:, :3].mean(dim=0).detach()
    assert torch.allclose(drawn, wanted, atol=0.02)


@each_head
def test_balanced_weights_find_more_rows_of_a_rare_class(name, digits):
    X, X_test, y, y_test = digits
    rare = np.flatnonzero(y == 8)[:5]
    keep = np.concatenate([np.flatnonzero(y != 8), rare])

    def recall(class_weight):
        head = make_head(name, class_weight=class_weight, **QUICK[name]).fit(X[keep], y[keep])
        return np.mean(head.predict(X_test)[y_test == 8] == 8)

    assert recall("balanced") > recall(None)
    with refused(ClassifierError, match="class_weight is 'fair'; it may be 'balanced', 'sqrt', None or a dict"):
        make_head(name, class_weight="fair", **QUICK[name]).fit(X, y)


@each_head
def test_rows_on_disk_are_learnt_as_well_as_an_array(name, widths):
    X, X_test, y, y_test = widths
    head = make_head(name, **QUICK[name]).fit(OnDisk(X), y)
    accuracy = np.mean(head.predict(OnDisk(X_test)) == y_test)
    assert abs(accuracy - np.mean(make_head(name, **QUICK[name]).fit(X, y).predict(X_test) == y_test)) < 0.03
    np.testing.assert_allclose(head.predict_proba(OnDisk(X_test)), head.predict_proba(X_test), atol=1e-5)


def test_a_pass_over_rows_on_disk_gives_every_row_once():
    rows = np.arange(1000, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    batches = list(shuffle_rows(OnDisk(rows), 64))
    numbers = torch.cat([chosen for _, chosen in batches])
    assert sorted(numbers.tolist()) == list(range(1000))
    assert torch.equal(torch.cat([batch for batch, _ in batches])[:, 0], numbers.float())
    assert (numbers.diff() == 1).float().mean() < 0.1, "neighbours do not stay together"


def test_logistic_regression_finds_the_minimum_that_scikit_learn_finds(digits):
    X, X_test, y, _ = digits
    ours = make_head("logistic", inverse_penalties=(0.05,), tolerance=1e-9).fit(X, y, validation=(X, y))
    peer = LogisticRegression(C=0.05, max_iter=5000, tol=1e-8).fit(X, y)
    logits = X_test @ ours.weight_ + ours.bias_
    np.testing.assert_allclose(softmax(logits), peer.predict_proba(X_test), atol=2e-3)
    assert ours.fit_info_["converged"]
