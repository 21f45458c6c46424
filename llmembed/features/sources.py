"""Sources: which rows of which caches a data set is read from, joined by text.

In: a root, a data set, names of backbones, layers. Out: open caches, where each text lies in them, and its embeddings.
Knows no labels, no fusion's arithmetic and no head.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from llmembed.backbones import resolve_layers
from llmembed.cache import Cache, Located
from llmembed.choices import Fusion
from llmembed.datasets import Dataset
from llmembed.errors import UsageError
from llmembed.features.fusion import fused_layers
from llmembed.identity import text_key
from llmembed.storage import Location


@dataclass(frozen=True)
class Source:
    """What is read of one backbone: its cache, and the layers of it."""

    cache: Cache
    layers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return backbone and fingerprint, as in the cache's name."""
        return self.cache.name

    def fused(self, fusion: Fusion) -> "Source":
        """Return only the layers that a fusion reads."""
        return Source(self.cache, fused_layers(fusion, self.layers))


def open_sources(
    root: Location, dataset: Dataset, backbones: Sequence[str] = (), layers: Sequence[int] | None = None
) -> tuple[Source, ...]:
    """Open the caches of a data set by the backbones named, or the one extracted last.

    `layers` are those to read of each, all by default; negative ones count from the end of each model.

    Raises:
        CacheError: there is no such cache, with the extraction that makes it.
        UsageError: a backbone is named twice, or the layers are not in its cache.
    """
    named: Sequence[str | None] = backbones or [None]
    caches = [Cache.latest(root, dataset.name, backbone, dataset.reading) for backbone in named]
    for number, cache in enumerate(caches):
        if any(cache.url == earlier.url for earlier in caches[:number]):
            raise UsageError(f"`backbones={list(backbones)}` names one twice: {cache.url}.")
    return tuple(Source(cache, _stored_layers(cache, layers)) for cache in caches)


def _stored_layers(cache: Cache, layers: Sequence[int] | None) -> tuple[int, ...]:
    held = cache.spec.layers
    wanted = held if layers is None else resolve_layers(layers, cache.spec.depth, cache.spec.model)
    if not set(wanted) <= set(held):
        raise UsageError(
            f"`layers={wanted}`: {cache.url} holds the layers {','.join(map(str, held))}. Choose among them, or "
            "extract these.",
            extractions=[cache.request().model_copy(update={"layers": wanted})],
        )
    return wanted


@dataclass(frozen=True)
class LocatedRows:
    """Texts in the caches of some sources: `located[b]` says where each text lies in the cache of source b."""

    located: tuple[Located, ...]

    def __len__(self) -> int:
        return len(self.located[0].row)

    def take(self, chosen: np.ndarray | slice) -> "LocatedRows":
        """Return the chosen rows, a bool or integer index."""
        return LocatedRows(tuple(Located(each.shard[chosen], each.row[chosen]) for each in self.located))

    def of(self, sources: Sequence[int]) -> "LocatedRows":
        """Return the same texts in some of the sources, by their numbers."""
        return LocatedRows(tuple(self.located[source] for source in sources))

    def on_disk(self) -> np.ndarray:
        """Return the order in which the rows lie in the first cache, int64 [rows]."""
        return np.lexsort((self.located[0].row, self.located[0].shard))


def locate_rows(sources: Sequence[Source], texts: Sequence[str]) -> LocatedRows:
    """Find texts in every source and check the shards that hold them.

    Raises:
        CacheError: a source lacks some of the texts, or a shard is damaged, with the extraction that makes them.
    """
    rows = find_rows(sources, texts)
    _verify(sources, rows)
    return rows


def find_rows(sources: Sequence[Source], texts: Sequence[str]) -> LocatedRows:
    """Do what `locate_rows` does without checking the shards: `verified` does that.

    Raises:
        CacheError: a source lacks some of the texts, with the extraction that makes them.
    """
    keys = [text_key(text) for text in texts]
    return LocatedRows(tuple(source.cache.find_all(keys) for source in sources))


@contextmanager
def verified(sources: Sequence[Source], rows: LocatedRows) -> Iterator[None]:
    """Check the shards that hold the rows while the body works on them: to hash 4.9 GB takes seconds.

    What the body memoized is written only then: from damaged shards it would outlive their repair.

    Raises:
        CacheError: when the body has ended, even by another error: a shard is missing or damaged.
    """
    with ThreadPoolExecutor(1) as pool:
        verification = pool.submit(_verify, sources, rows)
        try:
            yield
        finally:
            try:
                verification.result()
                _verify_again(sources, rows)
            except BaseException:
                for source in sources:
                    source.cache.derived.forget()
                raise
            for source in sources:
                source.cache.derived.write()


def _verify(sources: Sequence[Source], rows: LocatedRows) -> None:
    for source, located in zip(sources, rows.located, strict=True):
        source.cache.verify(np.unique(located.shard).tolist())


def _verify_again(sources: Sequence[Source], rows: LocatedRows) -> None:
    for source, located in zip(sources, rows.located, strict=True):
        source.cache.verify_again(np.unique(located.shard).tolist())


def read_embeddings(sources: Sequence[Source], rows: LocatedRows) -> list[np.ndarray]:
    """Read the rows of each source -> [rows, layers, dim] in the dtype on disk, in the order asked for."""
    return [source.cache.read(located, source.layers) for source, located in zip(sources, rows.located, strict=True)]
