"""One bad text stops nothing: it is quarantined, all others are committed, and everybody is told."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from doubles import FAILING, Cramped, load_touchy
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import printed, refused
from safetensors.torch import load_file, save_file
from tiny_models import copy_of
from toy_cache import embeddings
from transformers import AutoTokenizer

from llmembed.backbones import BadText
from llmembed.cache import Cache
from llmembed.cache.quarantine import Quarantine
from llmembed.classifier import Classifier
from llmembed.datasets import Dataset
from llmembed.errors import BackboneError, CacheError
from llmembed.experiments.reproduction import reproduce
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.extraction.estimation import estimate
from llmembed.identity import text_key
from llmembed.prediction import evaluate_dataset, leave_out_quarantined, predict_dataset
from llmembed.storage.local import LocalStore
from llmembed.training import train

# A byte that no other text holds.
BELL = "\x07"
BAD = [f"rings {BELL}", f"rings \x1b[31m{BELL} twice"]


def with_texts(dataset: Dataset, texts: list[str], split: str = "train") -> Dataset:
    rows = pl.DataFrame({"text": texts, "label": ["numpy"] * len(texts), "split": [split] * len(texts)})
    return replace(dataset, table=pl.concat([dataset.table.head(200), rows]))


def with_bell(tiny_llama: Path, parent: Path, value: float) -> str:
    """Copy the model and give all dimensions of the bell's token a value."""
    folder = copy_of(tiny_llama, parent)
    bell = AutoTokenizer.from_pretrained(folder)(BELL)["input_ids"][-1]
    weights = load_file(folder / "model.safetensors")
    weights["embed_tokens.weight"][bell] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def missing(cache: Cache, dataset: Dataset) -> set[str]:
    cache.refresh()
    texts = dataset.texts()
    return {texts[i] for i in cache.locate([text_key(text) for text in texts]).missing}


def test_bad_texts_are_listed_when_all_others_are_committed(pydocs, tiny_llama, tmp_path):
    data = with_texts(pydocs, BAD)
    plan = plan_extraction(data, root=tmp_path / "cache", backbone=with_bell(tiny_llama, tmp_path, float("nan")))
    steps = []
    with pytest.raises(BackboneError) as error:
        run_extraction(plan, on_progress=steps.append)
    assert missing(plan.cache, data) == set(BAD)
    assert "2 texts have no embeddings; all others are in" in str(error.value)
    assert "--on-bad-value skip: 'rings \\x07' (nan in layer 0)" in printed(error.value)
    assert r"'rings \x1b[31m\x07 twice'" in str(error.value)
    assert "hold" not in str(error.value)
    assert all(step.done < step.total for step in steps)
    assert not plan.cache.last_extraction()


def test_a_quarantine_record_is_sealed_and_holds_no_text(pydocs, tiny_llama, tmp_path):
    data = with_texts(pydocs, BAD)
    plan = plan_extraction(data, root=tmp_path / "cache", backbone=with_bell(tiny_llama, tmp_path, float("nan")))
    run_extraction(plan, on_bad_value="skip")
    records = plan.cache.quarantine.records()
    assert records.keys() == set(map(text_key, BAD))
    found = {(each.layer, each.value, each.skip, each.engine["engine"]) for each in records.values()}
    assert found == {(0, "nan", True, "transformers")}
    files = list((Path(plan.cache.url) / "quarantine").iterdir())
    assert len(files) == 2
    assert not any("rings" in file.read_text() for file in files)


def test_a_value_beyond_float16_can_be_stored_in_float32(pydocs, tiny_llama, tmp_path):
    data, backbone = with_texts(pydocs, BAD), with_bell(tiny_llama, tmp_path, 1e8)
    plan = partial(plan_extraction, data, root=tmp_path / "cache", backbone=backbone, layers=(0, 4))
    with refused(BackboneError, match=r"extract with --dtype float32, or go on .* which float16 cannot hold\)"):
        run_extraction(plan())
    assert run_extraction(plan(dtype="float32")).embedded == 202


def test_with_skip_the_record_says_how_many_and_training_leaves_them_out(pydocs, tiny_llama, tmp_path):
    both = with_texts(with_texts(pydocs, BAD[:1]), BAD[1:], "test")
    data = replace(both, table=pl.concat([pydocs.table, both.table.tail(1), with_texts(pydocs, BAD[:1]).table.tail(1)]))
    plan = plan_extraction(data, root=tmp_path, backbone=with_bell(tiny_llama, tmp_path, float("nan")))
    told, warnings, words = [], [], {"root": tmp_path, "head": "lda", "fusion": "last", "out": tmp_path / "model"}
    report = run_extraction(plan, on_bad_value="skip", on_warning=told.append)
    assert (report.quarantined, report.embedded) == (2, len(set(pydocs.texts())))
    assert plan.cache.last_extraction().quarantined == 2
    assert plan.cache.last_extraction().request.on_bad_value == "skip"
    assert told[0].startswith("without embeddings: 'rings")
    training = train(data, on_warning=warnings.append, **words)
    assert training.rows + training.report.rows == len(pydocs.table)
    (warning,) = warnings
    assert warning.startswith("1 train row and 1 test row left out: their texts have no embeddings")
    classifier, judged = Classifier.load(tmp_path / "model"), list[str]()
    assert evaluate_dataset(classifier, data, root=tmp_path, on_warning=judged.append) == training.report
    assert judged == warnings
    with refused(CacheError, match="1 of 701 texts are not in"):
        predict_dataset(classifier, data, root=tmp_path)
    covered = leave_out_quarantined(classifier, data, root=tmp_path)
    assert len(predict_dataset(classifier, covered, root=tmp_path)) == training.report.rows
    page = reproduce([data], root=tmp_path, fusions=["last"], head="lda", out=tmp_path / "pages").to_json()
    assert (page["columns"][0]["train"], page["columns"][0]["test"]) == (training.rows, training.report.rows)
    assert any("1 train row and 1 test row left out" in note for note in page["notes"])
    lacking = replace(data, table=pl.concat([data.table, with_texts(pydocs, ["new"]).table.tail(1)]))
    with refused(CacheError, match=r"1 of 1,401 texts are not in .*--on-bad-value skip"):
        train(lacking, **words)


