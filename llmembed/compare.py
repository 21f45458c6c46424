"""Which fusion, head and layers are best? Every configuration on validation folds of the training split, then one test.

In: a data set and its cache. Out: a `Leaderboard`, whose winner is refitted on the whole training split and meets the
test split once. Results are kept on disk, so that a second call, or one after a kill, computes only what is new.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from llmembed.cache import Cache
from llmembed.choices import Fusion
from llmembed.dataset import Dataset
from llmembed.errors import DatasetError
from llmembed.evaluate import evaluate
from llmembed.features import Source, fit_scalers, open_sources
from llmembed.folds import deal_folds, find_wholes
from llmembed.fusion import LEARNED, fused_layers
from llmembed.heads import HEADS, learns_fusions
from llmembed.heads.classes import decide
from llmembed.identity import seal, unseal
from llmembed.labels import index_labels, index_options
from llmembed.left_out import without_quarantined
from llmembed.parallel import count_cores, single_threaded_children
from llmembed.parent import exit_with_parent, starting_processes
from llmembed.storage import Location, Store, open_store
from llmembed.train import (
    VERSIONS,
    Part,
    Training,
    dataset_digest,
    make_estimator,
    read_features,
    train_on,
    training_part,
)

FUSIONS: tuple[Fusion, ...] = tuple(fusion for fusion in get_args(Fusion) if fusion != "last")
FOLDS = 3
# To be raised when the same trial gives another result than before.
FORMAT = 4
# Trials are about accuracy alone: one network on all rows of its folds is as accurate as the two that `train` fits
# (within 0.15 points in cross-validation on MR, R8, R52 and AG News), in half the time.
TRIAL_OPTIONS: dict[str, dict[str, Any]] = {"mlp": {"ensemble_size": 1, "calibrate": False}}

# The fold of each training row, int64 [rows], by seed.
FoldOf = dict[int, np.ndarray]


class Configuration(BaseModel):
    """What is compared: how layers are fused, which of each backbone (none: it is not read), and the head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fusion: Fusion
    layers: tuple[tuple[int, ...], ...]
    head: str
    options: dict[str, Any] = {}

    @property
    def alone(self) -> bool:
        """Tell whether it reads one layer of one backbone."""
        return sum(map(len, self.layers)) == 1

    def of(self, sources: Sequence[Source]) -> list[Source]:
        """Give the sources that it reads, with its layers."""
        return [Source(source.cache, layers) for source, layers in zip(sources, self.layers, strict=True) if layers]


class Trial(BaseModel):
    """One configuration fitted with one seed on all folds but one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configuration: Configuration
    seed: int
    fold: int
    folds: int


class Result(BaseModel):
    """How a trial did on the fold that it had not seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: Trial
    accuracy: float
    macro_f1: float
    fit_seconds: float


@dataclass(frozen=True)
class Line:
    """A configuration on the leaderboard: means over folds and seeds, and the standard deviation of the accuracy."""

    configuration: Configuration
    accuracy: float
    spread: float
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
        """Give one object for `--json`."""
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
        CacheError: no cache, rows missing from it, or a damaged shard, with the command that mends it.
        DatasetError: no class has as many training rows as there are folds, apart from texts that are part of others.
    """
    start = perf_counter()
    sources = open_sources(root, dataset, backbones, layers)
    dataset = without_quarantined(dataset, sources, on_warning)
    labels = sorted(set(dataset.labels("train")))
    wholes = find_wholes(dataset.texts("train"))
    part = training_part(dataset, sources, wholes)
    _refuse_few_rows(part.y[np.unique(wholes)], folds, dataset)
    fold_of = {seed: deal_folds(part.y, wholes, folds=folds, seed=seed) for seed in seeds}
    compared = configurations([source.layers for source in sources], fusions=fusions, heads=heads, options=options)
    trials = [
        Trial(configuration=configuration, seed=seed, fold=fold, folds=folds)
        for configuration, seed, fold in product(compared, seeds, range(folds))
    ]
    compared_as = f"{dataset.name}-{'+'.join(source.name for source in sources)}"
    kept = _Results(open_store(results).child(compared_as), dataset)
    found = {kept.name(trial): kept.read(trial) for trial in trials}
    new = [trial for trial in trials if found[kept.name(trial)] is None]
    for done, result in enumerate(_run_all(new, sources, part, fold_of, labels), start=1):
        kept.write(result)
        found[kept.name(result.trial)] = result
        on_progress(done, len(new))
    lines = _rank(compared, [result for result in found.values() if result is not None])
    seconds = perf_counter() - start
    best = lines[0].configuration
    return Leaderboard(
        lines=tuple(lines),
        by_depth={head: _by_depth(lines, head) for head in heads},
        backbones=tuple(source.name for source in sources),
        rows=len(part.y),
        contained=len(wholes) - len(np.unique(wholes)),
        folds=folds,
        seeds=tuple(seeds),
        computed=len(new),
        reused=len(trials) - len(new),
        seconds=round(seconds, 3),
        winner=train_on(
            dataset,
            best.of(sources),
            fusion=best.fusion,
            head=best.head,
            head_options=best.options,
            seed=seeds[0],
            out=out,
        ),
    )


class _Results:
    """Results that are kept, an object each, named by all that determines them."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self._store = store
        self._store.sweep("")
        versions = {name: version(name) for name in VERSIONS}
        self._context = {"format": FORMAT, "dataset": dataset_digest(dataset), "versions": versions}

    def read(self, trial: Trial) -> Result | None:
        name = self.name(trial)
        try:
            record = unseal(self._store.read(name))
            # As JSON, from which tuples come back.
            return Result.model_validate_json(json.dumps(record["result"])) if record["name"] == name else None
        except (FileNotFoundError, KeyError, ValueError):
            # Damaged counts as missing: it is made again.
            return None

    def write(self, result: Result) -> None:
        # Another comparison may write the same result; either one is whole.
        name = self.name(result.trial)
        self._store.put(name, seal({"name": name, "result": result.model_dump(mode="json")}))

    def name(self, trial: Trial) -> str:
        """Name the file of a trial."""
        content = json.dumps({**self._context, **trial.model_dump(mode="json")}, sort_keys=True)
        return f"{sha256(content.encode()).hexdigest()[:24]}.json"


