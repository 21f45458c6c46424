"""Features of one backbone and of two, MiniLM and a tiny Llama, on real texts."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from refusals import refused

from llmembed.cache import Cache
from llmembed.classifier import Classifier
from llmembed.datasets import Dataset
from llmembed.errors import CacheError, ClassifierError, UsageError
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.features.on_disk import Features, fit_feature_map
from llmembed.features.scaling import widen
from llmembed.features.sources import locate_rows, open_sources
from llmembed.prediction import predict_dataset, predict_texts
from llmembed.training import train


@pytest.fixture(scope="module")
def both(pydocs: Dataset, pydocs_cache: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of caches by MiniLM (dim 384) and, in another order of the rows, by a tiny Llama (dim 64)."""
    root = tmp_path_factory.mktemp("both")
    shutil.copytree(pydocs_cache / "pydocs", root / "pydocs")
    backwards = replace(pydocs, table=pydocs.table.reverse())
    run_extraction(plan_extraction(backwards, root=root, backbone=str(tiny_llama), layers=(1, 2, 4)))
    return root


def names(tiny_llama: Path) -> list[str]:
    return ["minilm", str(tiny_llama)]


def features(dataset, root, backbones, fusion="concat"):
    sources = [source.fused(fusion) for source in open_sources(root, dataset, backbones)]
    rows = locate_rows(sources, dataset.texts("train"))
    return Features(sources, rows, fit_feature_map(sources, rows, fusion))


@pytest.mark.parametrize("fusion", ["last", "mean", "max", "concat", "gram"])
def test_backbones_are_joined_by_text_and_stand_side_by_side(fusion, pydocs, both, tiny_llama):
    first, second = (features(pydocs, both, [name], fusion)[:] for name in names(tiny_llama))
    fused = features(pydocs, both, names(tiny_llama), fusion)
    assert fused.shape == (700, first.shape[1] + second.shape[1])
    assert np.array_equal(fused[:], np.hstack([first, second]))


def test_rows_are_those_asked_for_in_the_order_asked_for(pydocs, both, tiny_llama):
    matrix = features(pydocs, both, names(tiny_llama))
    whole = np.asarray(matrix)
    chosen = np.random.default_rng(0).permutation(700)[:333]
    assert np.array_equal(matrix[chosen], whole[chosen])
    assert np.array_equal(matrix[100:640], whole[100:640])
    assert np.array_equal(matrix.select_rows(chosen)[50:60], whole[chosen[50:60]])
    assert np.abs(whole.mean(axis=0)).max() < 1e-4
    # MiniLM has three dead dimensions after its last layer.
    deviation = whole.std(axis=0)
    assert (np.flatnonzero(deviation == 0) - 4 * 384).tolist() == [127, 223, 319]
    assert np.abs(deviation[deviation > 0] - 1).max() < 1e-3


@pytest.mark.parametrize("fusion", ["concat", "weighted", "cooccurrence"])
def test_a_classifier_of_two_backbones_predicts_with_both(fusion, pydocs, both, tiny_llama, tmp_path):
    training = train(pydocs, root=both, backbones=names(tiny_llama), fusion=fusion, out=tmp_path / "m")
    assert [each.layers for each in training.settings.backbones] == [(2, 3, 4, 5, 6), (1, 2, 4)]
    assert training.features == 5 * 384 + 3 * 64
    assert training.report.accuracy > 0.6
    classifier = Classifier.load(tmp_path / "m")
    from_cache = predict_dataset(classifier, pydocs, root=both)[:40]
    from_text = predict_texts(classifier, pydocs.texts("test")[:40], device="cpu")
    assert np.allclose(from_text, from_cache, atol=5e-3)
    with refused(ClassifierError, match=r"reads 2 backbones, .*MiniLM.* and .*tiny-llama.* --backbone has 1"):
        classifier.load_backbones(["minilm"])


def test_the_learned_weights_of_the_layers_are_in_the_report(pydocs, both, tiny_llama, tmp_path):
    training = train(pydocs, root=both, backbones=names(tiny_llama), fusion="weighted", out=tmp_path / "m")
    weights = training.fit_info["layer_weights"]
    assert [len(each) for each in weights] == [5, 3]
    assert np.allclose([sum(each) for each in weights], 1)
    assert max(weights[0]) > 0.21, "they have left where they began"


def test_caches_that_do_not_cover_the_same_texts_are_refused(pydocs, both, tiny_llama, tmp_path):
    new = pl.DataFrame({"text": ["new"], "label": ["numpy"], "split": ["train"]})
    larger = replace(pydocs, table=pl.concat([pydocs.table, new]))
    run_extraction(plan_extraction(larger, root=both))
    with refused(CacheError, match=r"1 of 1,401 texts are not in .*tiny-llama.*fix: llmembed extract pydocs"):
        train(larger, root=both, backbones=names(tiny_llama), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_backbone_is_named_once_and_may_be_named_by_its_cache(pydocs, both):
    cache = Cache.latest(both, "pydocs", "minilm")
    assert open_sources(both, pydocs, [cache.name])[0].cache.url == cache.url
    with refused(UsageError, match=r"--backbone minilm --backbone minilm-\w+ names one twice"):
        open_sources(both, pydocs, ["minilm", cache.name])


def test_a_head_that_cannot_learn_a_fusion_says_which_can(pydocs, pydocs_cache, tmp_path):
    with refused(
        UsageError, match=r"--fusion cooccurrence is learned inside the head mlp, and --head gbdt cannot.* gram"
    ):
        train(pydocs, root=pydocs_cache, fusion="cooccurrence", head="gbdt", out=tmp_path / "m")


def test_every_float16_is_widened_exactly():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(widen(values).view(np.uint32), values.astype(np.float32).view(np.uint32))
