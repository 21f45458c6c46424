import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from refusals import refused

from llmembed.cache import Cache
from llmembed.choices import HeadName
from llmembed.classifier import Classifier
from llmembed.errors import CacheError, ClassifierError, DatasetError, UsageError
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.features.fusion import fuse, fused_layers, fused_width
from llmembed.features.scaling import fit_scaler, moments
from llmembed.prediction import evaluate_dataset, predict_dataset, predict_texts
from llmembed.training import train

HEADS = get_args(HeadName)


def test_fusions_give_what_their_names_say():
    embeddings = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert fuse([embeddings], "mean").tolist() == [[2, 3], [8, 9]]
    assert fuse([embeddings], "max").tolist() == [[4, 5], [10, 11]]
    assert fuse([embeddings], "concat").tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert fused_layers("last", (2, 4, 6)) == (6,)
    assert [fused_width(fusion, ((3, 2),)) for fusion in ("mean", "max", "concat")] == [2, 2, 6]


def test_gram_is_the_upper_triangle_beside_the_mean():
    embeddings = np.random.default_rng(0).standard_normal((6, 3, 50)).astype(np.float32)
    features = fuse([embeddings], "gram")
    assert features.shape == (6, fused_width("gram", ((3, 50),))) == (6, 56)
    for text, given in zip(embeddings, features, strict=True):
        normalised = 2 / (1 + np.exp(-text @ text.T / 50)) - 1
        assert np.allclose(given[:50], text.mean(axis=0), atol=1e-6)
        assert np.allclose(given[50:], normalised[np.triu_indices(3)], atol=1e-6)


def test_gram_does_not_saturate_and_is_never_nan():
    embeddings = np.random.default_rng(0).standard_normal((200, 5, 384)).astype(np.float32)
    pooled = fuse([embeddings], "gram")[:, 384:]
    assert np.abs(pooled).max() < 0.7
    extreme = fuse([np.stack([embeddings[0] * 1e6, embeddings[1] * 0])], "gram")
    assert np.isfinite(extreme).all()
    assert np.abs(extreme[:, 384:]).max() <= 1


def test_gram_of_equal_layers_does_not_depend_on_their_order():
    embeddings = np.random.default_rng(0).standard_normal((4, 3, 20)).astype(np.float32)
    embeddings[:, 2] = embeddings[:, 0]
    assert np.array_equal(fuse([embeddings], "gram"), fuse([embeddings[:, [2, 1, 0]]], "gram"))
    assert not np.allclose(fuse([embeddings], "gram"), fuse([embeddings[:, [1, 0, 2]]], "gram"))


def test_scaling_in_blocks_equals_scaling_at_once():
    draw = np.random.default_rng(0)
    embeddings = (draw.standard_normal((1000, 2, 8)) * 3 + 1000).astype(np.float32)
    embeddings[:, 1, 3] = 7.25
    scaler = fit_scaler(map(moments, [embeddings[:1], embeddings[1:300], embeddings[300:]]))
    assert np.allclose(scaler.mean, embeddings.mean(axis=0, dtype=np.float64), rtol=1e-6)
    wanted = embeddings.std(axis=0, dtype=np.float64)
    wanted[1, 3] = 1.0
    assert np.allclose(scaler.scale, wanted, rtol=1e-4)
    assert np.abs(scaler.apply(embeddings)[:, 1, 3]).max() == 0


