"""Which cache is taken where none is named: that of the last extraction, by names alone."""

import pytest
from toy_cache import TOY, new_cache

from llmembed.cache import Cache
from llmembed.errors import CacheError


def test_latest_is_what_was_extracted_last(tmp_path):
    minilm, bert = (
        new_cache(tmp_path, "films", name, TOY.model_copy(update={"model": name})) for name in ("minilm", "bert")
    )
    news = new_cache(tmp_path, "news", "bert")
    new_cache(tmp_path, "films", "zoo", TOY.model_copy(update={"dim": 7}))
    for cache in (news, minilm, bert):
        cache.record_extraction({"dataset": [cache.dataset]})
        assert Cache.latest(tmp_path).folder == cache.folder
    assert Cache.latest(tmp_path, "news").folder == news.folder
    assert Cache.latest(tmp_path, "films").folder == bert.folder
    assert Cache.latest(tmp_path, "films", "minilm").folder == minilm.folder
    minilm.record_extraction({})
    assert Cache.latest(tmp_path, "films").folder == Cache.latest(tmp_path).folder == minilm.folder
    assert Cache.latest(tmp_path).spec == minilm.spec


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((), "There are no embeddings in .*Run `llmembed extract DATASET --cache .*` first"),
        (("news",), "There are no embeddings of news in .*Run `llmembed extract news --cache .*` first"),
        (
            ("films", "bert"),
            "There are no embeddings of films by bert in .*`llmembed extract films --backbone bert --cache .*` first",
        ),
    ],
)
def test_latest_says_what_to_run_where_there_is_none(wanted, message, tmp_path):
    if wanted:
        new_cache(tmp_path, "films", "minilm").record_extraction({})
    with pytest.raises(CacheError, match=message):
        Cache.latest(tmp_path, *wanted)
    with pytest.raises(CacheError, match="There are no embeddings"):
        Cache.latest(tmp_path / "nowhere")


def test_latest_does_not_take_a_backbone_for_another_whose_name_it_begins(tmp_path):
    small = new_cache(tmp_path, "films", "minilm")
    large = new_cache(tmp_path, "films", "minilm-l12", TOY.model_copy(update={"model": "org/larger"}))
    for cache in (small, large):
        cache.record_extraction({})
    assert Cache.latest(tmp_path, "films", "minilm").folder == small.folder


def test_latest_finds_a_data_set_with_brackets_in_its_name(tmp_path):
    cache = new_cache(tmp_path, "films[1]")
    cache.record_extraction({})
    assert Cache.latest(tmp_path, "films[1]").folder == cache.folder
