"""Which fusion, head and layers are best? Every configuration on validation folds of the training split, then one test.

In: a data set and its cache. Out: a `Leaderboard`, whose winner is refitted on the whole training split and meets the
test split once. Results are kept on disk, so that a second call, or one after a kill, computes only what is new.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np

from llmembed.choices import Fusion
from llmembed.datasets import Dataset
from llmembed.errors import DatasetError
from llmembed.experiments.trials import Configuration, Result, Results, Trial, run_trials
from llmembed.features.fusion import LEARNED, fused_layers
from llmembed.features.left_out import without_quarantined
from llmembed.features.sources import open_sources
from llmembed.fitting import training_rows
from llmembed.folds import deal_folds, find_wholes
from llmembed.heads import HEADS, learns_fusions
from llmembed.requests import TrainingSpec
from llmembed.storage import Location, open_store
from llmembed.training import Training, train_on

FUSIONS: tuple[Fusion, ...] = tuple(fusion for fusion in get_args(Fusion) if fusion != "last")
FOLDS = 3


@dataclass(frozen=True)
class Line:
    """A configuration on the leaderboard: means over folds and seeds, and the standard deviation of the accuracy."""

    configuration: Configuration
    accuracy: float
    standard_deviation: float
    macro_f1: float
    fit_seconds: float


@dataclass(frozen=True)
class Leaderboard:
    """What a comparison found.

    Attributes:
        lines: best validation accuracy first.
        by_depth: lines of the configurations that read one layer alone, by head, in the order of the layers.
        backbones: backbone and fingerprint of each source.
        rows: rows of the training split, on whose folds the lines were measured.
        contained: those of them whose text is part of a longer one, with which they were held out.
        folds, seeds: how often each configuration was fitted.
        computed, reused: trials of this call, and of earlier ones.
        seconds: wall time of the trials of this call.
        winner: the first line, refitted on the whole training split and tested once.
    """

    lines: tuple[Line, ...]
    by_depth: dict[str, tuple[Line, ...]]
    backbones: tuple[str, ...]
    rows: int
    contained: int
    folds: int
    seeds: tuple[int, ...]
    computed: int
    reused: int
    seconds: float
    winner: Training

    def to_json(self) -> dict[str, Any]:
        """Return one object of JSON values."""
        lines = [{**asdict(line), "configuration": line.configuration.model_dump()} for line in self.lines]
        counts = {
            name: getattr(self, name)
            for name in ("backbones", "rows", "contained", "folds", "seeds", "computed", "reused", "seconds")
        }
        return {"lines": lines, **counts, "winner": self.winner.to_json()}


def configurations(
    layers: Sequence[Sequence[int]],
    *,
    fusions: Sequence[Fusion] = FUSIONS,
    heads: Sequence[str] = tuple(HEADS),
    options: dict[str, Sequence[dict[str, Any]]] | None = None,
) -> list[Configuration]:
    """Lay out what is compared: each fusion of all layers and each layer alone, with each head and its options.

    `layers` are those of each backbone. Fusions that only one head can learn meet that head alone.
    """
    single: list[tuple[Fusion, Any]] = [
        ("last", tuple((layer,) if backbone == each else () for each in range(len(layers))))
        for backbone, own in enumerate(layers)
        for layer in own
    ]
    fused = [(fusion, tuple(fused_layers(fusion, own) for own in layers)) for fusion in fusions]
    tried = options or {}
    return [
        Configuration(fusion=fusion, layers=chosen, head=head, options=each)
        for (fusion, chosen), head in product([*(each for each in fused if each not in single), *single], heads)
        if fusion not in LEARNED or learns_fusions(head)
        for each in tried.get(head) or [{}]
    ]


def compare(
    dataset: Dataset,
    *,
    root: Location,
    results: Location = "comparisons",
    out: Path | None = None,
    backbones: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    fusions: Sequence[Fusion] = FUSIONS,
    heads: Sequence[str] = tuple(HEADS),
    options: dict[str, Sequence[dict[str, Any]]] | None = None,
    seeds: Sequence[int] = (0,),
    folds: int = FOLDS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Leaderboard:
    """Compare configurations on folds of the training split, and test the best of them once.

    `options` gives the variants of a head, such as `{"mlp": [{"hidden": (64,)}, {"hidden": (256,)}]}`. Trials run in
    parallel, one per core; each is written to a file under `results` when it is done. The same seeds give the same
    lines but for the times.

    Raises:
        CacheError: no cache, rows missing from it, or a damaged shard, with the extraction that makes it again.
        DatasetError: no class has as many training rows as there are folds, apart from texts that are part of others.
    """
    start = perf_counter()
    sources = open_sources(root, dataset, backbones, layers)
    dataset = without_quarantined(dataset, sources, on_warning)
    labels = sorted(set(dataset.labels("train")))
    wholes = find_wholes(dataset.texts("train"))
    subset = training_rows(dataset, sources, wholes)
    _refuse_few_rows(subset.y[np.unique(wholes)], folds, dataset)
    fold_of = {seed: deal_folds(subset.y, wholes, folds=folds, seed=seed) for seed in seeds}
    compared = configurations([source.layers for source in sources], fusions=fusions, heads=heads, options=options)
    trials = [
        Trial(configuration=configuration, seed=seed, fold=fold, folds=folds)
        for configuration, seed, fold in product(compared, seeds, range(folds))
    ]
    compared_as = f"{dataset.name}-{'+'.join(source.name for source in sources)}"
    stored = Results(open_store(results).child(compared_as), dataset)
    found = {stored.name(trial): stored.read(trial) for trial in trials}
    new = [trial for trial in trials if found[stored.name(trial)] is None]
    for done, result in enumerate(run_trials(new, sources, subset, fold_of, labels), start=1):
        stored.write(result)
        found[stored.name(result.trial)] = result
        on_progress(done, len(new))
    lines = _rank(compared, [result for result in found.values() if result is not None])
    seconds = perf_counter() - start
    best = lines[0].configuration
    return Leaderboard(
        lines=tuple(lines),
        by_depth={head: _by_depth(lines, head) for head in heads},
        backbones=tuple(source.name for source in sources),
        rows=len(subset.y),
        contained=len(wholes) - len(np.unique(wholes)),
        folds=folds,
        seeds=tuple(seeds),
        computed=len(new),
        reused=len(trials) - len(new),
        seconds=round(seconds, 3),
        winner=train_on(
            dataset,
            best.of(sources),
            TrainingSpec(fusion=best.fusion, head=best.head, head_options=best.options, seed=seeds[0]),
            out=out,
        ),
    )


def _refuse_few_rows(y: np.ndarray, folds: int, dataset: Dataset) -> None:
    largest = np.bincount(y).max()
    if largest < folds:
        raise DatasetError(
            f"{dataset.origin}: the largest class has {largest} training texts that are not part of others, fewer than "
            f"`folds={folds}`; lower it."
        )


def _rank(compared: Sequence[Configuration], results: Sequence[Result]) -> list[Line]:
    lines = []
    for configuration in compared:
        # As JSON, in which what was computed now and what was read from disk are equal.
        wanted = configuration.model_dump_json()
        own = [result for result in results if result.trial.configuration.model_dump_json() == wanted]
        accuracies = [result.accuracy for result in own]
        lines.append(
            Line(
                configuration=configuration,
                accuracy=round(float(np.mean(accuracies)), 6),
                standard_deviation=round(float(np.std(accuracies)), 6),
                macro_f1=round(float(np.mean([result.macro_f1 for result in own])), 6),
                fit_seconds=round(float(np.mean([result.fit_seconds for result in own])), 3),
            )
        )
    return sorted(lines, key=lambda line: (line.accuracy, line.macro_f1), reverse=True)


def _by_depth(lines: Sequence[Line], head: str) -> tuple[Line, ...]:
    alone = [line for line in lines if line.configuration.alone and line.configuration.head == head]
    return tuple(sorted(alone, key=lambda line: [(not own, own) for own in line.configuration.layers]))