# Half of what TF-IDF reaches on the whole set (0.88) would be chance many times over; these heads see 700 rows.
@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_and_says_what_it_did(head, pydocs, pydocs_cache, tmp_path):
    training = train(pydocs, root=pydocs_cache, head=head, out=tmp_path / "m")
    assert training.report.accuracy > 0.6
    assert training.rows == 700
    assert training.report.rows == 700
    # lda leaves every row out once.
    assert training.validation_rows == 700 if head == "lda" else 50 <= training.validation_rows <= 90
    assert training.features == 5 * 384
    assert training.fit_seconds > 0
    saved = json.loads((tmp_path / "m" / "report.json").read_text())
    assert saved == json.loads(json.dumps(training.to_json()))
    assert {"accuracy", "macro_f1", "fit_seconds", "read_seconds", "rows", "classes", "fusion", "head"} <= saved.keys()


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_metrics_file(head, pydocs, pydocs_cache, tmp_path):
    def metrics(seed, name):
        train(pydocs, root=pydocs_cache, head=head, seed=seed, fusion="mean", out=tmp_path / name)
        return (tmp_path / name / "metrics.json").read_bytes()

    first = metrics(3, "a")
    assert metrics(3, "b") == first
    assert metrics(4, "c") != first


@pytest.mark.parametrize("head", HEADS)
def test_prediction_gives_what_training_gave(head, pydocs, pydocs_cache, tmp_path):
    training = train(pydocs, root=pydocs_cache, head=head, out=tmp_path / "m")
    classifier = Classifier.load(tmp_path / "m")
    from_cache = predict_dataset(classifier, pydocs, root=pydocs_cache)
    guessed = np.array(classifier.record.labels)[from_cache.argmax(axis=1)]
    assert (guessed == pydocs.labels("test")).mean() == pytest.approx(training.report.accuracy, abs=1e-6)
    texts = pydocs.texts("test")[:60]
    from_text = predict_texts(classifier, texts, device="cpu")
    assert np.allclose(from_text, from_cache[:60], atol=5e-3)
    assert (from_text.argmax(axis=1) == from_cache[:60].argmax(axis=1)).all()


def test_layers_are_chosen_among_those_in_the_cache(pydocs, pydocs_cache, tmp_path):
    training = train(pydocs, root=pydocs_cache, head="logistic", layers=(3, -1), out=tmp_path / "m")
    assert training.settings.backbones[0].layers == (3, 6)
    assert training.features == 2 * 384
    with refused(UsageError, match=r"holds the layers 2,3,4,5,6.*llmembed extract"):
        train(pydocs, root=pydocs_cache, layers=(1,), out=tmp_path / "m")


def test_negative_layers_count_from_the_end_of_the_model_and_not_of_the_cache(pydocs, tiny_llama, tmp_path):
    run_extraction(plan_extraction(pydocs, root=tmp_path, backbone=str(tiny_llama), layers=(1, 2)))
    training = train(pydocs, root=tmp_path, head="logistic", layers=(-3,), out=tmp_path / "m")
    assert training.settings.backbones[0].layers == (2,)
    with refused(UsageError, match=r"--layers 4: .* holds the layers 1,2"):
        train(pydocs, root=tmp_path, head="logistic", layers=(-1,), out=tmp_path / "m")


def test_a_classifier_reads_only_the_layers_it_was_trained_on(pydocs, pydocs_cache, tmp_path):
    train(pydocs, root=pydocs_cache, head="logistic", layers=(2, 3), fusion="last", out=tmp_path / "m")
    classifier = Classifier.load(tmp_path / "m")
    assert classifier.record.backbones[0].layers == (3,)
    assert classifier.load_backbones(device="cpu")[0].spec.layers == (3,)


