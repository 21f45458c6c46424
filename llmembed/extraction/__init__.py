"""Stage 1: which texts of a data set are missing from the cache? Embed those and commit them shard by shard.

In: a data set and what fixes the numbers. Out: a cache that covers the data set, and a record that says what was
done, how fast, and with how much energy. Knows no labels, no fusion, no head.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np

from llmembed.backbones import (
    BackboneSpec,
    BadText,
    EngineInfo,
    describe_backbone,
    load_backbone,
)
from llmembed.backbones.weights import ModelFiles
from llmembed.cache import Cache
from llmembed.cache.records import ExtractionRecord
from llmembed.choices import OnBadValue, Pooling, StorageDtype
from llmembed.datasets import Dataset
from llmembed.devices import Meter, visible_gpus
from llmembed.extraction.bad_texts import BadTexts
from llmembed.extraction.dealing import embed_on_gpus
from llmembed.extraction.embedding import embed_blocks
from llmembed.extraction.progress import Progress, Tally
from llmembed.extraction.resources import CHOOSE, Resources
from llmembed.identity import text_key
from llmembed.requests import ExtractionRequest
from llmembed.storage import Location

# One shard: what a kill can cost (16 s with MiniLM on a laptop) against the number of files (250 for a million texts).
SHARD_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """What is to be extracted: a data set, the spec that fixes the numbers, the model's files, the cache to fill."""

    dataset: Dataset
    spec: BackboneSpec
    files: ModelFiles
    cache: Cache
    request: ExtractionRequest

    def missing(self) -> dict[bytes, str]:
        """Return the distinct texts that are not in the cache, by key, in the order of the data set."""
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
    request = ExtractionRequest(
        reading=dataset.reading,
        root=str(root),
        backbone=backbone,
        layers=None if layers is None else tuple(layers),
        pooling=pooling,
        max_length=max_length,
        template=template,
        dtype=dtype,
    )
    return Plan(dataset, spec, files, Cache.at(root, dataset.name, files.name, spec, dataset.reading), request)


def extract(
    dataset: Dataset,
    *,
    root: Location = "cache",
    backbone: str | None = None,
    layers: Sequence[int] | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    template: str | None = None,
    dtype: StorageDtype | None = None,
    resources: Resources = CHOOSE,
    on_bad_value: OnBadValue = "error",
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> ExtractionRecord:
    """Embed the texts of a data set that the caches under `root` do not have yet.

    What is None comes from the data set's job. Killed, it loses the shards in work; the next call goes on.

    Raises:
        BackboneError, CacheError, UsageError: as `plan_extraction` and `run_extraction`.
    """
    plan = plan_extraction(
        dataset,
        root=root,
        backbone=backbone,
        layers=layers,
        pooling=pooling,
        max_length=max_length,
        template=template,
        dtype=dtype,
    )
    return run_extraction(plan, resources, on_bad_value=on_bad_value, on_progress=on_progress, on_warning=on_warning)


def run_extraction(
    plan: Plan,
    resources: Resources = CHOOSE,
    *,
    on_bad_value: OnBadValue = "error",
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> ExtractionRecord:
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
    plan.cache.find_all([key for key in keys if key not in quarantined])
    located = plan.cache.locate(keys)
    mfu, watt_hours = _gpu_use(plan, done, tally.engine, meter, on_warning)
    record = ExtractionRecord(
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
        engine={} if tally.engine is None else asdict(tally.engine),
        bytes=plan.cache.size,
        repaired=repaired,
        cache=plan.cache.url,
        backbone=plan.files.found_as,
        request=plan.request.model_copy(update={"on_bad_value": on_bad_value}),
    )
    plan.cache.record_extraction(record)
    return record


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
    plan: Plan, done: Progress, engine: EngineInfo | None, meter: Meter, on_warning: Callable[[str], None]
) -> tuple[float | None, float | None]:
    if engine is None or engine.device == "cpu" or not done.seconds:
        return None, None
    operations = done.tokens * plan.files.operations_per_token(max(plan.spec.layers)) / done.seconds
    watt_hours, mfu = meter.watt_hours(), meter.utilisation(operations)
    lacking = [name for name, value in (("utilisation", mfu), ("energy", watt_hours)) if value is None]
    if lacking:
        on_warning(f"{engine.device} could not be measured: the report has no {' and no '.join(lacking)}.")
    return mfu, watt_hours


def row_bytes(spec: BackboneSpec) -> int:
    """Return the bytes of one text's embeddings on disk."""
    return len(spec.layers) * spec.dim * np.dtype(spec.dtype).itemsize
