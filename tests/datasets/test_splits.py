"""The test split that is made, and what the warnings say of texts that stand on both sides."""

import os
import random
from pathlib import Path

import polars as pl
import pytest

from llmembed.datasets import load_dataset
from llmembed.identity import text_key


def write_rows(path: Path, rows, columns=("text", "label")) -> str:
    pl.DataFrame(rows, schema=list(columns), orient="row").write_csv(path)
    return str(path)


def split_of(path: str) -> dict[str, str]:
    return dict(load_dataset(path).table.select("text", "split").rows())


def reviews(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"review {i}", "xyz"[i % 3]) for i in range(start, start + count)]


def test_about_one_text_in_five_is_for_testing_and_its_key_says_so(tmp_path):
    split = split_of(write_rows(tmp_path / "films.csv", reviews(3000)))
    assert 540 < list(split.values()).count("test") < 660
    assert all((text_key(text) < bytes([0x33] * 16)) == (side == "test") for text, side in split.items())


def test_more_rows_move_no_row_to_the_other_side(tmp_path):
    before = split_of(write_rows(tmp_path / "films.csv", reviews(2000)))
    after = split_of(write_rows(tmp_path / "grown.csv", reviews(20, 2000) + reviews(2000)))
    assert {text: after[text] for text in before} == before


@pytest.mark.parametrize("name", ["banking77", "mr"])
def test_one_per_cent_more_rows_of_a_real_set_move_none(name, tmp_path):
    folder = Path(os.environ.get("LLMEMBED_DATA", "")) / name
    if not (folder / "train.parquet").is_file():
        pytest.skip(f"LLMEMBED_DATA has no {name}")
    rows = load_dataset(str(folder)).table.filter(split="train").select("text", "label").rows()
    before = split_of(write_rows(tmp_path / "most.csv", rows[: len(rows) * 100 // 101]))
    after = split_of(write_rows(tmp_path / "all.csv", rows))
    assert {text: after[text] for text in before} == before


def test_a_tiny_class_has_texts_on_both_sides_and_a_text_alone_is_trained_on(tmp_path):
    by_key = sorted((f"text {i}" for i in range(100)), key=text_key)
    classes = {"low": by_key[:3], "high": by_key[-2:], "low alone": by_key[3:4], "high alone": by_key[-3:-2]}
    rows = [(text, label) for label, texts in classes.items() for text in texts]
    split = split_of(write_rows(tmp_path / "tiny.csv", rows))
    assert [split[text] for text in classes["low"]] == ["test", "test", "train"]
    assert [split[text] for text in classes["high"]] == ["test", "train"]
    assert (split[by_key[3]], split[by_key[-3]]) == ("train", "train")


def test_the_made_split_is_always_the_same_whatever_the_order_of_rows(tmp_path):
    rows = reviews(100)
    first = load_dataset(write_rows(tmp_path / "films.csv", rows))
    random.Random(0).shuffle(rows)
    again = load_dataset(write_rows(tmp_path / "shuffled.csv", rows))
    assert sorted(first.texts("test")) == sorted(again.texts("test"))
    assert again.table.select("text", "label").rows() == rows


def warnings(path: Path, *rows: tuple[str, str, str]) -> tuple[str, ...]:
    filler = [("one", "x", "train"), ("two", "y", "train"), ("three", "x", "test"), ("four", "y", "validation")]
    return load_dataset(write_rows(path, [*filler, *rows], ("text", "label", "split"))).warnings


def test_texts_of_test_and_validation_that_stand_in_train_are_counted(tmp_path):
    assert warnings(tmp_path / "clean.csv") == ()
    twice = [("one", "x", "test"), ("one", "x", "test"), ("two", "y", "validation")]
    assert warnings(tmp_path / "films.csv", *twice) == (
        "1 of 2 distinct test texts stand in the training split too.",
        "1 of 2 distinct validation texts stand in the training split too.",
    )


def test_a_test_split_that_is_all_in_train_is_said_in_plain_words(tmp_path):
    rows = [("one", "x", "train"), ("two", "y", "train"), ("one", "x", "test"), ("two", "y", "test")]
    (warning,) = load_dataset(write_rows(tmp_path / "films.csv", rows, ("text", "label", "split"))).warnings
    assert warning.startswith(
        "All 2 distinct test texts stand in the training split too: the test accuracy says nothing"
    )


def test_texts_with_several_labels_are_counted_within_train_and_between_splits(tmp_path):
    rows = [("one", "y", "train"), ("two", "x", "test"), ("seven", "x", "train"), ("seven", "y", "train")]
    assert warnings(tmp_path / "films.csv", *rows)[1:] == (
        "2 distinct texts have more than one label within the training split.",
        "1 distinct text has more than one label between the splits.",
    )
