"""Rows of one group, such as copies of a text, are held out together: no head judges itself by what it has seen."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from every_head import QUICK, OnDisk, each_head

from llmembed.folds import deal_folds, find_repeats, hold_out
from llmembed.heads import make_head
from llmembed.heads.discriminant import fit_discriminant
from llmembed.training import train


class Noting(OnDisk):
    """Rows on disk that note which of them were ever chosen."""

    def __init__(self, X):
        super().__init__(X)
        self.chosen = []

    def select_rows(self, rows):
        self.chosen.append(np.asarray(rows))
        return super().select_rows(rows)


def repeated(rows=600, width=20):
    """Make noise whose rows stand there three times, with labels that it says nothing about, and their groups."""
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((rows, width)).astype(np.float32), draw.integers(0, 2, rows)
    return np.tile(X, (3, 1)), np.tile(y, 3), np.tile(np.arange(rows), 3)


@each_head
@pytest.mark.parametrize("options", [{}, {"project_above": 10}])
def test_rows_of_one_group_are_never_on_both_sides(name, options, digits):
    X, _, y, _ = digits
    groups = np.random.default_rng(0).integers(0, 500, len(y))
    options = options if "project_above" in make_head(name).get_params() else {}
    matrix = Noting(X)
    make_head(name, **QUICK[name], **options).fit(matrix, y, groups=groups)
    for chosen in matrix.chosen:
        assert not set(groups[chosen]) & set(np.delete(groups, chosen))
    assert matrix.chosen or name == "lda"


@each_head
def test_copies_of_rows_do_not_make_a_head_sure_of_noise(name):
    X, y, groups = repeated()
    unseen = np.random.default_rng(1).standard_normal((500, 20)).astype(np.float32)

    def confidence(groups):
        return make_head(name, **QUICK[name]).fit(X, y, groups=groups).predict_proba(unseen).max(axis=1).mean()

    assert confidence(groups) < 0.57
    assert confidence(None) > confidence(groups) + 0.03


def test_copies_get_the_same_logits_out_of_fold():
    X, y, groups = repeated()
    logits = fit_discriminant(X, y, np.ones(2, np.float32), groups=groups, seed=0).logits.reshape(3, 600, 2)
    np.testing.assert_allclose(logits[1:], logits[:1].repeat(2, axis=0), atol=1e-4)


@pytest.mark.parametrize("head", ["lda", "logistic", "mlp"])
def test_a_data_set_with_every_text_three_times_is_learnt_like_the_one_with_each_once(
    head, pydocs, pydocs_cache, tmp_path
):
    tripled = pl.concat([pydocs.table, *2 * [pydocs.table.filter(pl.col("split") == "train")]])
    options = {"epochs": 10} if head == "mlp" else {}
    once, thrice = (
        train(replace(pydocs, table=table), root=pydocs_cache, head=head, head_options=options, out=tmp_path / "m")
        for table in (pydocs.table, tripled)
    )
    assert abs(thrice.validation_rows - 3 * once.validation_rows) < 10
    assert abs(thrice.report.accuracy - once.report.accuracy) < 0.03
    assert abs(thrice.report.calibration_error - once.report.calibration_error) < 0.05
    assert thrice.fit_info.get("shrinkage") == once.fit_info.get("shrinkage")
    assert thrice.fit_info.get("inverse_penalty", 0) <= once.fit_info.get("inverse_penalty", 0)


def test_folds_are_stratified_and_balanced_even_beside_a_text_that_is_everywhere():
    draw = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [800, 160, 40])
    alone, spread = np.arange(1000), draw.integers(0, 300, 1000)
    fold = deal_folds(codes, alone, folds=5, seed=0)
    assert [np.bincount(fold[codes == code]).tolist() for code in range(3)] == [[160] * 5, [32] * 5, [8] * 5]
    giant = np.where(alone < 150, 0, alone)
    assert np.bincount(deal_folds(codes, giant, folds=5, seed=0)).tolist() == [200] * 5
    fold = deal_folds(codes, spread, folds=5, seed=0)
    assert all(len(set(fold[spread == group])) == 1 for group in np.unique(spread))
    assert np.ptp(np.bincount(fold)) < 20


def test_a_tenth_of_every_class_is_held_out_but_of_classes_of_a_few_rows_nothing():
    codes = np.repeat(np.arange(4), [1, 2, 5, 100])
    train_rows, held = hold_out(codes, np.arange(108), seed=0)
    assert np.bincount(codes[train_rows], minlength=4).tolist() == [1, 2, 4, 90]
    assert sorted([*train_rows, *held]) == list(range(len(codes)))


def test_every_class_keeps_a_training_row_whatever_the_groups():
    draw = np.random.default_rng(0)
    for seed in range(200):
        codes, groups = draw.integers(0, 8, 60) ** 2 // 7, draw.integers(0, draw.integers(2, 60), 60)
        train_rows, held = hold_out(codes, groups, seed=seed)
        assert set(codes[train_rows]) == set(codes)
        assert not set(groups[train_rows]) & set(groups[held])
        assert sorted([*train_rows, *held]) == list(range(60))


def test_a_text_that_is_everywhere_does_not_fill_the_held_out_tenth():
    codes, groups = np.repeat([0, 1], 500), np.where(np.arange(1000) % 2, np.arange(1000), 0)
    held = hold_out(codes, groups, seed=0)[1]
    assert 80 <= len(held) <= 100 and 0 not in groups[held]


def test_without_repeats_the_same_rows_are_held_out_as_with_them():
    codes = np.random.default_rng(0).integers(0, 4, 300)
    once = hold_out(codes, np.arange(300), seed=5)[1]
    thrice = hold_out(np.tile(codes, 3), np.tile(np.arange(300), 3), seed=5)[1]
    assert len(set(thrice % 300) ^ set(once)) <= 4


def test_repeats_are_found_by_their_whole_text():
    assert find_repeats(["a", "b", "a", "a\0", "A", "b"]).tolist() == [0, 1, 0, 3, 4, 1]
