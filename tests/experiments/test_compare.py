import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from refusals import refused
from small_comparison import small_comparison

from llmembed.errors import DatasetError
from llmembed.experiments.comparison import Configuration, Leaderboard, configurations
from llmembed.reports.plots import draw_depths


def without_times(leaderboard: Leaderboard) -> list[tuple]:
    return [(line.configuration, line.accuracy, line.standard_deviation, line.macro_f1) for line in leaderboard.lines]


def test_every_fusion_and_every_single_layer_meets_every_head_and_option():
    compared = configurations(
        [(4, 5)],
        fusions=["last", "concat"],
        heads=["mlp", "gbdt"],
        options={"mlp": [{"hidden": (8,)}, {"hidden": (64,)}]},
    )
    assert len(compared) == 3 * (2 + 1) == len({each.model_dump_json() for each in compared})
    assert Configuration(fusion="last", layers=((4,),), head="gbdt") in compared
    assert Configuration(fusion="concat", layers=((4, 5),), head="mlp", options={"hidden": (64,)}) in compared


def test_the_winner_on_the_folds_is_refitted_and_tested(pydocs, pydocs_cache, tmp_path):
    leaderboard = small_comparison(pydocs, pydocs_cache, tmp_path)
    first = leaderboard.lines[0]
    assert [line.accuracy for line in leaderboard.lines] == sorted(each.accuracy for each in leaderboard.lines)[::-1]
    assert (leaderboard.winner.settings.fusion, leaderboard.winner.settings.head) == (
        first.configuration.fusion,
        first.configuration.head,
    )
    assert leaderboard.winner.rows == leaderboard.rows == 700
    assert abs(leaderboard.winner.report.accuracy - first.accuracy) < 0.1
    assert [line.configuration.layers for line in leaderboard.by_depth["logistic"]] == [((4,),), ((6,),)]
    assert (tmp_path / "model" / "classifier.json").exists()


def test_the_test_split_decides_nothing(pydocs, pydocs_cache, tmp_path):
    spoilt = pydocs.table.with_columns(
        pl.when(pl.col("split") == "test").then(pl.lit("numpy")).otherwise("label").alias("label")
    )
    honest = small_comparison(pydocs, pydocs_cache, tmp_path / "a")
    blind = small_comparison(replace(pydocs, table=spoilt), pydocs_cache, tmp_path / "b")
    assert without_times(blind) == without_times(honest)
    assert blind.winner.report.accuracy < honest.winner.report.accuracy


def test_equal_seeds_give_equal_lines_and_a_second_call_computes_only_what_is_new(pydocs, pydocs_cache, tmp_path):
    first = small_comparison(pydocs, pydocs_cache, tmp_path)
    again = small_comparison(pydocs, pydocs_cache, tmp_path)
    elsewhere = small_comparison(pydocs, pydocs_cache, tmp_path / "elsewhere")
    more = small_comparison(pydocs, pydocs_cache, tmp_path, fusions=["mean", "concat", "max"])
    assert (first.computed, first.reused) == (8, 0)
    assert (again.computed, again.reused) == (0, 8)
    assert (more.computed, more.reused) == (2, 8)
    assert again.lines == first.lines
    assert without_times(elsewhere) == without_times(first)


def test_other_labels_are_another_comparison(pydocs, pydocs_cache, tmp_path):
    small_comparison(pydocs, pydocs_cache, tmp_path)
    relabelled = replace(pydocs, table=pydocs.table.with_columns(pl.col("label").replace("numpy", "scipy")))
    assert small_comparison(relabelled, pydocs_cache, tmp_path).reused == 0


def test_killed_it_goes_on_where_it_was(pydocs, pydocs_cache, tmp_path):
    program = "from llmembed.cli import main; main()"
    words = ["compare", "pydocs", "--limit", "700", "--cache", str(pydocs_cache), "--results", str(tmp_path / "r")]
    words += ["--head", "gbdt,logistic", "--fusion", "mean", "--folds", "2", "--out", str(tmp_path / "m"), "--json"]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "r").glob("*/[!.]*.json")):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list((tmp_path / "r").glob("*/[!.]*.json")))
    done = subprocess.run([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert found["reused"] == kept > 0
    assert found["computed"] == 2 * 6 * 2 - kept > 0


def test_options_of_a_head_are_found_again(pydocs, pydocs_cache, tmp_path):
    options = {"logistic": [{"inverse_penalties": (0.01,)}, {"inverse_penalties": (0.1, 1.0)}]}
    first = small_comparison(pydocs, pydocs_cache, tmp_path, options=options)
    again = small_comparison(pydocs, pydocs_cache, tmp_path, options=options)
    assert (first.computed, again.computed, again.reused) == (16, 0, 16)
    assert without_times(again) == without_times(first)


def test_a_class_smaller_than_the_folds_is_no_hindrance(pydocs, pydocs_cache, tmp_path):
    first = pydocs.texts("train")[0]
    rare = pl.when(pl.col("text") == first).then(pl.lit("rare")).otherwise("label").alias("label")
    leaderboard = small_comparison(replace(pydocs, table=pydocs.table.with_columns(rare)), pydocs_cache, tmp_path)
    assert leaderboard.rows == 700
    assert 0.5 < leaderboard.lines[0].accuracy < 1


def test_more_folds_than_rows_are_refused(pydocs, pydocs_cache, tmp_path):
    with refused(
        DatasetError, match=r"largest class has \d+ training texts that are not part of others, fewer than --folds"
    ):
        small_comparison(pydocs, pydocs_cache, tmp_path, folds=500)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn(suffix, pydocs, pydocs_cache, tmp_path):
    leaderboard = small_comparison(pydocs, pydocs_cache, tmp_path)
    draw_depths(leaderboard, tmp_path / f"depths.{suffix}")
    begin = (tmp_path / f"depths.{suffix}").read_bytes()[:100]
    assert begin.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
