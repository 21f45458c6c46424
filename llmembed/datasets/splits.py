"""Splits of a table: the test split that is made, the limit on rows, and what stands on both sides.

In: a table with the columns text, label and mostly split. Out: the same with a split, fewer rows, or sentences of
warning. Everything goes by a text's key, so that equal texts lie together. Knows no file.
"""

from typing import get_args

import polars as pl

from llmembed.choices import Split
from llmembed.identity import KEY_BYTES, text_key

SPLITS = get_args(Split)
# A fifth of all keys lie below it: 0x333… is a fifth of 0xfff….
TEST_BELOW = b"\x33" * KEY_BYTES


def with_test_split(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with a column split: a text is for testing when its key is among the lowest fifth of all keys.

    So no row that is added moves another one. Only a class of two texts or more that would have none to test gives its
    lowest, and one that would have none to train on keeps its highest; a class of one text is trained on.
    """
    # A text of several labels counts for the first of them.
    distinct = _with_keys(table.group_by("text").agg(pl.col("label").min()))
    key = pl.col("key")
    drawn, lowest, highest = key < TEST_BELOW, key == key.min().over("label"), key == key.max().over("label")
    lacks_test, lacks_train = ~drawn.any().over("label"), drawn.all().over("label")
    is_test = (drawn | (lacks_test & lowest & ~highest)) & ~(lacks_train & highest)
    split = pl.when(is_test).then(pl.lit("test")).otherwise(pl.lit("train")).alias("split")
    return table.join(distinct.select("text", split), on="text", how="left", maintain_order="left")


def limit_rows(table: pl.DataFrame, limit: int) -> pl.DataFrame:
    """Return the rows of the texts with the lowest keys, at most `limit` distinct texts of each split."""
    return _with_keys(table).filter(pl.col("key").rank("dense").over("split") <= min(limit, len(table))).drop("key")


def find_overlaps(table: pl.DataFrame) -> list[str]:
    """Return how many texts stand in two splits or have two labels, and which labels only test rows have."""
    per_split = table.group_by("text", "split").agg(pl.col("label").min(), most=pl.col("label").max())
    train, validation, test = (per_split.filter(pl.col("split") == split) for split in SPLITS)
    doubtful = pl.col("label") != pl.col("most")
    within = train.filter(doubtful)
    whole = per_split.group_by("text").agg(pl.col("label").min(), pl.col("most").max(), pl.len())
    between = whole.filter(doubtful, pl.col("len") > 1)
    return [
        *_unseen(table),
        *_shared(test, train, "test", "the test accuracy says nothing about texts that are new"),
        *_shared(validation, train, "validation", "what is chosen and calibrated on them is too sure of itself"),
        *_conflicts(within, "within the training split"),
        *_conflicts(between, "between the splits"),
    ]


def _unseen(table: pl.DataFrame) -> list[str]:
    train, test = (table.filter(pl.col("split") == split) for split in ("train", "test"))
    unseen = test.filter(~pl.col("label").is_in(train["label"].unique().to_list()))
    if unseen.is_empty():
        return []
    names = ", ".join(map(repr, sorted(unseen["label"].unique().to_list())))
    return [f"{len(unseen):,} test rows have a label that no training row has, and count as errors: {names}."]


def _shared(part: pl.DataFrame, train: pl.DataFrame, name: str, consequence: str) -> list[str]:
    shared = len(part.join(train, on="text", how="semi"))
    if not shared:
        return []
    if shared == len(part):
        return [f"All {shared:,} distinct {name} texts stand in the training split too: {consequence}."]
    return [f"{shared:,} of {len(part):,} distinct {name} texts stand in the training split too."]


def _conflicts(texts: pl.DataFrame, where: str) -> list[str]:
    if texts.is_empty():
        return []
    stand = "1 distinct text has" if len(texts) == 1 else f"{len(texts):,} distinct texts have"
    return [f"{stand} more than one label {where}."]


def _with_keys(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.Series("key", [text_key(text) for text in table["text"]], dtype=pl.Binary))
