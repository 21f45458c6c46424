"""A few of the attacks of `make torture`, with fixed seeds, on commands in processes of their own."""

import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.torture import damage
from benchmarks.torture.attacks import disks, flips, foreign, inputs, kills, links, races, stops
from benchmarks.torture.children import PromiseError
from benchmarks.torture.scene import HEADS, Scene
from benchmarks.torture.verdicts import UnavailableError, Verdict


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Return a tiny model, a data set, its cache, and a classifier of every head."""
    made = Scene(tmp_path_factory.mktemp("torture") / "scene")
    inputs.add_data(made)
    return made


def see(verdicts: Iterable[Verdict]) -> None:
    """Fail with what did not hold."""
    failures = [f"{verdict.case}: {verdict.failure}" for verdict in verdicts if verdict.failure]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("name", kills.COMMANDS)
def test_a_kill_at_a_write_step_costs_nothing_but_the_work(scene, name, share):
    kills.strike(scene, name, share)


@pytest.mark.parametrize("name", [name for name in kills.COMMANDS if name != "compare"])
def test_a_write_that_a_kill_tears_is_never_taken_for_whole(scene, name):
    kills.strike(scene, name, 0.4, size=200)


@pytest.mark.parametrize("pattern", ["spec.json", "commits/*", "extractions/*", "shards/*", "derived/*"])
def test_a_changed_file_of_the_cache_gives_the_same_report_or_is_named(scene, pattern):
    hurt = flips.hurts(scene.start, f"cache/*/*/{pattern}")
    see(flips.strike(scene, hurt[:: max(1, len(hurt) // 20)], damage.train_lda))


@pytest.mark.parametrize("pattern", ["spec.json", "commits/*", "extractions/*", "shards/*"])
def test_extract_makes_a_changed_file_of_the_cache_again(scene, pattern):
    hurt = flips.hurts(scene.start, f"cache/*/*/{pattern}")
    some = hurt[len(hurt) // 8 :: max(1, len(hurt) // 4)]
    see(flips.strike(scene, some, damage.read_rows, scene.rows, str(scene.model), mend=True))


@pytest.mark.parametrize("head", HEADS)
def test_a_changed_file_of_a_classifier_gives_the_same_numbers_or_is_named(scene, head):
    hurt = flips.hurts(scene.start, f"models/{head}/*")
    some = hurt[:: max(1, len(hurt) // 60)]
    see(flips.strike(scene, some, damage.predict_like, f"models/{head}", scene.numbers[head]))


@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_tampered_with_digests_and_all_never_crashes_or_hangs(scene, head):
    hurt = flips.hurts(scene.start, f"models/{head}/head*")
    see(flips.strike(scene, hurt[:: max(1, len(hurt) // 60)], damage.predict_any, f"models/{head}", reseal=True))


@pytest.mark.parametrize(("name", "room"), [(name, rooms[1]) for name, rooms in disks.ROOM.items()])
def test_a_full_disk_is_one_line_and_what_was_there_is_whole(scene, name, room):
    disks.full(scene, name, room)


@pytest.mark.parametrize(
    "case", ["train from a read-only cache", "extract into a read-only cache", "train into read-only models"]
)
def test_a_read_only_place_is_used_or_refused_before_the_work(scene, case):
    skip_where_impossible(disks.locked, *disks.locked_cases(scene)[case])


@pytest.mark.parametrize("count", links.COUNTS)
@pytest.mark.parametrize("fault", ["EPERM", "a lost reply"])
def test_links_that_fail_give_the_same_rows_and_one_commit_a_shard(scene, fault, count):
    links.extract(scene, fault, count)


@pytest.mark.parametrize("name", ["8 extractions", "2 repairs", "2 trainings, one --out", "2 comparisons"])
def test_processes_that_do_the_same_at_once_all_end_well(scene, name):
    races.race(scene, name, seed=1)


@pytest.mark.parametrize("thing", ["a directory", "a pipe", "a link to a file outside"])
@pytest.mark.parametrize("folder", foreign.BESIDE)
def test_a_foreign_thing_in_the_cache_is_passed_over_or_named(scene, folder, thing):
    foreign.in_cache(scene, thing, folder, foreign.BESIDE[folder][1])


@pytest.mark.parametrize("thing", ["a directory", "a pipe", "a link to nothing"])
def test_a_foreign_thing_in_a_classifier_is_named(scene, thing):
    foreign.in_classifier(scene, thing, "lda", "head.safetensors")


@pytest.mark.parametrize("taken", ["a shard", "all shards", "spec.json"])
def test_files_of_another_cache_are_found_out(scene, taken):
    foreign.of_another(scene, ("--pooling", "max"), taken)


@pytest.mark.parametrize("suffix", inputs.FORMATS)
def test_a_damaged_data_set_is_read_or_refused_by_name(scene, suffix):
    hurt = flips.hurts(scene.start, f"data/films.{suffix}", small=0, large=40)
    see(flips.strike(scene, hurt, damage.load_data))


@pytest.mark.parametrize(
    "name", ["cr.csv", "nul-labels.csv", "escapes.csv", "deep.jsonl", "odd-column.jsonl", "...csv"]
)
def test_a_hostile_data_file_works_or_is_refused_in_a_line(scene, name):
    (hostile,) = [hostile for hostile in inputs.HOSTILE if hostile.name == name]
    inputs.read_hostile(scene, hostile)


@pytest.mark.parametrize("name", ["-x.csv", "a b'c\"$(d);e.csv"])
def test_what_a_refusal_says_to_do_helps_whatever_the_file_is_called(scene, name):
    inputs.advice_is_right(scene, name)


@pytest.mark.parametrize("name", ["--seed -1", "--device xyz", "--hidden 99999999999", "--out of 300 letters"])
def test_an_odd_option_is_refused_before_the_work(scene, name):
    inputs.odd_option(scene, name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["extract", "train --out, replacing"])
def test_a_stopped_command_leaves_all_whole_and_goes_on_the_next_time(scene, name, number):
    stops.stop(scene, name, number, seed=1)


def test_predictions_reach_a_stdout_that_is_ascii(scene):
    stops.say(scene, stops.SAID["predict"], "ascii")


def test_the_harness_sees_a_kill_a_hang_and_another_number(scene, tmp_path):
    with pytest.raises(PromiseError, match=r"missing|other rows|not in"), scene.copy() as work:
        for shard in work.glob("cache/*/*/shards/*"):
            shard.unlink()
        scene.check_rows(work, "without shards")
    steps = kills.list_steps(scene, "extract")
    assert len(steps) > 20 and any("commits" in step for step in steps)
    assert [hurt for hurt in flips.hurts(scene.start, "models/lda/*") if Path(hurt.file).name == "classifier.json"]


def skip_where_impossible(check, *given) -> None:
    try:
        check(*given)
    except UnavailableError as reason:
        pytest.skip(str(reason))
