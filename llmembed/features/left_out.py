"""Rows of a data set that have no embeddings and that the user wants to go on without: they are left out, and said so.

In: a data set and the caches that cover it. Out: the data set without them. Knows no model and no head.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import polars as pl

from llmembed.datasets import Dataset
from llmembed.features.sources import Source
from llmembed.identity import text_key


def without_quarantined(
    dataset: Dataset, sources: Sequence[Source], on_warning: Callable[[str], None] = lambda _: None
) -> Dataset:
    """Return the data set without texts that were quarantined with `on_bad_value='skip'` in any of the caches."""
    keys: set[bytes] = set()
    for source in sources:
        skipped = list(source.cache.quarantine.skipped())
        # Another extraction may have embedded one since.
        keys.update(skipped[i] for i in source.cache.locate(skipped).missing)
    if not keys:
        return dataset
    marks = pl.Series([text_key(text) in keys for text in dataset.table["text"]], dtype=pl.Boolean)
    rows = dict(dataset.table.filter(marks).group_by("split").len().sort("split", descending=True).iter_rows())
    if not rows:
        return dataset
    counted = " and ".join(f"{count:,} {split} row{'s' if count > 1 else ''}" for split, count in rows.items())
    on_warning(f"{counted} left out: their texts have no embeddings (`on_bad_value='skip'` listed them).")
    return replace(dataset, table=dataset.table.filter(~marks))
