"""What wide features go through before a head: sweeps over their rows, principal axes, the linear discriminant."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from llmembed import matrix
from llmembed.heads import discriminant
from llmembed.heads.discriminant import fit_discriminant
from llmembed.heads.principal_axes import find_axes
from llmembed.heads.projection import fit_projection
from llmembed.matrix import map_blocks, sum_blocks

EQUAL = np.ones(10, np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks so small that there are many, for several threads."""
    monkeypatch.setattr(matrix, "BLOCK_VALUES", 64 * 50)


def products(digits):
    X, X_test, y, y_test = digits
    return (*(np.hstack([each, each * np.roll(each, 1, axis=1)]) for each in (X, X_test)), y, y_test)


def test_a_sweep_sees_every_row_once_whatever_the_number_of_threads(digits, small_blocks, monkeypatch):
    X = digits[0]
    doubled, sums = map_blocks(X, lambda block: 2 * block, 64), []
    np.testing.assert_array_equal(doubled, 2 * X)
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        sums.append(sum_blocks(X, (64,), lambda total, rows, block: np.add(total, block.sum(axis=0), out=total)))
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(sums[0], X.sum(axis=0), rtol=1e-4, atol=1e-3)


def test_the_discriminant_is_the_one_of_scikit_learn(digits, small_blocks, monkeypatch):
    X, X_test, y, _ = products(digits)
    monkeypatch.setattr(discriminant, "LEAST_GAIN", -1.0)
    monkeypatch.setattr(discriminant, "MOST_STEPS", 60)
    ours = fit_discriminant(X, y, EQUAL, groups=np.arange(len(y)), shrinkages=(0.1,), seed=0)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    means, within = peer.means_, np.cov((X - peer.means_[y]).T, bias=True) + 0.1 * np.eye(X.shape[1])
    weight = np.linalg.solve(within, means.T)
    logits = X_test @ weight + np.log(peer.priors_) - (means.T * weight).sum(axis=0) / 2
    found = X_test @ ours.weight + ours.bias
    assert (found.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert np.corrcoef(found.ravel(), logits.ravel())[0, 1] > 0.9999


def test_logits_out_of_fold_know_nothing_of_the_label_of_their_row():
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((400, 300)).astype(np.float32), draw.integers(0, 2, 400)
    fitted = fit_discriminant(X, y, EQUAL[:2], groups=np.arange(len(y)), seed=0)
    in_fold = ((X @ fitted.weight + fitted.bias).argmax(axis=1) == y).mean()
    out_of_fold = (fitted.logits.argmax(axis=1) == y).mean()
    assert in_fold > 0.75 and abs(out_of_fold - 0.5) < 0.1, (in_fold, out_of_fold)


def test_linearly_dependent_constant_and_few_features_do_no_harm(digits):
    X, X_test, y, y_test = digits
    twice = [np.hstack([each, each, 0 * each[:, :5]]) for each in (X, X_test)]
    for features in (twice[0], X[:, :1]):
        fitted = fit_discriminant(features, y, EQUAL, groups=np.arange(len(y)), seed=0)
        assert np.isfinite(fitted.logits).all() and np.isfinite(fitted.weight).all()
    fitted = fit_discriminant(twice[0], y, EQUAL, groups=np.arange(len(y)), seed=0)
    assert ((twice[1] @ fitted.weight + fitted.bias).argmax(axis=1) == y_test).mean() > 0.9


def test_a_class_with_one_row_is_missing_from_a_fold_and_does_no_harm(digits):
    X, _, y, _ = digits
    rows = np.flatnonzero((y != 3) | (np.cumsum(y == 3) == 1))
    fitted = fit_discriminant(X[rows], y[rows], EQUAL, groups=np.arange(len(y[rows])), seed=0)
    assert np.isfinite(fitted.logits).all() and (fitted.logits.argmax(axis=1) == y[rows]).mean() > 0.9


@pytest.mark.parametrize("width", [128, 700])
def test_axes_are_the_principal_ones_and_invert_the_covariance(width):
    draw = np.random.default_rng(0)
    scales = np.linspace(1, 0.2, width) ** 2
    mixing = np.linalg.qr(draw.standard_normal((width, width)))[0]
    X = (draw.standard_normal((3000, width)) * scales @ mixing).astype(np.float32)
    axes = find_axes(X, seed=0)
    np.testing.assert_allclose(axes.vectors.T @ axes.vectors, np.eye(len(axes.variances)), atol=1e-3)
    covariance = X.T @ X / len(X)
    largest = np.sort(np.linalg.eigvalsh(covariance))[::-1][: len(axes.variances)]
    np.testing.assert_allclose(axes.variances[:100], largest[:100], rtol=0.05)
    columns = axes.vectors[:, :5]
    inverted = axes.apply(lambda variances: 1 / variances, covariance @ columns)
    np.testing.assert_allclose(inverted, columns, atol=0.05)


def test_a_projection_of_new_rows_is_that_of_training_but_for_the_folds(digits):
    X, X_test, y, y_test = products(digits)
    projection, projected, _ = fit_projection(X, y, EQUAL, groups=np.arange(len(y)), components=20, seed=0)
    assert projected.shape == (len(X), 30)
    np.testing.assert_allclose(projection.apply(X)[:, 10:], projected[:, 10:], rtol=1e-3, atol=1e-3)
    assert (projection.apply(X_test)[:, :10].argmax(axis=1) == y_test).mean() > 0.9
