"""The commands of experiments: compare, reproduce. Parse, call one function, print."""

from itertools import product
from pathlib import Path
from typing import Annotated, get_args

import typer

from llmembed.choices import Fusion, HeadName
from llmembed.cli.app import app
from llmembed.cli.inputs import load, load_or_latest
from llmembed.cli.options import (
    DATASET_HELP,
    AsJson,
    Backbones,
    CacheFolder,
    LabelColumn,
    Layers,
    Limit,
    OnEmpty,
    OutFolder,
    Seed,
    TextColumn,
    check_classifier,
    check_folder,
    parse_layers,
    parse_names,
    parse_number,
    parse_path,
    parse_widths,
)
from llmembed.cli.remedies import print_warning
from llmembed.errors import UsageError
from llmembed.files import check_writable
from llmembed.printable import print_json, print_note


@app.command()
def compare(
    dataset: Annotated[str | None, typer.Argument(help=f"{DATASET_HELP} Default: the one last extracted.")] = None,
    fusion: Annotated[
        str | None,
        typer.Option(help="Fusions with commas; default: all. Each layer alone is always compared.", metavar="F,G,…"),
    ] = None,
    head: Annotated[str | None, typer.Option(help="Heads with commas; default: all.", metavar="H,I,…")] = None,
    layers: Layers = None,
    hidden: Annotated[
        list[str] | None,
        typer.Option(help="Widths of the hidden layers of mlp; repeat to compare several.", metavar="I,J,…"),
    ] = None,
    dropout: Annotated[
        list[float] | None,
        typer.Option(min=0, max=0.95, callback=parse_number, help="Dropout of mlp; repeat to compare several."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Fit every configuration with so many seeds.")] = 1,
    folds: Annotated[int, typer.Option(min=2, help="Validation folds of the training split.")] = 3,
    cache: CacheFolder = Path("cache"),
    results: Annotated[
        Path,
        typer.Option(help="Folder of results, which a second call reuses.", metavar="FOLDER", parser=parse_path),
    ] = Path("comparisons"),
    backbone: Backbones = None,
    out: OutFolder = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the accuracy by layer: .png or .svg.", metavar="FILE", parser=parse_path)
    ] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Compare fusions, heads and layers on folds of the training split; test the best one once."""
    from llmembed.experiments import comparison as stage
    from llmembed.reports.terminal import ProgressLine, show_leaderboard

    if picture is not None and picture.suffix not in (".png", ".svg"):
        raise UsageError(f"--picture {picture}: pictures are drawn as .png or .svg.")
    fusions = parse_names("--fusion", fusion, get_args(Fusion)) or stage.FUSIONS
    heads = parse_names("--head", head, get_args(HeadName)) or get_args(HeadName)
    if (hidden or dropout) and "mlp" not in heads:
        raise UsageError(f"{'--hidden' if hidden else '--dropout'} without --head mlp: it is an option of mlp alone.")
    chosen, widths, dropouts = parse_layers(layers), [parse_widths(each) for each in hidden or []], dropout or []
    if picture is not None:
        check_writable(picture)
    check_folder("--results", results)
    check_classifier(out)
    loaded = load_or_latest(cache, backbone or [], dataset, text_column, label_column, on_empty, limit)
    variants = product(
        *([(name, value) for value in values] for name, values in (("hidden", widths), ("dropout", dropouts)) if values)
    )
    with ProgressLine("reading the cache") as progress:
        leaderboard = stage.compare(
            loaded,
            root=cache,
            results=results,
            out=out,
            backbones=backbone or [],
            layers=chosen,
            fusions=fusions,
            heads=heads,
            options={"mlp": [dict(variant) for variant in variants]},
            seeds=range(seeds),
            folds=folds,
            on_progress=lambda done, total: progress.update(done, total, f"{done:,} of {total:,} fits"),
            on_warning=print_warning,
        )
    print_json(leaderboard.to_json()) if as_json else show_leaderboard(leaderboard)
    if picture is not None:
        from llmembed.reports.plots import draw_depths

        draw_depths(leaderboard, picture)
        print_note(f"accuracy by layer drawn in {picture}")


@app.command()
def reproduce(
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Of sst2, mr, agnews, r8, r52: with commas or repeated; default: all five.", metavar="D,E,…"),
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            help="Fusions with commas; default: all that the head can learn. The last layer alone is always there.",
            metavar="F,G,…",
        ),
    ] = None,
    head: Annotated[str, typer.Option(help="What learns from the vector: one head, the same in every row.")] = "mlp",
    layers: Layers = None,
    cache: CacheFolder = Path("cache"),
    backbone: Backbones = None,
    seed: Seed = 0,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of reproduction.md, reproduction.json and the classifiers.",
            metavar="FOLDER",
            parser=parse_path,
        ),
    ] = Path("reproduction"),
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Print the paper's table: its data sets, fusion by fusion, with baselines and published figures beside them."""
    from llmembed.experiments import reproduction as stage
    from llmembed.experiments.paper import PAPER
    from llmembed.reports.terminal import ProgressLine, show_reproduction

    fusions = parse_names("--fusion", fusion, get_args(Fusion))
    if len(parse_names("--head", head, get_args(HeadName))) > 1:
        raise UsageError(f"--head {head}: a table has one head; name one of {', '.join(get_args(HeadName))}.")
    named = parse_names("--dataset", ",".join(dataset) if dataset else None, tuple(PAPER))
    check_folder("--out", out)
    datasets = [load(name, limit=limit) for name in PAPER if not named or name in named]
    with ProgressLine("reading the caches") as progress:
        reproduction = stage.reproduce(
            datasets,
            root=cache,
            out=out,
            backbones=backbone or [],
            layers=parse_layers(layers),
            fusions=fusions,
            head=head,
            seed=seed,
            on_progress=lambda done, total: progress.update(done, total, f"{done:,} of {total:,} fits"),
        )
    print_json(reproduction.to_json()) if as_json else show_reproduction(reproduction, out)
