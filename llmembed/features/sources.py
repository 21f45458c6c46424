"""Features: rows of one cache or several, joined by text, scaled and fused -> float32 [rows, features].

`Features` looks like a NumPy matrix to a head (`shape`, and rows by slice or index), but holds none of it: what is
asked for is read from the memory-mapped shards. Knows no labels and no head.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np

from llmembed.backbones import resolve_layers
from llmembed.cache import Cache, Located
from llmembed.choices import Fusion
from llmembed.datasets import Dataset
from llmembed.errors import UsageError
from llmembed.features.fusion import Layout, fuse, fused_layers, fused_width
from llmembed.features.scaling import Moments, Scaler, fit_scaler, moments
from llmembed.identity import text_key
from llmembed.matrix import Derived
from llmembed.parallel import in_threads
from llmembed.storage import Location

# Values that are read, scaled and fused at a time: few enough to stay in the processor's cache.
VALUES_AT_ONCE = 2**19
# The same for statistics, which are merged block by block.
STATISTICS_VALUES = 2**22


@dataclass(frozen=True)
class Source:
    """What is read of one backbone: its cache, and the layers of it."""

    cache: Cache
    layers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Give backbone and fingerprint, as in the cache's name."""
        return self.cache.name

    def fused(self, fusion: Fusion) -> "Source":
        """Give only the layers that a fusion reads."""
        return Source(self.cache, fused_layers(fusion, self.layers))


def open_sources(
    root: Location, dataset: Dataset, backbones: Sequence[str] = (), layers: Sequence[int] | None = None
) -> tuple[Source, ...]:
    """Open the caches of a data set by the backbones named, or the one extracted last.

    `layers` are those to read of each, all by default; negative ones count from the end of each model.

    Raises:
        CacheError: there is no such cache, with the command that makes it.
        UsageError: a backbone is named twice, or the layers are not in its cache.
    """
    named: Sequence[str | None] = backbones or [None]
    caches = [Cache.latest(root, dataset.name, backbone, dataset.words) for backbone in named]
    for number, cache in enumerate(caches):
        if any(cache.url == earlier.url for earlier in caches[:number]):
            raise UsageError(f"--backbone {backbones[number]} is named twice: both are {cache.url}.")
    return tuple(Source(cache, _stored_layers(cache, layers, dataset.words)) for cache in caches)


def _stored_layers(cache: Cache, layers: Sequence[int] | None, words: Sequence[str]) -> tuple[int, ...]:
    held = cache.spec.layers
    wanted = held if layers is None else resolve_layers(layers, cache.spec.depth, cache.spec.model)
    if not set(wanted) <= set(held):
        option = f"--layers {','.join(map(str, wanted))}"
        raise UsageError(
            f"{option}: {cache.url} holds the layers {','.join(map(str, held))}. Choose among them or run "
            f"`{shlex.join(['llmembed', 'extract', *words])} --backbone {cache.backbone} {option}` first."
        )
    return wanted


@dataclass(frozen=True)
class LocatedRows:
    """Texts in the caches of some sources: `located[b]` says where each text lies in the cache of source b."""

    located: tuple[Located, ...]

    def __len__(self) -> int:
        return len(self.located[0].row)

    def take(self, chosen: np.ndarray | slice) -> "LocatedRows":
        """Give the chosen rows, a bool or integer index."""
        return LocatedRows(tuple(Located(each.shard[chosen], each.row[chosen]) for each in self.located))

    def of(self, sources: Sequence[int]) -> "LocatedRows":
        """Give the same texts in some of the sources, by their numbers."""
        return LocatedRows(tuple(self.located[source] for source in sources))

    def on_disk(self) -> np.ndarray:
        """Give the order in which the rows lie in the first cache, int64 [rows]."""
        return np.lexsort((self.located[0].row, self.located[0].shard))


def locate_rows(sources: Sequence[Source], texts: Sequence[str], words: Sequence[str]) -> LocatedRows:
    """Find texts in every source and check the shards that hold them; `words` name the data set on a command line.

    Raises:
        CacheError: a source lacks some of the texts, or a shard is damaged, with the command that mends it.
    """
    rows = find_rows(sources, texts, words)
    _verify(sources, rows)
    return rows