def test_without_skip_training_refuses_the_missing_texts(pydocs, tiny_llama, tmp_path):
    data = with_texts(pydocs, BAD)
    plan = plan_extraction(data, root=tmp_path, backbone=with_bell(tiny_llama, tmp_path, float("nan")))
    with pytest.raises(BackboneError):
        run_extraction(plan)
    with refused(CacheError, match="2 of 202 texts are not in"):
        train(data, root=tmp_path, out=tmp_path / "model")


def test_the_next_extraction_tries_them_again(pydocs, tiny_llama, tmp_path, monkeypatch):
    data = with_texts(pydocs, [f"a {FAILING} of memory"])
    plan = partial(plan_extraction, data, root=tmp_path, backbone=str(tiny_llama))
    with monkeypatch.context() as patch:
        patch.setattr("llmembed.extraction.load_backbone", load_touchy)
        with refused(BackboneError, match=r"1 text has no embedding.*out of memory on cpu; lower --max-length"):
            run_extraction(plan())
        assert run_extraction(plan(), on_bad_value="skip").quarantined == 1
    assert plan().cache.quarantine.keys()
    assert (run_extraction(plan()).embedded, run_extraction(plan()).quarantined) == (1, 0)
    assert not plan().cache.quarantine.keys()
    run_extraction(plan_extraction(data, root=tmp_path / "whole", backbone=str(tiny_llama)))
    whole = Cache.latest(tmp_path / "whole")
    assert np.array_equal(embeddings(whole, data.texts()), embeddings(plan().cache, data.texts()))


def test_a_text_without_tokens_is_quarantined(pydocs, tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    nothing = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    written = json.dumps({**tokenizer, "post_processor": None, "normalizer": nothing})
    (folder / "tokenizer.json").write_text(written)
    data = with_texts(pydocs, ["~~~", "~ ~"])
    plan = plan_extraction(data, root=tmp_path / "cache", backbone=str(folder))
    assert estimate(plan).missing == 201
    with refused(BackboneError, match=r"1 text has no embedding.*'~~~' \(no tokens\)"):
        run_extraction(plan)
    assert missing(plan.cache, data) == {"~~~"}


def test_too_little_memory_for_a_batch_is_enough_for_smaller_ones(pydocs, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "llmembed.extraction.load_backbone", lambda spec, files, **_: Cramped(spec, files, device="cpu")
    )
    plan = partial(plan_extraction, with_texts(pydocs, []), root=tmp_path, backbone=str(tiny_llama))
    report, steps = run_extraction(plan(max_length=200)), []
    assert (report.embedded, report.quarantined) == (200, 0)
    over = run_extraction(plan(max_length=201), on_bad_value="skip", on_progress=steps.append)
    # With 201 tokens a text is too large even alone.
    assert over.quarantined == report.truncated > 5
    assert over.embedded == 200 - over.quarantined == steps[-1].done


def test_a_model_that_gives_nothing_good_ends_the_job_at_once(pydocs, tiny_llama, tmp_path):
    data = with_texts(pydocs, [f"{BELL} number {number}" for number in range(100)])
    data = replace(data, table=data.table.tail(100))
    plan = plan_extraction(data, root=tmp_path / "cache", backbone=with_bell(tiny_llama, tmp_path, float("nan")))
    with refused(BackboneError, match=r"nothing that can be stored for the first 100 texts: nan in layer 0"):
        run_extraction(plan, on_bad_value="skip")
    assert not plan.cache.quarantine.keys()


def test_many_bad_texts_are_no_hopeless_model_where_others_were_good(pydocs, tiny_llama, tmp_path):
    bad = [f"{BELL} number {number}" for number in range(100)]
    plan = partial(plan_extraction, root=tmp_path / "cache", backbone=with_bell(tiny_llama, tmp_path, float("nan")))
    run_extraction(plan(with_texts(pydocs, [])))
    report = run_extraction(plan(with_texts(pydocs, bad)), on_bad_value="skip")
    assert (report.quarantined, report.embedded, report.reused) == (100, 0, 200)


@pytest.fixture(scope="module")
def quarantined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quarantine")
    Quarantine(LocalStore(folder)).put({text_key("a"): BadText("nan in layer 2", 2, float("nan"))}, {}, skip=True)
    return folder


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_record_with_a_changed_bit_counts_for_nothing(quarantined, tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("changed") / "cache"
    shutil.copytree(quarantined, folder)
    (file,) = (folder / "quarantine").iterdir()
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content)
    assert Quarantine(LocalStore(folder)).skipped() in ({}, {text_key("a"): "nan in layer 2"})
    assert Quarantine(LocalStore(folder)).keys() == {text_key("a")}
