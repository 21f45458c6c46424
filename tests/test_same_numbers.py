"""Equal input gives equal numbers: by however many threads, in memory or from disk."""

import json

import numpy as np
import pytest
from every_head import QUICK, OnDisk
from threadpoolctl import threadpool_limits

from llmembed import fitting
from llmembed.heads import make_head
from llmembed.training import train


@pytest.mark.parametrize(
    ("name", "options"), [("lda", {}), ("logistic", {}), ("logistic", {"project_above": 100}), ("gbdt", {})]
)
@pytest.mark.parametrize("width", [64, 640])
def test_the_number_of_threads_changes_no_bit(name, options, width, digits, monkeypatch):
    X, X_test, y, _ = digits
    turned = np.random.default_rng(0).standard_normal((64, width)).astype(np.float32) / 8
    # Many blocks, and sums over more rows than one product takes at a time.
    X, X_test = np.tanh(np.tile(X, (8, 1)) @ turned), np.tanh(X_test @ turned)

    def fit(threads):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        with threadpool_limits(threads, user_api="blas"):
            return make_head(name, **QUICK[name], **options).fit(X, np.tile(y, 8)).predict_proba(X_test).tobytes()

    assert fit(1) == fit(2) == fit(5)


def test_an_mlp_is_the_same_thing_in_memory_and_on_disk(digits):
    X, _, y, _ = digits
    here, there = (make_head("mlp", epochs=3).fit(rows, y) for rows in (X, OnDisk(X)))
    assert here.fit_info_ == there.fit_info_
    assert here.fit_info_["ensemble_size"] == len(here.network_) == len(there.network_) == 2
    assert [weight.shape for weight in here.network_.parameters()] == [
        weight.shape for weight in there.network_.parameters()
    ]


@pytest.mark.parametrize("head", ["mlp", "lda", "gbdt"])
def test_features_beyond_the_limit_are_learnt_as_those_within(head, pydocs, pydocs_cache, tmp_path, monkeypatch):
    options = {"epochs": 10} if head == "mlp" else {"rounds": 10} if head == "gbdt" else {}

    def fit():
        return train(pydocs, root=pydocs_cache, head=head, fusion="mean", head_options=options, out=tmp_path / "m")

    within = fit()
    monkeypatch.setattr(fitting, "RESIDENT_SHARE", 0)
    beyond = fit()
    assert (within.in_memory, beyond.in_memory) == (True, False)
    assert within.validation_rows == beyond.validation_rows
    assert within.fit_info.get("ensemble_size") == beyond.fit_info.get("ensemble_size")
    assert abs(within.report.accuracy - beyond.report.accuracy) < 0.03
    assert abs(within.report.log_loss - beyond.report.log_loss) < 0.06


def test_metrics_and_report_state_what_may_change_the_numbers(pydocs, pydocs_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    training = train(pydocs, root=pydocs_cache, head="lda", fusion="mean", out=tmp_path / "m")
    for name in ("metrics.json", "report.json"):
        content = json.loads((tmp_path / "m" / name).read_bytes())
        assert (content["threads"], content["in_memory"]) == (1, True)
    assert "threads" not in training.settings
