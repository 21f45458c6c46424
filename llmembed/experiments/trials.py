"""Trials of a comparison: one configuration, fitted on all folds but one and judged on that, in processes.

In: trials, the caches and the training rows. Out: results, each kept under a name that all that determines it makes.
Reads no test split and ranks nothing.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from llmembed.cache import Cache
from llmembed.choices import Fusion
from llmembed.datasets import Dataset
from llmembed.datasets.labels import index_labels
from llmembed.evaluation import evaluate
from llmembed.features.fusion import LEARNED
from llmembed.features.sources import Source
from llmembed.fitting import Subset, fit_classifier
from llmembed.heads.classes import decide
from llmembed.identity import seal, unseal
from llmembed.parallel import count_cores, exit_with_parent, single_threaded_children, starting_processes
from llmembed.prediction import classify_rows
from llmembed.requests import TrainingSpec
from llmembed.storage import Store
from llmembed.training import VERSIONS, dataset_digest

# To be raised when the same trial gives another result than before.
TRIAL_FORMAT = 4
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
        """Return whether it reads one layer of one backbone."""
        return sum(map(len, self.layers)) == 1

    def of(self, sources: Sequence[Source]) -> list[Source]:
        """Return the sources that it reads, with its layers."""
        return [Source(source.cache, layers) for source, layers in zip(sources, self.layers, strict=True) if layers]


class Trial(BaseModel):
    """One configuration fitted with one seed on all folds but one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configuration: Configuration
    seed: int
    fold: int
    folds: int

    @property
    def spec(self) -> TrainingSpec:
        """Return how it is fitted: as the configuration says, but faster where that costs no accuracy."""
        own = self.configuration
        options = TRIAL_OPTIONS.get(own.head, {}) | own.options
        return TrainingSpec(fusion=own.fusion, head=own.head, head_options=options, seed=self.seed)


class Result(BaseModel):
    """How a trial did on the fold that it had not seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: Trial
    accuracy: float
    macro_f1: float
    fit_seconds: float


class Results:
    """Results that are kept, an object each, named by all that determines them."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self._store = store
        self._store.delete_abandoned("")
        versions = {name: version(name) for name in VERSIONS}
        self._context = {"format": TRIAL_FORMAT, "dataset": dataset_digest(dataset), "versions": versions}

    def read(self, trial: Trial) -> Result | None:
        """Return the result of a trial, None if there is none that is whole."""
        name = self.name(trial)
        try:
            record = unseal(self._store.read(name))
            # As JSON, from which tuples come back.
            return Result.model_validate_json(json.dumps(record["result"])) if record["name"] == name else None
        except (FileNotFoundError, KeyError, ValueError):
            # Damaged counts as missing: it is made again.
            return None

    def write(self, result: Result) -> None:
        """Write a result, in the place of one that is there."""
        # Another comparison may write the same result; either one is whole.
        name = self.name(result.trial)
        self._store.put(name, seal({"name": name, "result": result.model_dump(mode="json")}))

    def name(self, trial: Trial) -> str:
        """Return the name of the object that holds the result of a trial."""
        content = json.dumps({**self._context, **trial.model_dump(mode="json")}, sort_keys=True)
        return f"{sha256(content.encode()).hexdigest()[:24]}.json"


def run_trials(
    trials: Sequence[Trial], sources: Sequence[Source], subset: Subset, fold_of: FoldOf, labels: Sequence[str]
) -> Iterator[Result]:
    """Run trials in processes, one for each core; yield their results as they come.

    `sources` are those that configurations choose from, `subset` holds the training rows of all of them.
    """
    if not trials:
        return
    opened = [(source.cache.url, source.layers) for source in sources], subset, fold_of, labels
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


def _open(
    places: Sequence[tuple[str, tuple[int, ...]]], subset: Subset, fold_of: FoldOf, labels: Sequence[str]
) -> None:
    # The processes of a pool wait for work for ever when the one that made them is killed.
    exit_with_parent()
    sources = [Source(Cache.open(url), layers) for url, layers in places]
    _opened.update(sources=sources, subset=subset, fold_of=fold_of, labels=labels)


def _run(trial: Trial) -> Result:
    configuration, subset, labels = trial.configuration, _opened["subset"], _opened["labels"]
    sources = configuration.of(_opened["sources"])
    own = [number for number, layers in enumerate(configuration.layers) if layers]
    subset = replace(subset, rows=subset.rows.of(own))
    held_out = _opened["fold_of"][trial.seed] == trial.fold
    held, clock = subset.take(held_out), [perf_counter()]
    fitted = fit_classifier(
        trial.spec,
        sources,
        subset.take(~held_out),
        labels=labels,
        processes=count_cores(),
        on_read=lambda: clock.append(perf_counter()),
    )
    seconds = perf_counter() - clock[-1]
    probabilities, head = classify_rows(fitted, sources, held.rows), fitted.head
    # A class whose rows all lie in this fold is unknown to the head: its rows count as errors.
    truth, names = index_labels(held.y.tolist(), head.classes_.tolist())
    report = evaluate(truth, probabilities, decide(probabilities, head.class_weights_), list(map(str, names)))
    return Result(trial=trial, accuracy=report.accuracy, macro_f1=report.macro_f1, fit_seconds=round(seconds, 3))
