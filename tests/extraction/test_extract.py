import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import save_llama
from refusals import refused
from tiny_models import copy_of
from toy_cache import embeddings

from llmembed.backbones import load_backbone
from llmembed.cache import Cache
from llmembed.datasets import Dataset, load_dataset
from llmembed.errors import BackboneError, UsageError
from llmembed.extraction import SHARD_ROWS, plan_extraction, run_extraction
from llmembed.extraction.estimation import estimate
from llmembed.extraction.resources import Resources


@pytest.fixture
def small(pydocs: Dataset) -> Dataset:
    return with_table(pydocs, pydocs.table.head(300))


def with_table(dataset: Dataset, table: pl.DataFrame) -> Dataset:
    return replace(dataset, table=table)


def test_the_second_time_nothing_is_embedded(small, tiny_llama, tmp_path):
    plan = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama))
    first, second = run_extraction(plan), run_extraction(plan)
    assert (first.embedded, first.reused, first.rows) == (300, 0, 300)
    assert (second.embedded, second.reused, second.tokens) == (0, 300, 0)
    assert second.truncated == first.truncated
    assert second.bytes == first.bytes


def test_only_new_texts_cost_anything(small, tiny_llama, tmp_path):
    run_extraction(plan_extraction(small, root=tmp_path, backbone=str(tiny_llama)))
    new = pl.DataFrame({"text": ["one new text", "one new text"], "label": ["numpy"] * 2, "split": ["train"] * 2})
    relabelled = (
        small.table.tail(200).with_columns(pl.col("label").reverse()).sample(fraction=1.0, shuffle=True, seed=1)
    )
    changed = with_table(small, pl.concat([relabelled, relabelled.head(20), new]))
    report = run_extraction(plan_extraction(changed, root=tmp_path, backbone=str(tiny_llama)))
    assert (report.rows, report.embedded, report.reused) == (222, 1, 221)


def test_rows_are_found_by_text_whatever_their_order(small, tiny_llama, tmp_path):
    plan = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama))
    run_extraction(plan)
    texts = small.texts()
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = embeddings(plan.cache, [texts[i] for i in order])
    assert np.array_equal(shuffled, embeddings(plan.cache, texts)[order])


def test_killed_at_any_moment_it_ends_with_the_same_embeddings(tiny_llama, tmp_path):
    def command(root: Path) -> list[str]:
        program = "from llmembed.cli import main; main()"
        options = [
            "extract",
            "pydocs",
            "--backbone",
            str(tiny_llama),
            "--cache",
            str(root),
            "--limit",
            "6000",
            "--max-length",
            "16",
            "--json",
        ]
        return [sys.executable, "-c", program, *options]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.glob("*/*/commits/[!.]*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = Cache.latest(killed)
    rows_kept = sum(commit.rows for commit in kept.commits)
    again = json.loads(subprocess.run(command(killed), stdout=subprocess.PIPE, check=True).stdout)
    once = json.loads(subprocess.run(command(whole), stdout=subprocess.PIPE, check=True).stdout)
    assert rows_kept % SHARD_ROWS == 0
    assert 0 < again["embedded"] == once["embedded"] - rows_kept
    texts = load_dataset("pydocs", limit=6000).texts()
    assert np.array_equal(embeddings(Cache.latest(killed), texts), embeddings(Cache.latest(whole), texts))


def test_a_model_that_gives_nan_alone_stops_the_job_and_nothing_counts(small, tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    save_llama(folder, **{"layers.2.mlp.down_proj.weight": float("nan")})
    plan = plan_extraction(small, root=tmp_path / "cache", backbone=str(folder))
    with refused(
        BackboneError, match=r"copy gave nothing .* first 300 texts: nan in layer 3, for the text '.*--device cpu"
    ):
        run_extraction(plan)
    assert not Cache.at(tmp_path / "cache", small.name, "copy", plan.spec).commits


def test_a_damaged_shard_is_made_again(small, tiny_llama, tmp_path):
    plan = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama))
    run_extraction(plan)
    before = embeddings(plan.cache, small.texts())
    shard = next(Path(plan.cache.url).glob("shards/*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    report = run_extraction(plan_extraction(small, root=tmp_path, backbone=str(tiny_llama)))
    assert (report.repaired, report.embedded) == (1, 300)
    assert np.array_equal(embeddings(Cache.latest(tmp_path), small.texts()), before)


def test_another_backbone_layer_or_limit_is_another_cache(small, tiny_llama, tmp_path):
    plans = [
        plan_extraction(small, root=tmp_path, backbone=str(tiny_llama), **options)
        for options in ({}, {"layers": (1,)}, {"max_length": 9}, {"pooling": "max"}, {"template": "q: {text}"})
    ]
    assert len({plan.cache.url for plan in plans}) == len(plans)


def test_a_dry_run_writes_nothing_and_knows_the_costs(small, tiny_llama, tmp_path):
    plan = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama), max_length=20)
    guess = estimate(plan)
    assert not list(tmp_path.rglob("*"))
    report = run_extraction(plan)
    assert (guess.rows, guess.missing, guess.tokens) == (report.rows, report.embedded, report.tokens)
    assert guess.truncated == report.truncated > 0
    assert guess.bytes == pytest.approx(report.bytes, rel=0.2)
    assert estimate(plan_extraction(small, root=tmp_path, backbone=str(tiny_llama), max_length=20)).missing == 0


