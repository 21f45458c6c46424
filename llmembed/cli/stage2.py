"""The command of stage 2: train. Parse, call one function of a stage, print."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmembed.choices import ClassWeightRule, Fusion, HeadName
from llmembed.cli.app import app
from llmembed.cli.inputs import load_or_latest
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
    parse_layers,
    parse_number,
    parse_parameters,
    parse_widths,
)
from llmembed.cli.remedies import predict_command, print_warning
from llmembed.errors import UsageError
from llmembed.printable import print_json, print_line


@app.command()
def train(
    dataset: Annotated[str | None, typer.Argument(help=f"{DATASET_HELP} Default: the one last extracted.")] = None,
    fusion: Annotated[
        Fusion,
        typer.Option(help="How layers become one vector; the last two are learned, by mlp alone."),
    ] = "concat",
    head: Annotated[HeadName, typer.Option(help="What learns from the vector.")] = "mlp",
    layers: Layers = None,
    cache: CacheFolder = Path("cache"),
    backbone: Backbones = None,
    hidden: Annotated[
        str | None, typer.Option(help="Widths of the hidden layers of --head mlp; default 256.", metavar="I,J,…")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.95, callback=parse_number, help="Dropout of --head mlp; default 0.5.")
    ] = None,
    class_weight: Annotated[
        ClassWeightRule | None,
        typer.Option(help="How much more rows of rare classes count; default: sqrt for mlp, none for the others."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-P", help="Any parameter of the head; repeat for several.", metavar="NAME=VALUE"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where --head mlp is trained: cpu or cuda; default: a GPU if there is one.")
    ] = None,
    seed: Seed = 0,
    out: OutFolder = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Stage 2: fit a classifier from the cache, without the model, and judge it on the test split."""
    from llmembed import training as stage
    from llmembed.reports.terminal import show_training

    common = {"hidden": parse_widths(hidden), "dropout": dropout, "class_weight": class_weight, "device": device}
    options, chosen = _head_options(common, parse_parameters(parameter or [])), parse_layers(layers)
    check_classifier(out)
    loaded = load_or_latest(cache, backbone or [], dataset, text_column, label_column, on_empty, limit)
    training = stage.train(
        loaded,
        root=cache,
        out=out,
        backbones=backbone or [],
        fusion=fusion,
        head=head,
        layers=chosen,
        seed=seed,
        head_options=options,
        on_warning=print_warning,
    )
    if as_json:
        print_json(training.to_json())
        return
    show_training(training)
    print_line(f"try it:     {predict_command(training.out)}")


def _head_options(common: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in common.items() if value is not None}
    for name in given.keys() & others.keys():
        raise UsageError(f"-P {name} and --{name.replace('_', '-')}: give it once.")
    if given.get("class_weight") == "none":
        given["class_weight"] = None
    return given | others
