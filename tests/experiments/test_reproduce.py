import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from refusals import printed, refused

from llmembed.datasets import Dataset, load_dataset
from llmembed.errors import CacheError, UsageError
from llmembed.experiments.paper import PUBLISHED
from llmembed.experiments.paper_table import LAST, TFIDF, Reproduction
from llmembed.experiments.reproduction import reproduce
from llmembed.extraction import plan_extraction, run_extraction

PROGRAM = "from llmembed.cli import main; main()"
CLASSES = {"mr": 2, "r8": 8}


@pytest.fixture(scope="module")
def named(tmp_path_factory, pydocs) -> list[Dataset]:
    """Return pydocs under the names mr (two classes) and r8 (eight): 160 training and 80 test rows each."""
    root = tmp_path_factory.mktemp("sets")
    labels = sorted(set(pydocs.labels("train")))
    for name, classes in CLASSES.items():
        (root / name).mkdir()
        for split, rows in (("train", 160), ("test", 80)):
            table = pydocs.table.filter(pl.col("split") == split, pl.col("label").is_in(labels[:classes]))
            table.head(rows).select("text", "label").write_parquet(root / name / f"{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMEMBED_DATA", str(root))
        return [load_dataset(name) for name in CLASSES]


@pytest.fixture(scope="module")
def cache(tmp_path_factory, named, tiny_llama) -> Path:
    """Return the root of a cache with the tiny Llama's embeddings of both data sets."""
    root = tmp_path_factory.mktemp("named-cache")
    for dataset in named:
        run_extraction(plan_extraction(dataset, root=root, backbone=str(tiny_llama), layers=(-3, -2, -1)))
    return root


@pytest.fixture(scope="module")
def whole(named, cache, tmp_path_factory) -> tuple[Reproduction, Path]:
    out = tmp_path_factory.mktemp("reproduction")
    return reproduce(named, root=cache, out=out), out


def without_times(reproduction: Reproduction) -> list[tuple]:
    return [
        (row.name, [(name, score.accuracy, score.macro_f1) for name, score in row.scores.items()])
        for row in reproduction.rows
    ]


def test_the_table_has_every_fusion_baseline_and_published_figure(whole):
    rows = whole[0].rows
    fusions = ["mean", "max", "concat", "gram", "weighted", "cooccurrence"]
    published = [name for name, *_ in PUBLISHED]
    assert [row.name for row in rows] == [*fusions, LAST, TFIDF, *published]
    assert all(list(row.scores) == ["mr", "r8"] for row in rows)
    assert all(row.source for row in rows if row.kind == "published")
    assert rows[-2].scores["mr"].accuracy == 0.9116 and rows[-1].scores["r8"].accuracy == 0.9878


def test_rows_are_what_training_reports(whole):
    reproduction, out = whole
    for row in reproduction.rows[:7]:
        fusion = "last" if row.name == LAST else row.name
        for name, score in row.scores.items():
            metrics = json.loads((out / name / fusion / "metrics.json").read_bytes())
            assert (metrics["accuracy"], metrics["macro_f1"]) == (score.accuracy, score.macro_f1)
            assert (metrics["fusion"], metrics["dataset"]) == (fusion, name)


def test_json_and_markdown_are_written_and_agree(whole):
    reproduction, out = whole
    page, content = (out / "reproduction.md").read_text(), json.loads((out / "reproduction.json").read_bytes())
    assert content == json.loads(json.dumps(reproduction.to_json())) and page == reproduction.to_markdown()
    lines = page.splitlines()
    for row in content["rows"]:
        shown = [f"{100 * row['scores'][name]['accuracy']:.2f}" for name in CLASSES]
        assert f"| {' | '.join([row['name'], *shown, row['what']])} |" in lines
    assert all(f"- {sentence}" in lines for sentence in (*content["verdicts"], *content["notes"]))
    assert all(any(row["source"] in line for line in lines) for row in content["rows"] if row["source"])


def test_the_sentence_on_fused_layers_agrees_with_the_figures(whole):
    rows = {row.name: row.scores for row in whole[0].rows}
    for sentence in whole[0].verdicts():
        fusion = sentence.split()[0]
        beaten = {
            base: sum(rows[fusion][n].accuracy > rows[base][n].accuracy for n in CLASSES) for base in (LAST, TFIDF)
        }
        assert f"beats the last layer alone on {beaten[LAST]} of 2 data sets" in sentence
        assert sentence.endswith(f"and TF-IDF on {beaten[TFIDF]}.")
        assert f"R8 (subset) {100 * (rows[fusion]['r8'].accuracy - rows[LAST]['r8'].accuracy):+.2f}" in sentence


