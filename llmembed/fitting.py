"""Fitting: labelled rows of caches -> a feature map and a head; the one road of training, comparing and reproducing.

In: sources, the rows that are fitted on, and a `TrainingSpec`. Out: what a classifier is made of. Reads no test split,
keeps no time and saves nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmembed.datasets import Dataset
from llmembed.datasets.labels import index_labels, index_options
from llmembed.errors import UsageError
from llmembed.features import FeatureMap
from llmembed.features.fusion import LEARNED, Layout
from llmembed.features.on_disk import Features, fit_feature_map
from llmembed.features.sources import LocatedRows, Source, locate_rows
from llmembed.folds import find_repeats
from llmembed.heads import HEADS, Head, learns_fusions, make_head
from llmembed.memory import total_memory
from llmembed.requests import TrainingSpec

# Features that fill no more of the machine's memory are read once; larger ones stay on disk and are read in blocks.
# A head may copy them, and other programs need some too.
RESIDENT_SHARE = 1 / 8


@dataclass(frozen=True)
class Subset:
    """Some rows of a data set: where their embeddings lie, their class indices y and their groups, both int64 [rows].

    Rows of one group, such as those of equal texts, are held out together.
    """

    rows: LocatedRows
    y: np.ndarray
    groups: np.ndarray

    def take(self, chosen: np.ndarray) -> "Subset":
        """Return the chosen rows, a bool or integer index."""
        return Subset(self.rows.take(chosen), self.y[chosen], self.groups[chosen])


@dataclass(frozen=True)
class Fitted:
    """What a classifier is made of, and whether the features were in memory while the head was fitted."""

    feature_map: FeatureMap
    head: Head
    in_memory: bool

    def predict_proba(self, embeddings: Sequence[np.ndarray]) -> np.ndarray:
        """Classify embeddings [rows, layers, dim] of each source -> float32 [rows, classes of the head]."""
        return self.head.predict_proba(self.feature_map.apply(embeddings))


def fit_classifier(
    spec: TrainingSpec,
    sources: Sequence[Source],
    training: Subset,
    validation: Subset | None = None,
    *,
    labels: Sequence[str],
    memoize: bool = False,
    processes: int = 1,
    on_read: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fit the feature map and the head on the training rows; the head chooses by the validation rows, if there are any.

    `labels` name the classes. `memoize`, in a body of `verified`, lets the next fit on the same rows read the scalers.
    `processes` share the memory of the machine. `on_read` is called when the features are there.

    Raises:
        UsageError: the head has no such option, or cannot learn the fusion.
        InputError: rows that the head cannot learn from.
    """
    head = make_estimator(spec, layout_of(sources), labels)
    feature_map = fit_feature_map(sources, training.rows, spec.fusion, memoize=memoize)
    features, training = read_features(sources, training, feature_map, processes=processes)
    held_out = None
    if validation is not None and len(validation.y):
        unseen, validation = read_features(sources, validation, feature_map, processes=processes)
        held_out = unseen, validation.y
    on_read()
    head.fit(features, training.y, validation=held_out, groups=training.groups)
    return Fitted(feature_map, head, isinstance(features, np.ndarray))


def make_estimator(spec: TrainingSpec, layout: Layout, labels: Sequence[str]) -> Head:
    """Make the head; a fusion that is learned becomes its first part.

    Raises:
        UsageError: the head has no such option, or cannot learn the fusion.
    """
    options = index_options(spec.head_options, labels)
    if own := sorted(options.keys() & {"seed", "fusion", "layout"}):
        raise UsageError(f"`head_options` with {', '.join(own)}: they are arguments of the training itself.")
    if spec.fusion not in LEARNED:
        return make_head(spec.head, seed=spec.seed, **options)
    if not learns_fusions(spec.head):
        learners = " or ".join(name for name in HEADS if learns_fusions(name))
        raise UsageError(
            f"`fusion={spec.fusion!r}` is learned inside the head {learners}, and `head={spec.head!r}` cannot do that. "
            "Without weights there are mean and gram."
        )
    return make_head(spec.head, seed=spec.seed, fusion=spec.fusion, layout=layout, **options)


def layout_of(sources: Sequence[Source]) -> Layout:
    """Return the number of layers and the dim of each source."""
    return tuple((len(source.layers), source.cache.spec.dim) for source in sources)


def training_rows(dataset: Dataset, sources: Sequence[Source], groups: np.ndarray | None = None) -> Subset:
    """Return the rows of the training split; its groups, if none are given, are those of equal texts.

    Raises:
        CacheError: rows missing from a cache, or a damaged shard, with the extraction that makes it again.
    """
    texts = dataset.texts("train")
    groups = find_repeats(texts) if groups is None else groups
    labels = dataset.labels("train")
    y, _ = index_labels(labels, sorted(set(labels)))
    return Subset(locate_rows(sources, texts), y, groups)


def read_features(
    sources: Sequence[Source], subset: Subset, feature_map: FeatureMap, *, processes: int = 1
) -> tuple[Features | np.ndarray, Subset]:
    """Return the features [rows, features] of a subset, and the subset in their order.

    What fits into an eighth of the machine's memory, or the share of that for one of several `processes`, is read now,
    as it stands; what is larger whenever the head asks for it, in the order in which the rows lie on disk.
    """
    features = Features(sources, subset.rows, feature_map)
    if 4 * features.shape[0] * features.shape[1] <= RESIDENT_SHARE * total_memory() / processes:
        return features[:], subset
    order = subset.rows.on_disk()
    return features.select_rows(order), subset.take(order)
