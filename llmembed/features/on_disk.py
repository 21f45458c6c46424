"""Features on disk: rows of caches and a feature map -> a matrix float32 [rows, features] that is read when asked for.

`Features` looks like a NumPy matrix to a head (`shape`, and rows by slice or index), but holds none of it: what is
asked for is read from the memory-mapped shards. Here the map is fitted too. Knows no labels and no head.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from llmembed.cache import Located
from llmembed.choices import Fusion
from llmembed.features import FeatureMap
from llmembed.features.fusion import fused_width
from llmembed.features.scaling import Moments, Scaler, fit_scaler, moments
from llmembed.features.sources import LocatedRows, Source, read_embeddings
from llmembed.matrix import Derived
from llmembed.parallel import in_threads

# Values that are read, scaled and fused at a time: few enough to stay in the processor's cache.
VALUES_AT_ONCE = 2**19
# The same for statistics, which are merged block by block.
STATISTICS_VALUES = 2**22


def fit_feature_map(
    sources: Sequence[Source], rows: LocatedRows, fusion: Fusion, *, memoize: bool = False
) -> FeatureMap:
    """Take mean and deviation of every dimension of every layer over the rows, for each source.

    In a body of `verified` they may be memoized beside each cache: the next training reads them.
    """
    fit = _memoized_scaler if memoize else _fit_scaler
    pairs = zip(sources, rows.located, strict=True)
    return FeatureMap(tuple(fit(source, located) for source, located in pairs), fusion)


def _memoized_scaler(source: Source, located: Located) -> Scaler:
    def make() -> Derived:
        scaler = _fit_scaler(source, located)
        return Derived({"mean": scaler.mean, "scale": scaler.scale})

    what = {"scaler": source.cache.identify(located, source.layers)}
    derived = source.cache.derived.memoize(what, make)
    return Scaler(derived.arrays["mean"], derived.arrays["scale"])


def _fit_scaler(source: Source, located: Located) -> Scaler:
    slices = _slices(len(located.row), len(source.layers) * source.cache.spec.dim, STATISTICS_VALUES)
    return fit_scaler(in_threads(partial(_moments, source, located), slices))


def _moments(source: Source, located: Located, chosen: slice) -> Moments:
    return moments(source.cache.read(Located(located.shard[chosen], located.row[chosen]), source.layers))


class Features:
    """A matrix [rows, features] on disk, float32 when it is read.

    `features[a:b]` and `features[index]` give rows as an array; `numpy.asarray(features)` reads all of them.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, sources: Sequence[Source], rows: LocatedRows, feature_map: FeatureMap) -> None:
        self._sources, self._rows, self._map = sources, rows, feature_map
        self.shape = (len(rows), feature_map.width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: np.ndarray | slice) -> np.ndarray:
        rows = self._rows.take(chosen)
        features = np.empty((len(rows), self.shape[1]), np.float32)
        # By one thread: 4.9 GB took it 2.4 s, and four, which wait for the interpreter at every operation, 2 to 4 s.
        for block in _slices(len(rows), fused_width("concat", self._map.layout), VALUES_AT_ONCE):
            features[block] = self._map.apply(read_embeddings(self._sources, rows.take(block)))
        return features

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def select_rows(self, chosen: np.ndarray) -> "Features":
        """Return the chosen rows, still on disk."""
        return Features(self._sources, self._rows.take(chosen), self._map)

    def memoize(self, what: Mapping[str, Any], make: Callable[[], Derived]) -> Derived:
        """Return arrays that were computed from this matrix before, or make them; `verified` writes them."""
        pairs = zip(self._sources, self._rows.located, strict=True)
        sources = [source.cache.identify(located, source.layers) for source, located in pairs]
        identity = {"sources": sources, **self._map.identify()}
        return self._sources[0].cache.derived.memoize({**what, "features": identity}, make)


def _slices(rows: int, width: int, values: int) -> list[slice]:
    step = max(1, values // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
