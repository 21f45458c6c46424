"""The heads as scikit-learn's estimators: its own checks, its tools, and input that is refused. No download."""

import numpy as np
import polars as pl
import pytest
from every_head import QUICK, OnDisk, each_head
from refusals import refused
from scipy.sparse import csr_array
from sklearn.datasets import load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from llmembed.cache import Cache
from llmembed.errors import InputError
from llmembed.heads import HEADS, load_head, make_head


# As they are made by default, and the gbdt as it is for wide features.
@parametrize_with_checks([*map(make_head, HEADS), make_head("gbdt", project_above=1)])
def test_every_head_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@each_head
def test_a_pipeline_scales_features_of_very_different_size(name):
    X, y = load_wine(return_X_y=True)
    assert X.std(axis=0).max() > 1000 * X.std(axis=0).min()
    assert cross_val_score(make_pipeline(StandardScaler(), make_head(name)), X, y, cv=3).min() > 0.8


@each_head
def test_a_pipeline_classifies_the_embeddings_of_a_cache(name, pydocs, pydocs_cache):
    X, y = Cache.latest(pydocs_cache).matrix(pydocs.texts("train"))[:, -384:], pydocs.labels("train")
    assert cross_val_score(make_pipeline(StandardScaler(), make_head(name, **QUICK[name])), X, y, cv=2).min() > 0.6


@pytest.mark.parametrize(
    ("name", "parameter", "values", "best"),
    [
        ("mlp", "epochs", np.array([1, 8]), 8),
        ("gbdt", "rounds", np.array([1, 20]), 20),
        ("logistic", "max_iterations", np.array([1, 50]), 50),
        ("lda", "shrinkages", [(1e4,), (0.1, 1.0)], (0.1, 1.0)),
    ],
)
def test_a_grid_search_finds_the_better_value_and_its_head_is_saved(name, parameter, values, best, digits, tmp_path):
    X, X_test, y, y_test = digits
    search = GridSearchCV(make_head(name, **QUICK[name]), {parameter: values}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {parameter: best}
    assert search.score(X_test, y_test) > 0.85
    search.best_estimator_.save(tmp_path)
    loaded = load_head(tmp_path)
    assert loaded.get_params() == search.best_estimator_.get_params()
    np.testing.assert_array_equal(loaded.predict(X_test), search.predict(X_test))


@each_head
def test_data_frames_are_taken_for_their_values(name, digits):
    X, X_test, y, _ = digits
    from_frames = make_head(name, **QUICK[name]).fit(pl.DataFrame(X), pl.Series(y)).predict_proba(pl.DataFrame(X_test))
    np.testing.assert_array_equal(from_frames, make_head(name, **QUICK[name]).fit(X, y).predict_proba(X_test))


def spoilt(X, value):
    X = X.copy()
    X[3, 5] = value
    return X


@each_head
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X: spoilt(X, np.nan), r"1 rows of the features hold NaN or infinity"),
        (lambda X: spoilt(X, -np.inf), r"1 rows of the features hold NaN or infinity"),
        (lambda X: X[0], "Expected 2D array, got 1D array"),
        (lambda X: X[:0], r"0 sample\(s\)"),
        (lambda X: X[:, :0], r"0 feature\(s\)"),
        (lambda X: X.astype(complex), "Complex data not supported"),
        (lambda X: np.full(X.shape, "red"), "could not convert string to float"),
    ],
)
def test_features_that_cannot_be_used_are_refused_in_training_and_after(name, spoil, message, digits):
    X, _, y, _ = digits
    head, bad = make_head(name, **QUICK[name]), spoil(X[:50])
    with refused(InputError, match=message):
        head.fit(bad, y[: len(bad)])
    with refused(InputError, match=message):
        head.fit(X[:100], y[:100]).predict(bad)


@each_head
@pytest.mark.parametrize("store", [np.asarray, OnDisk])
def test_rows_are_as_wide_as_in_training_and_have_a_label_each(name, store, digits):
    X, X_test, y, _ = digits
    head = make_head(name, **QUICK[name])
    with pytest.raises(NotFittedError):
        head.predict(store(X_test))
    with refused(InputError, match=r"inconsistent numbers of samples: \[1257, 1256\]"):
        head.fit(store(X), y[:-1])
    head.fit(store(X), y)
    with refused(InputError, match=r"X has 63 features, but .* is expecting 64 features"):
        head.predict_proba(store(X_test[:, 1:]))


