"""The commands of stage 1: extract, check-parity. Parse, call one function of a stage, print."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from llmembed.choices import OnBadValue, StorageDtype
from llmembed.cli.app import app
from llmembed.cli.inputs import load
from llmembed.cli.options import (
    DATASET_HELP,
    AsJson,
    Backbone,
    CacheFolder,
    ChosenEngine,
    Device,
    Gpus,
    LabelColumn,
    Layers,
    Limit,
    MaxLength,
    OnEmpty,
    Pooling,
    Template,
    TensorParallel,
    TextColumn,
    check_folder,
    parse_layers,
    parse_number,
)
from llmembed.cli.remedies import print_warning
from llmembed.errors import CacheError
from llmembed.printable import print_json, print_note


@app.command()
def extract(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
    cache: CacheFolder = Path("cache"),
    backbone: Backbone = None,
    layers: Layers = None,
    pooling: Pooling = None,
    max_length: MaxLength = None,
    template: Template = None,
    dtype: Annotated[StorageDtype | None, typer.Option(help="Number format on disk; default float16.")] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    on_bad_value: Annotated[
        OnBadValue,
        typer.Option(help="What to do in the end with texts whose vectors cannot be stored; all others are kept."),
    ] = "error",
    limit: Limit = None,
    engine: ChosenEngine = None,
    device: Device = None,
    gpus: Gpus = None,
    tensor_parallel: TensorParallel = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stage 1: embed the texts that the cache does not have yet."""
    from llmembed import extraction as stage
    from llmembed.extraction.estimation import estimate
    from llmembed.extraction.resources import Resources
    from llmembed.reports.terminal import ProgressLine, extraction_line, show_estimate, show_extraction

    if not dry_run:
        check_folder("--cache", cache, CacheError)
    loaded = load(dataset, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
    plan = stage.plan_extraction(
        loaded,
        root=cache,
        backbone=backbone,
        layers=parse_layers(layers),
        pooling=pooling,
        max_length=max_length,
        template=template,
        dtype=dtype,
    )
    resources = Resources(engine=engine, device=device, gpus=gpus, tensor_parallel=tensor_parallel)
    if dry_run:
        costs = estimate(plan, resources)
        print_json(asdict(costs)) if as_json else show_estimate(costs)
        return
    try:
        with ProgressLine("loading the model") as progress:
            record = stage.run_extraction(
                plan,
                resources,
                on_bad_value=on_bad_value,
                on_progress=lambda done: progress.update(done.done, done.total, extraction_line(done)),
                on_warning=print_warning,
            )
    except KeyboardInterrupt:
        print_note(
            f"stopped; {len(plan.cache.commits)} shards in {plan.cache.url} are kept. Run the same command to go on."
        )
        raise typer.Exit(130) from None
    print_json(record.model_dump(mode="json")) if as_json else show_extraction(record, loaded)


@app.command("check-parity")
def check_parity(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
    backbone: Backbone = None,
    layers: Layers = None,
    pooling: Pooling = None,
    max_length: MaxLength = None,
    template: Template = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    rows: Annotated[int, typer.Option(min=1, help="Texts to compare, from the shortest to the longest.")] = 64,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=parse_number,
            help="Largest relative error that passes; default: 1e-4 in float32, 0.05 in bfloat16.",
        ),
    ] = None,
    tensor_parallel: TensorParallel = 1,
    as_json: AsJson = False,
) -> None:
    """Compare the engines vllm and transformers on a sample; exit with 1 if they differ by more than rounding."""
    from llmembed.backbones.parity import check_parity
    from llmembed.extraction import plan_extraction
    from llmembed.reports.terminal import show_parity

    loaded = load(dataset, text_column=text_column, label_column=label_column)
    # An empty folder in the place of the cache: a damaged one must not stand in the way of a comparison of engines.
    with TemporaryDirectory() as root:
        plan = plan_extraction(
            loaded,
            root=Path(root),
            backbone=backbone,
            layers=parse_layers(layers),
            pooling=pooling,
            max_length=max_length,
            template=template,
        )
    texts = loaded.texts()
    parity = check_parity(
        plan.spec,
        plan.files,
        texts,
        rows=min(rows, len(texts)),
        tolerance=tolerance,
        tensor_parallel=tensor_parallel,
    )
    print_json(asdict(parity)) if as_json else show_parity(parity)
    if not parity.passed:
        raise typer.Exit(1)