def test_missing_rows_are_counted_with_the_command_that_mends_it(pydocs, pydocs_cache, tmp_path):
    new = pl.DataFrame({"text": ["never seen", "nor this"], "label": ["numpy", "torch"], "split": ["train", "test"]})
    larger = replace(pydocs, table=pl.concat([pydocs.table, new]))
    with refused(
        CacheError, match=r"2 of 1,402 texts are not in .*fix: llmembed extract pydocs --limit 700 --cache .*"
    ):
        train(larger, root=pydocs_cache, out=tmp_path / "m")
    with refused(CacheError, match=r"no embeddings of pydocs .*fix: llmembed extract pydocs --limit 700 --cache .*"):
        train(pydocs, root=tmp_path, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_broken_shard_stops_training_with_one_line(pydocs, pydocs_cache, tmp_path):
    root = tmp_path / "cache"
    copy = root / "pydocs" / Cache.latest(pydocs_cache).name
    whole = Path(Cache.latest(pydocs_cache).url)
    for file in whole.rglob("*.*"):
        (copy / file.parent.name if file.parent.name != copy.name else copy).mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(whole)).write_bytes(file.read_bytes())
    shard = next(copy.glob("shards/*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    with refused(
        CacheError, match=r"1 of 1 shards .* damaged .*SHA-256.*fix: llmembed extract pydocs --limit 700 --cache .*"
    ):
        train(pydocs, root=root, out=tmp_path / "m")


def test_another_backbone_is_refused(pydocs, pydocs_cache, tiny_llama, tmp_path):
    train(pydocs, root=pydocs_cache, head="logistic", fusion="mean", out=tmp_path / "m")
    with refused(ClassifierError, match="was trained on sentence-transformers/all-MiniLM-L6-v2"):
        Classifier.load(tmp_path / "m").load_backbones([str(tiny_llama)])


def test_a_classifier_is_a_folder_without_pickle_and_replaces_only_its_like(pydocs, pydocs_cache, tmp_path):
    for head in HEADS:
        train(pydocs, root=pydocs_cache, head=head, fusion="mean", out=tmp_path / "m")
    assert {file.suffix for file in (tmp_path / "m").iterdir()} <= {".json", ".safetensors", ".txt"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"], "nothing half-written stays behind"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with refused(ClassifierError, match=r"holds cat\.jpg, which is no part of a classifier"):
        train(pydocs, root=pydocs_cache, out=tmp_path / "photos")
    with refused(ClassifierError, match="is not a classifier"):
        Classifier.load(tmp_path / "photos")


def test_a_validation_split_of_the_data_set_is_used(pydocs, pydocs_cache, tmp_path):
    marked = pl.when(pl.int_range(pl.len()) < 100).then(pl.lit("validation")).otherwise(pl.col("split")).alias("split")
    table = pydocs.table.sort("split", descending=True).with_columns(marked)
    training = train(replace(pydocs, table=table), root=pydocs_cache, head="logistic", out=tmp_path / "m")
    assert (training.validation_rows, training.rows) == (100, 700)


def test_a_label_that_training_never_saw_counts_as_an_error(pydocs, pydocs_cache, tmp_path):
    renamed = pl.when((pl.col("split") == "test") & (pl.col("label") == "numpy")).then(pl.lit("unseen"))
    table = pydocs.table.with_columns(renamed.otherwise(pl.col("label")).alias("label"))
    report = train(replace(pydocs, table=table), root=pydocs_cache, head="logistic", out=tmp_path / "m").report
    unseen = report.per_class[-1]
    assert (unseen.label, unseen.f1) == ("unseen", 0.0)
    assert len(report.confusion) == len(report.per_class)


def test_a_classifier_is_judged_on_another_data_set(pydocs, pydocs_cache, tmp_path):
    trained = train(pydocs, root=pydocs_cache, fusion="mean", head="logistic", out=tmp_path / "m")
    classifier = Classifier.load(tmp_path / "m")
    assert evaluate_dataset(classifier, pydocs, root=pydocs_cache) == trained.report
    table = pydocs.table.with_columns(pl.col("label").replace("numpy", "jax"))
    renamed = evaluate_dataset(classifier, replace(pydocs, table=table), root=pydocs_cache)
    assert renamed.accuracy < trained.report.accuracy
    assert renamed.per_class[-1].label == "jax"
    other = replace(pydocs, table=pydocs.table.with_columns(pl.lit("spam").alias("label")))
    with refused(DatasetError, match="has the labels spam, the classifier knows networkx"):
        evaluate_dataset(classifier, other, root=pydocs_cache)
