"""Which cache is taken where none is named: that of the last extraction, by names alone."""

import json
from pathlib import Path

import pytest
from refusals import refused
from toy_cache import TOY, extraction_record, new_cache

from llmembed.cache import Cache
from llmembed.errors import CacheError


def test_latest_is_what_was_extracted_last(tmp_path):
    minilm, bert = (
        new_cache(tmp_path, "films", name, TOY.model_copy(update={"model": name})) for name in ("minilm", "bert")
    )
    news = new_cache(tmp_path, "news", "bert")
    new_cache(tmp_path, "films", "zoo", TOY.model_copy(update={"dim": 7}))
    for cache in (news, minilm, bert):
        cache.record_extraction(extraction_record(cache.dataset))
        assert Cache.latest(tmp_path).url == cache.url
    assert Cache.latest(tmp_path, "news").url == news.url
    assert Cache.latest(tmp_path, "films").url == bert.url
    assert Cache.latest(tmp_path, "films", "minilm").url == minilm.url
    minilm.record_extraction(extraction_record())
    assert Cache.latest(tmp_path, "films").url == Cache.latest(tmp_path).url == minilm.url
    assert Cache.latest(tmp_path).spec == minilm.spec


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((), "There are no embeddings in .*fix: llmembed extract DATASET --cache .*"),
        (("news",), "There are no embeddings of news in .*fix: llmembed extract news --cache .*"),
        (
            ("films", "bert"),
            "There are no embeddings of films by bert in .*fix: llmembed extract films --backbone bert --cache .*",
        ),
    ],
)
def test_latest_says_what_to_run_where_there_is_none(wanted, message, tmp_path):
    if wanted:
        new_cache(tmp_path, "films", "minilm").record_extraction(extraction_record())
    with refused(CacheError, match=message):
        Cache.latest(tmp_path, *wanted)
    with refused(CacheError, match="There are no embeddings"):
        Cache.latest(tmp_path / "nowhere")


def test_latest_does_not_take_a_backbone_for_another_whose_name_it_begins(tmp_path):
    small = new_cache(tmp_path, "films", "minilm")
    large = new_cache(tmp_path, "films", "minilm-l12", TOY.model_copy(update={"model": "org/larger"}))
    for cache in (small, large):
        cache.record_extraction(extraction_record())
    assert Cache.latest(tmp_path, "films", "minilm").url == small.url


def test_latest_finds_a_data_set_with_brackets_in_its_name(tmp_path):
    cache = new_cache(tmp_path, "films[1]")
    cache.record_extraction(extraction_record())
    assert Cache.latest(tmp_path, "films[1]").url == cache.url


DAMAGE = {
    "empty": b"",
    "torn": b'{"format": 1, "sp',
    "of another format": json.dumps({"format": 0, "spec": {}}).encode(),
    "of another cache": json.dumps({"format": 1, "spec": TOY.model_dump(mode="json") | {"dim": 7}}).encode(),
}


def extracted(root, dataset, backbone):
    cache = new_cache(root, dataset, backbone, TOY.model_copy(update={"model": f"org/{backbone}"}))
    cache.record_extraction(extraction_record(dataset))
    return cache


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_of_another_backbone_or_data_set_is_no_hindrance(content, tmp_path):
    others = [extracted(tmp_path, *names) for names in (("news", "toy"), ("films", "bert"), ("films", "minilm-l12"))]
    minilm = extracted(tmp_path, "films", "minilm")
    for cache in others:
        (Path(cache.url) / "spec.json").write_bytes(content)
    for wanted in ((), ("films",), ("films", "minilm"), (None, "minilm"), ("films", "org/minilm")):
        assert Cache.latest(tmp_path, *wanted).url == minilm.url
    extracted(tmp_path, "news", "bert")
    assert Cache.latest(tmp_path, "films", "minilm").url == minilm.url


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_named_where_it_is_the_one_that_is_wanted(content, tmp_path):
    minilm, bert = (extracted(tmp_path, "films", backbone) for backbone in ("minilm", "bert"))
    (Path(bert.url) / "spec.json").write_bytes(content)
    message = rf"{bert.name}/spec\.json .*extract films"
    for wanted in (("films", "bert"), ("films", "org/bert"), ("films", bert.name), ()):
        with refused(CacheError, match=message):
            Cache.latest(tmp_path, *wanted)
    # Another backbone would give other numbers without a word.
    with refused(CacheError, match=r"spec\.json .* Or name a whole one: --backbone minilm\. fix: .*extract films"):
        Cache.latest(tmp_path, "films")
    assert Cache.latest(tmp_path, "films", "minilm").url == minilm.url


def test_a_damaged_cache_that_was_never_finished_is_no_hindrance(tmp_path):
    damaged, whole = new_cache(tmp_path, "films", "bert"), new_cache(tmp_path, "films", "minilm")
    (Path(damaged.url) / "spec.json").write_bytes(b"")
    assert Cache.latest(tmp_path, "films").url == whole.url


def test_folders_and_files_that_are_no_caches_are_passed_over(tmp_path):
    cache = extracted(tmp_path, "films", "toy")
    for name in ("notes", "films/notes", "films/copy-of-toy", "films/toy-0123abcd", "news"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "films" / "readme-0123abcd").write_text("a file")
    (tmp_path / "README.md").write_text("a file")
    assert Cache.latest(tmp_path).url == cache.url