def test_the_shard_says_which_engine_made_it(pydocs_cache):
    commit = Cache.latest(pydocs_cache).commits[0]
    assert commit.engine["engine"] == "transformers"
    assert commit.engine["dtype"] == "float32"
    assert commit.engine.keys() == {"engine", "version", "torch", "device", "dtype"}


def test_a_second_extraction_does_not_even_import_torch(pydocs_cache, pydocs):
    program = (
        "import sys; from pathlib import Path; from llmembed.datasets import load_dataset;"
        "from llmembed.extraction import extract;"
        f"report = extract(load_dataset('pydocs', limit=700), root=Path({str(pydocs_cache)!r}));"
        "print(report.embedded, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["0", "False", "False"]


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        (Resources(), ["3"]),
        (Resources(device="cuda"), ["3"]),
        (Resources(device="cuda:1"), ["5"]),
        (Resources(device="cpu"), []),
        (Resources(tensor_parallel=2), ["3", "5"]),
        (Resources(gpus="all"), ["3", "5"]),
        (Resources(gpus="1"), ["5"]),
    ],
)
def test_the_energy_of_the_gpus_in_use_is_counted(resources, gpus):
    assert resources.in_use(["3", "5"]) == gpus


def test_more_gpus_than_there_are_cannot_share_a_model():
    with refused(UsageError, match="--tensor-parallel 4: 2 GPUs"):
        Resources(tensor_parallel=4).in_use(["0", "1"])


def test_a_device_and_gpus_exclude_each_other():
    with refused(UsageError, match="--gpus all and --device cpu"):
        Resources(gpus="all", device="cpu").groups(["0"])


def test_on_the_cpu_there_is_neither_utilisation_nor_energy(small, tiny_llama, tmp_path):
    plan = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama))
    report = run_extraction(plan, Resources(engine="transformers", device="cpu"))
    assert (report.mfu, report.watt_hours) == (None, None)
    assert report.tokens_per_second > report.texts_per_second > 0
    assert report.engine == plan.cache.commits[0].engine
    assert plan.cache.last_extraction().engine["engine"] == "transformers"


def on_a_card(device: str):
    """Load backbones that say that they run on a card, which no driver here knows."""

    def load(*described, **options):
        backbone = load_backbone(*described, **options)
        backbone.engine = replace(backbone.engine, device=device)
        return backbone

    return load


def test_a_card_that_cannot_be_measured_is_a_warning_and_no_failure(small, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("llmembed.extraction.load_backbone", on_a_card("AMD Instinct MI300X"))
    plan, warnings = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama)), []
    report = run_extraction(plan, on_warning=warnings.append)
    assert (report.embedded, report.mfu, report.watt_hours) == (300, None, None)
    assert warnings == ["AMD Instinct MI300X could not be measured: the report has no utilisation and no energy."]
    assert plan.cache.last_extraction().embedded == 300


@pytest.mark.parametrize("device", ["xyz", "cuda:77", "meta", "mps"])
def test_a_device_that_cannot_be_used_is_one_line_before_anything_is_done(device, small, tiny_llama, tmp_path):
    plan = plan_extraction(small, root=tmp_path, backbone=str(tiny_llama))
    for stage in (run_extraction, estimate):
        with refused(UsageError, match=f"^--device {device} cannot be used here [^\n]{{1,250}}; use cpu") as error:
            stage(plan, Resources(device=device))
        assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*"))