def find_rows(sources: Sequence[Source], texts: Sequence[str], words: Sequence[str]) -> LocatedRows:
    """Do what `locate_rows` does without checking the shards: `verified` does that.

    Raises:
        CacheError: a source lacks some of the texts, with the command that mends it.
    """
    keys = [text_key(text) for text in texts]
    return LocatedRows(tuple(source.cache.find_all(keys, words) for source in sources))


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


def memoize_scalers(sources: Sequence[Source], rows: LocatedRows) -> tuple[Scaler, ...]:
    """Do what `fit_scalers` does, once: in a body of `verified` they are memoized beside each cache."""
    scalers = []
    for source, located in zip(sources, rows.located, strict=True):

        def make(source: Source = source, located: Located = located) -> Derived:
            (scaler,) = fit_scalers([source], LocatedRows((located,)))
            return Derived({"mean": scaler.mean, "scale": scaler.scale})

        what = {"scaler": source.cache.identify(located, source.layers)}
        derived = source.cache.derived.memoize(what, make)
        scalers.append(Scaler(derived.arrays["mean"], derived.arrays["scale"]))
    return tuple(scalers)


def fit_scalers(sources: Sequence[Source], rows: LocatedRows) -> tuple[Scaler, ...]:
    """Take mean and deviation of every dimension of every layer over the rows, for each source."""
    scalers = []
    for source, located in zip(sources, rows.located, strict=True):
        parts = _slices(len(rows), len(source.layers) * source.cache.spec.dim, STATISTICS_VALUES)
        scalers.append(fit_scaler(in_threads(partial(_moments, source, located), parts)))
    return tuple(scalers)


def _moments(source: Source, located: Located, part: slice) -> Moments:
    return moments(source.cache.read(Located(located.shard[part], located.row[part]), source.layers))


class Features:
    """A matrix [rows, features] on disk, float32 when it is read.

    `features[a:b]` and `features[index]` give rows as an array; `numpy.asarray(features)` reads all of them.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, sources: Sequence[Source], rows: LocatedRows, scalers: Sequence[Scaler], fusion: Fusion) -> None:
        self._sources, self._rows, self._scalers, self._fusion = sources, rows, scalers, fusion
        self.layout: Layout = tuple((len(source.layers), source.cache.spec.dim) for source in sources)
        self.shape = (len(rows), fused_width(fusion, self.layout))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        rows = self._rows.take(chosen)
        features = np.empty((len(rows), self.shape[1]), np.float32)
        # By one thread: 4.9 GB took it 2.4 s, and four, which wait for the interpreter at every operation, 2 to 4 s.
        for part in _slices(len(rows), fused_width("concat", self.layout), VALUES_AT_ONCE):
            features[part] = self._fuse(rows.take(part))
        return features

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def select_rows(self, chosen: np.ndarray) -> "Features":
        """Give the chosen rows, still on disk."""
        return Features(self._sources, self._rows.take(chosen), self._scalers, self._fusion)

    def memoize(self, what: Mapping[str, Any], make: Callable[[], Derived]) -> Derived:
        """Return arrays that were computed from this matrix before, or make them; `verified` writes them."""
        return self._sources[0].cache.derived.memoize({**what, "features": self._identity()}, make)

    def _identity(self) -> dict[str, Any]:
        scales = sha256(b"".join(each.mean.tobytes() + each.scale.tobytes() for each in self._scalers))
        pairs = zip(self._sources, self._rows.located, strict=True)
        sources = [source.cache.identify(located, source.layers) for source, located in pairs]
        return {"sources": sources, "scalers": scales.hexdigest(), "fusion": self._fusion}

    def _fuse(self, rows: LocatedRows) -> np.ndarray:
        embeddings = read_embeddings(self._sources, rows)
        return fuse([scaler.apply(each) for scaler, each in zip(self._scalers, embeddings, strict=True)], self._fusion)


def _slices(rows: int, width: int, values: int) -> list[slice]:
    step = max(1, values // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
