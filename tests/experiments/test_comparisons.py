"""The results that a comparison keeps: whole or not there, whatever happened to their files."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmembed.experiments.trials import Configuration, Result, Results, Trial
from llmembed.storage import open_store

TRIALS = [
    Trial(configuration=Configuration(fusion="last", layers=((4,),), head="lda"), seed=0, fold=fold, folds=3)
    for fold in range(2)
]


def result(trial, accuracy=0.5):
    return Result(trial=trial, accuracy=accuracy, macro_f1=0.25, fit_seconds=1.5)


@pytest.fixture
def kept(pydocs, tmp_path):
    """Results on disk with that of one trial, the trial, and its file."""
    results = Results(open_store(tmp_path), pydocs)
    results.write(result(TRIALS[0]))
    return results, TRIALS[0], tmp_path / results.name(TRIALS[0])


def test_a_result_comes_back(kept):
    results, trial, file = kept
    assert results.read(trial) == result(trial) and results.read(TRIALS[1]) is None
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: b"",
        lambda whole: whole[:-9],
        lambda whole: whole.replace(b"0.5", b"0.9"),
        lambda whole: json.dumps(json.loads(whole)["result"]).encode(),
        lambda whole: b"[" * 100_000,
        lambda whole: b"\xff",
    ],
)
def test_a_torn_empty_or_changed_result_counts_as_missing_and_is_written_again(change, kept):
    results, trial, file = kept
    file.write_bytes(change(file.read_bytes()))
    assert results.read(trial) is None
    results.write(result(trial, accuracy=0.75))
    assert results.read(trial) == result(trial, accuracy=0.75)


def test_the_result_of_another_trial_or_what_is_no_file_counts_as_missing(kept):
    results, trial, file = kept
    results.write(result(TRIALS[1]))
    (file.parent / results.name(TRIALS[1])).replace(file)
    assert results.read(trial) is None
    file.unlink()
    file.mkdir()
    assert results.read(trial) is None


def test_two_comparisons_that_write_the_same_results_both_end_well(kept):
    results, trial, _ = kept
    together = threading.Barrier(8)

    def write(number):
        together.wait()
        for _ in range(20):
            results.write(result(trial, accuracy=number / 8))
            assert results.read(trial) is not None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert results.read(trial).accuracy in [number / 8 for number in range(8)]


def test_what_a_killed_comparison_left_is_swept(kept, pydocs):
    _, trial, file = kept
    file.with_name(f".{file.name}.0123abcd").write_text("{")
    assert Results(open_store(file.parent), pydocs).read(trial) is not None
    assert [path.name for path in file.parent.iterdir()] == [file.name]