def test_a_tie_is_no_win(whole):
    reproduction = whole[0]
    last = next(row for row in reproduction.rows if row.name == LAST)
    tied = [
        row if row.kind != "fusion" else type(row)(row.name, row.kind, row.what, last.scores)
        for row in reproduction.rows
    ]
    verdicts = Reproduction(**{**vars(reproduction), "rows": tuple(tied)}).verdicts()
    assert len(verdicts) == 6 and all("alone on 0 of 2 data sets" in verdict for verdict in verdicts)


def test_a_subset_is_named_in_the_headings_and_in_a_note(whole):
    page = whole[0].to_markdown()
    assert "| MR (subset) | R8 (subset) |" in page
    assert "- MR: is a subset here, with 160 training rows (public: 7,108) and 80 test rows (public: 3,554)" in page


def test_two_runs_give_equal_figures(whole, named, cache, tmp_path):
    again = reproduce(named, root=cache, out=tmp_path, fusions=["concat", "cooccurrence"])
    first = {row[0]: row for row in without_times(whole[0])}
    assert all(row == first[row[0]] for row in without_times(again)) and len(again.rows) == 6


def test_all_missing_caches_are_named_before_anything_is_trained(named, cache, tmp_path):
    named = [*named, load_dataset("pydocs", limit=30)]
    with pytest.raises(CacheError) as caught:
        reproduce(named, root=cache, out=tmp_path / "out", backbones=["tiny-llama", "bert-large"])
    message = printed(caught.value)
    assert message.startswith("4 of 6 caches cannot be used") and "\n" not in message
    for words in ("mr --backbone bert-large", "r8 --backbone bert-large", "pydocs --limit 30 --backbone tiny-llama"):
        assert f"fix: llmembed extract {words} --cache {cache}" in message
    assert not (tmp_path / "out").exists()


def test_data_sets_that_were_extracted_differently_are_no_table(named, tiny_llama, tmp_path):
    for dataset, pooling in zip(named, ("mean", "max"), strict=True):
        run_extraction(plan_extraction(dataset, root=tmp_path, backbone=str(tiny_llama), pooling=pooling, layers=(-1,)))
    with refused(CacheError, match=r"r8/tiny-llama-\w+ has pooling max instead of mean\..*fix: llmembed extract r8 "):
        reproduce(named, root=tmp_path, out=tmp_path / "out")


def test_a_learned_fusion_needs_the_mlp_and_other_heads_leave_it_out(named, cache, tmp_path):
    with refused(UsageError, match="--fusion weighted is learned inside the head mlp"):
        reproduce(named, root=cache, out=tmp_path, head="logistic", fusions=["mean", "weighted"])
    assert not list(tmp_path.iterdir())
    rows = reproduce(named[:1], root=cache, out=tmp_path, head="logistic").rows
    assert [row.name for row in rows if row.kind == "fusion"] == ["mean", "max", "concat", "gram"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--dataset", "mr,imdb"), "--dataset mr,imdb: there is no 'imdb'"),
        (("--head", "mlp,gbdt"), "--head mlp,gbdt: a table has one head"),
        (("--fusion", "sum"), "--fusion sum: there is no 'sum'"),
    ],
)
def test_wrong_options_are_refused(words, complaint):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "reproduce", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and complaint in done.stderr


def test_several_backbones_stand_side_by_side_and_each_is_named(named, tiny_llama, tmp_path):
    for backbone in (str(tiny_llama), "minilm"):
        run_extraction(plan_extraction(named[0], root=tmp_path, backbone=backbone, layers=(-1,)))
    backbones = ["tiny-llama", "minilm"]
    page = reproduce(
        named[:1], root=tmp_path, out=tmp_path / "out", backbones=backbones, fusions=["mean"]
    ).to_markdown()
    assert "(tiny-llama, layer 4 + minilm, layer 6)" in page


@pytest.mark.skipif("LLMEMBED_DATA" not in os.environ, reason="LLMEMBED_DATA is not set")
def test_the_command_on_rows_of_real_data_sets(tmp_path):
    named, words = ["sst2", "mr", "r52"], ["--cache", str(tmp_path / "cache"), "--limit", "60"]
    for name in named:
        run_extraction(plan_extraction(load_dataset(name, limit=60), root=tmp_path / "cache"))
    command = ["reproduce", "--dataset", "r52,mr", "--dataset", "sst2", *words, "--fusion", "concat", "--json"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "out" / "reproduction.json").read_bytes())
    assert [column["title"] for column in printed["columns"]] == ["SST-2 (subset)", "MR (subset)", "R52 (subset)"]
    assert [row["name"] for row in printed["rows"][:3]] == ["concat", LAST, TFIDF]
    assert any("have a label that no training row has" in note for note in printed["notes"])