@each_head
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "requires y to be passed"),
        (np.full(50, "sport"), r"All 50 training rows are of one class, \['sport'\]; expected two or more"),
        (np.linspace(0, 1, 50), "Unknown label type: continuous"),
        (np.where(np.arange(50) == 7, np.nan, np.arange(50) % 2), "Input y contains NaN"),
        (np.eye(50)[:, :3], "y should be a 1d array, got an array of shape"),
        ([["a", "b"], ["c"]] * 25, "inhomogeneous"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(name, labels, message, digits):
    with refused(InputError, match=message):
        make_head(name, **QUICK[name]).fit(digits[0][:50], labels)


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"lda"}))
def test_validation_that_cannot_be_used_is_refused(name, digits):
    X, X_test, y, y_test = digits
    head = make_head(name, **QUICK[name])
    with refused(InputError, match=r"None of the 2 validation rows .*: \['seven', 'two'\] against \[0, 1, 2"):
        head.fit(X, y, validation=(X_test[:2], ["seven", "two"]))
    with refused(InputError, match=r"inconsistent numbers of samples: \[540, 539\]"):
        head.fit(X, y, validation=(X_test, y_test[1:]))
    with refused(InputError, match="X has 10 features"):
        head.fit(X, y, validation=(OnDisk(X_test[:, :10]), y_test))
    with refused(InputError, match="hold NaN"):
        head.fit(X, y, validation=(spoilt(X_test, np.nan), y_test))


@each_head
def test_unknown_labels_in_the_test_count_as_errors(name, digits):
    X, X_test, y, y_test = digits
    head = make_head(name, **QUICK[name]).fit(X[y < 8], y[y < 8])
    known = y_test < 8
    assert head.score(X_test, y_test) == pytest.approx(head.score(X_test[known], y_test[known]) * known.mean())


@each_head
def test_constant_features_give_the_shares_of_the_classes(name):
    y = np.repeat(["often", "rarely"], [60, 20])
    head = make_head(name, class_weight=None).fit(np.full((80, 5), 3.0), y)
    np.testing.assert_allclose(head.predict_proba(np.full((2, 5), 3.0)), [[0.75, 0.25]] * 2, atol=0.05)


@each_head
def test_a_row_of_each_class_is_enough(name):
    X = [[0.0, 1.0], [1.0, 0.0]]
    probabilities = make_head(name).fit(X, ["a", "b"]).predict_proba(X)
    assert np.isfinite(probabilities).all()
    assert probabilities[0, 0] >= probabilities[1, 0]


@each_head
def test_weights_by_label_are_obeyed_checked_and_saved(name, digits, tmp_path):
    X, X_test, y, _ = digits

    def count_eights(weight):
        head = make_head(name, class_weight={np.int64(8): weight}, **QUICK[name]).fit(X, y)
        head.save(tmp_path)
        assert load_head(tmp_path).get_params() == head.get_params()
        return np.sum(head.predict(X_test) == 8)

    assert count_eights(1e-3) < count_eights(1.0) < count_eights(1e3)
    with refused(InputError, match=r"class_weight names \['eight'\]; the labels are \[0, 1, 2"):
        make_head(name, class_weight={"eight": 2.0}).fit(X, y)
    with refused(InputError, match="every weight must be positive"):
        make_head(name, class_weight={8: 0.0}).fit(X, y)


@each_head
def test_a_fold_may_lack_a_class_that_has_a_weight(name, digits):
    X, _, y, _ = digits
    weights = {digit: 1.0 + digit for digit in range(10)}
    head = make_head(name, class_weight=weights, **QUICK[name]).fit(X[y != 9], y[y != 9])
    assert head.classes_.tolist() == list(range(9))


@each_head
def test_sparse_features_are_refused_by_name(name, digits):
    X, _, y, _ = digits
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        make_head(name).fit(csr_array(X), y)


@pytest.mark.filterwarnings("error")
@each_head
def test_arrays_that_are_read_only_give_no_warning(name, digits):
    X, _, y, _ = digits
    X, y = X.copy(), y.copy()
    X.setflags(write=False)
    y.setflags(write=False)
    make_head(name, **QUICK[name]).fit(X, y).predict(X)