def _refuse_few_rows(y: np.ndarray, folds: int, dataset: Dataset) -> None:
    largest = np.bincount(y).max()
    if largest < folds:
        raise DatasetError(
            f"{dataset.origin}: the largest class has {largest} training texts that are not part of others, fewer than "
            f"--folds {folds}; lower it."
        )


def _run_all(
    trials: Sequence[Trial], sources: Sequence[Source], part: Part, fold_of: FoldOf, labels: Sequence[str]
) -> Iterable[Result]:
    if not trials:
        return
    opened = [(source.cache.url, source.layers) for source in sources], part, fold_of, labels
    with (
        single_threaded_children(),
        ProcessPoolExecutor(
            min(count_cores(), len(trials)), get_context("spawn"), initializer=_open, initargs=opened
        ) as pool,
    ):
        # The widest first, so that no long trial begins when the others have ended.
        with starting_processes():
            waiting = [pool.submit(_run, trial) for trial in sorted(trials, key=_width, reverse=True)]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _width(trial: Trial) -> int:
    configuration = trial.configuration
    return sum(map(len, configuration.layers)) if configuration.fusion in ("concat", *LEARNED) else 1


# What a process of the pool works on, set when it starts: the sources, the training rows, their folds and the labels.
_opened: dict[str, Any] = {}


def _open(places: Sequence[tuple[str, tuple[int, ...]]], part: Part, fold_of: FoldOf, labels: Sequence[str]) -> None:
    # The processes of a pool wait for work for ever when the one that made them is killed.
    exit_with_parent()
    sources = [Source(Cache.open(url), layers) for url, layers in places]
    _opened.update(sources=sources, part=part, fold_of=fold_of, labels=labels)


def _run(trial: Trial) -> Result:
    configuration, part = trial.configuration, _opened["part"]
    sources = configuration.of(_opened["sources"])
    own = [number for number, layers in enumerate(configuration.layers) if layers]
    part = replace(part, rows=part.rows.of(own))
    held_out = _opened["fold_of"][trial.seed] == trial.fold
    fit, held = part.take(~held_out), part.take(held_out)
    scalers = fit_scalers(sources, fit.rows)
    read = partial(read_features, sources, scalers=scalers, fusion=configuration.fusion, processes=count_cores())
    (features, fit), (unseen, held) = read(part=fit), read(part=held)
    options = index_options(TRIAL_OPTIONS.get(configuration.head, {}) | configuration.options, _opened["labels"])
    head = make_estimator(configuration.head, configuration.fusion, sources, seed=trial.seed, **options)
    start = perf_counter()
    head.fit(features, fit.y, groups=fit.groups)
    seconds = perf_counter() - start
    probabilities = head.predict_proba(unseen)
    # A class whose rows all lie in this fold is unknown to the head: its rows count as errors.
    truth, names = index_labels(held.y.tolist(), head.classes_.tolist())
    report = evaluate(truth, probabilities, decide(probabilities, head.class_weights_), list(map(str, names)))
    return Result(trial=trial, accuracy=report.accuracy, macro_f1=report.macro_f1, fit_seconds=round(seconds, 3))


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
                spread=round(float(np.std(accuracies)), 6),
                macro_f1=round(float(np.mean([result.macro_f1 for result in own])), 6),
                fit_seconds=round(float(np.mean([result.fit_seconds for result in own])), 3),
            )
        )
    return sorted(lines, key=lambda line: (line.accuracy, line.macro_f1), reverse=True)


def _by_depth(lines: Sequence[Line], head: str) -> tuple[Line, ...]:
    alone = [line for line in lines if line.configuration.alone and line.configuration.head == head]
    return tuple(sorted(alone, key=lambda line: [(not own, own) for own in line.configuration.layers]))
