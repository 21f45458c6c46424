"""Stage 1: which texts of a data set are missing from the cache? Embed those and commit them shard by shard.

In: a data set and what fixes the numbers. Out: a cache that covers the data set, and an `Extraction` that says what was
done, how fast, and with how much energy. Knows no labels, no fusion, no head.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmembed.backbones import (
    BackboneSpec,
    BadText,
    describe_backbone,
    load_backbone,
)
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.choices import OnBadValue, Pooling, StorageDtype
from llmembed.datasets import Dataset
from llmembed.devices import Meter, visible_gpus
from llmembed.extraction.bad_texts import BadTexts
from llmembed.extraction.dealing import embed_on_gpus
from llmembed.extraction.embedding import embed_blocks
from llmembed.extraction.progress import Progress, Tally
from llmembed.extraction.resources import CHOOSE, Resources
from llmembed.identity import text_key
from llmembed.storage import Location

# One shard: what a kill can cost (16 s with MiniLM on a laptop) against the number of files (250 for a million texts).
SHARD_ROWS = 4096


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes:
        rows: rows of the data set; each was either embedded or reused.
        embedded: distinct texts that the model read in this run.
        reused: rows whose embeddings were there already, or belong to an equal text.
        quarantined: distinct texts that have no embeddings; `extract` tries them again whenever it is run.
        truncated: rows whose text is longer than the length limit.
        tokens: tokens that the model read in this run.
        seconds: wall time of the run, loading the model included.
        texts_per_second: embedded texts per second of embedding.
        tokens_per_second: tokens per second of embedding.
        mfu: share of the rate at which the GPUs multiply bfloat16 matrices that the matrix products of the layers made
            use of (model FLOPs utilisation); None on the CPU.
        watt_hours: energy that the GPUs used in the run, by their own counters; None where they have none.
        engine: engine, version, device and dtype that embedded, empty if nothing was.
        bytes: size of all shards of the cache.
        repaired: damaged shards that were found and made again.
        cache: folder of the cache.
        dataset: the words of a command line that name the data set.
        options: the words that say how it was extracted, where that differs from its job.
        reading: the arguments of `load_dataset` that read it.
        backbone: where the backbone was found: a name, a hub id or a folder.
    """

    rows: int
    embedded: int
    reused: int
    quarantined: int
    truncated: int
    tokens: int
    seconds: float
    texts_per_second: float
    tokens_per_second: float
    mfu: float | None
    watt_hours: float | None
    engine: dict[str, str]
    bytes: int
    repaired: int
    cache: str
    dataset: list[str]
    options: list[str]
    reading: dict[str, Any]
    backbone: str


@dataclass(frozen=True)
class Plan:
    """What is to be extracted: a data set, the spec that fixes the numbers, the model's files, the cache to fill."""

    dataset: Dataset
    spec: BackboneSpec
    files: ModelFiles
    cache: Cache
    options: list[str]

    def missing(self) -> dict[bytes, str]:
        """Give the distinct texts that are not in the cache, by key, in the order of the data set."""
        text_of = {text_key(text): text for text in self.dataset.texts()}
        keys = list(text_of)
        return {keys[i]: text_of[keys[i]] for i in self.cache.locate(keys).missing}


def plan_extraction(
    dataset: Dataset,
    *,
    root: Location,
    backbone: str | None = None,
    layers: Sequence[int] | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    template: str | None = None,
    dtype: StorageDtype | None = None,
) -> Plan:
    """State what is to be extracted; what is not given comes from the data set's job. Loads no model, writes nothing.

    Raises:
        BackboneError: the model cannot be found or does not have such layers.
        CacheError: the folder of the cache holds something else.
    """
    job = dataset.job
    spec, files = describe_backbone(
        backbone or job.backbone,
        layers=layers or job.layers,
        pooling=pooling or job.pooling,
        max_length=max_length,
        at_most=job.max_length,
        template="{text}" if template is None else template,
        dtype=dtype or "float16",
    )
    options = {
        "backbone": backbone,
        "layers": layers and ",".join(map(str, layers)),
        "pooling": pooling,
        "max-length": max_length,
        "template": template,
        "dtype": dtype,
    }
    words = [word for option, value in options.items() if value is not None for word in (f"--{option}", str(value))]
    return Plan(dataset, spec, files, Cache.at(root, dataset.name, files.name, spec), words)


def extract(
    plan: Plan,
    resources: Resources = CHOOSE,
    *,
    on_bad_value: OnBadValue = "error",
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Extraction:
    """Embed what is missing and commit it, a shard of 4,096 texts at a time.

    Killed, it loses the shards in work and the one being written. `on_warning` is told which GPU's process died, and
    why, and what could not be measured. Texts without tokens, with values that must not be stored, or on which the
    engine fails are quarantined in the cache, where the next extraction tries them again; with `on_bad_value="skip"`
    the extraction ends well without them and `on_warning` lists them.

    Raises:
        UsageError: resources that exclude each other or are not there.
        BackboneError: the model cannot be loaded, or gives nothing that can be stored; or, when all others are
            committed, texts that have no embeddings.
        CacheError: the cache cannot be written to or is full, or texts are missing from it in the end.
    """
    start = time.perf_counter()
    resources.check()
    gpus = resources.in_use(visible_gpus())
    repaired = plan.cache.prepare()
    meter = Meter(gpus)
    missing, bad = plan.missing(), BadTexts(plan.cache, on_bad_value)
    tally = Tally(len(missing), row_bytes(plan.spec), on_progress)
    _embed_missing(plan, missing, resources, tally, bad, on_warning)
    done = tally.finish()
    quarantined = bad.settle(missing, tally.engine, on_warning)
    keys = [text_key(text) for text in plan.dataset.texts()]
    # Nothing is called done before every other text is there: another process may have taken a shard out.
    plan.cache.find_all([key for key in keys if key not in quarantined], plan.dataset.words)
    located = plan.cache.locate(keys)
    mfu, watt_hours = _gpu_use(plan, done, tally.engine, meter, on_warning)
    report = Extraction(
        rows=len(plan.dataset.table),
        embedded=done.done,
        reused=len(plan.dataset.table) - len(located.missing) - done.done,
        quarantined=len(quarantined),
        truncated=int(plan.cache.truncated(located.found).sum()),
        tokens=done.tokens,
        seconds=round(time.perf_counter() - start, 3),
        texts_per_second=round(done.done / done.seconds, 1) if done.done else 0.0,
        tokens_per_second=round(done.tokens / done.seconds, 1) if done.done else 0.0,
        mfu=mfu,
        watt_hours=watt_hours,
        engine=tally.engine,
        bytes=plan.cache.size,
        repaired=repaired,
        cache=plan.cache.url,
        dataset=plan.dataset.words,
        options=plan.options + (["--on-bad-value", on_bad_value] if on_bad_value != "error" else []),
        reading=plan.dataset.reading,
        backbone=plan.files.found_as,
    )
    plan.cache.record_extraction(asdict(report))
    return report


def _embed_missing(
    plan: Plan,
    missing: dict[bytes, str],
    resources: Resources,
    tally: Tally,
    bad: BadTexts,
    on_warning: Callable[[str], None],
) -> None:
    groups = resources.groups(visible_gpus())
    if not missing:
        return
    # Texts that failed before come last, in blocks of their own.
    fresh, known = ([key for key in missing if (key in bad.known) == again] for again in (False, True))
    parts = [keys[i : i + SHARD_ROWS] for keys in (fresh, known) for i in range(0, len(keys), SHARD_ROWS)]
    blocks = [{key: missing[key] for key in keys} for keys in parts]

    def on_bad(found: Mapping[bytes, BadText]) -> None:
        bad.add(found, missing, tally.embedded)

    if groups:
        plan.cache.claim()
        embed_on_gpus(
            plan.spec,
            plan.files,
            blocks,
            plan.cache,
            groups,
            on_ready=tally.ready,
            on_batch=tally.batch,
            on_shard=tally.shard,
            on_bad=on_bad,
            on_worker_lost=on_warning,
            **resources.loading,
        )
        plan.cache.refresh()
        return
    with closing(load_backbone(plan.spec, plan.files, **resources.loading)) as backbone:
        # A folder that cannot be written to shows here, not after the first shard.
        plan.cache.claim()
        tally.ready(backbone.engine)
        embed_blocks(backbone, blocks, plan.cache, tally.batch, tally.shard, on_bad)


def _gpu_use(
    plan: Plan, done: Progress, engine: dict[str, str], meter: Meter, on_warning: Callable[[str], None]
) -> tuple[float | None, float | None]:
    if engine.get("device", "cpu") == "cpu" or not done.seconds:
        return None, None
    operations = done.tokens * plan.files.operations_per_token(max(plan.spec.layers)) / done.seconds
    watt_hours, mfu = meter.watt_hours(), meter.utilisation(operations)
    lacking = [name for name, value in (("utilisation", mfu), ("energy", watt_hours)) if value is None]
    if lacking:
        on_warning(f"{engine['device']} could not be measured: the report has no {' and no '.join(lacking)}.")
    return mfu, watt_hours


def row_bytes(spec: BackboneSpec) -> int:
    """Return the bytes of one text's embeddings on disk."""
    return len(spec.layers) * spec.dim * np.dtype(spec.dtype).itemsize
