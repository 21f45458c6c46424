"""The command line: parse, call one function of a stage, print. Heavy modules are imported inside the commands.

Results go to stdout (`--json`: one object), everything else to stderr.
"""

import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import typer

from llmembed import __version__
from llmembed.choices import ClassWeightRule, Fusion, HeadName, OnBadValue, StorageDtype
from llmembed.cli.ending import run
from llmembed.cli.inputs import load, load_or_latest, read_input
from llmembed.cli.options import (
    DATASET_HELP,
    AsJson,
    Backbone,
    Backbones,
    CacheFolder,
    ChosenEngine,
    Device,
    Gpus,
    LabelColumn,
    Layers,
    Limit,
    MaxLength,
    OnEmpty,
    OutFolder,
    Pooling,
    Seed,
    Split,
    Template,
    TensorParallel,
    TextColumn,
    check_folder,
    parse_layers,
    parse_names,
    parse_number,
    parse_path,
    parse_widths,
    refuse_long,
)
from llmembed.errors import CacheError, UsageError
from llmembed.files import check_writable
from llmembed.printable import print_json, print_line, print_note

app = typer.Typer(
    help="Run a frozen language model once over a data set, then fit classifiers from disk in seconds.",
    epilog="Exit codes: 0 done, 1 a fault of llmembed, or engines that differ (check-parity), 2 usage, 3 data set, "
    "4 backbone, 5 cache, 6 classifier, 130 stopped (Ctrl-C, SIGTERM), 141 nobody reads stdout.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; an error that the user can act on becomes one line and an exit code."""
    sys.exit(run(_invoke))


def _invoke() -> None:
    # Not app(): it would end the process in its own ways on Ctrl-C, a closed pipe and a wrong option.
    command = typer.main.get_command(app)
    with command.make_context("llmembed", sys.argv[1:]) as context:
        command.invoke(context)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Run a frozen language model once over a data set, then fit classifiers from disk in seconds."""
    if show:
        print_line(__version__)
        raise typer.Exit


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
            report = stage.extract(
                plan,
                resources,
                on_bad_value=on_bad_value,
                on_progress=lambda done: progress.update(done.done, done.total, extraction_line(done)),
                on_warning=print_note,
            )
    except KeyboardInterrupt:
        print_note(
            f"stopped; {len(plan.cache.commits)} shards in {plan.cache.url} are kept. Run the same command to go on."
        )
        raise typer.Exit(130) from None
    print_json(asdict(report)) if as_json else show_extraction(report, loaded)


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

    chosen, widths = parse_layers(layers), parse_widths(hidden)
    _check_classifier(out)
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
        head_options=_head_options(hidden=widths, dropout=dropout, class_weight=class_weight, device=device),
        on_warning=print_note,
    )
    print_json(training.to_json()) if as_json else show_training(training)


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
    _check_classifier(out)
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
            on_warning=print_note,
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


@app.command()
def predict(
    classifier: Annotated[Path, typer.Argument(help="Folder of a trained classifier.", parser=parse_path)],
    source: Annotated[
        str | None, typer.Argument(help="A file of texts, - for stdin (a text per line), or a data set in the cache.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="One text.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a table: .csv, .jsonl or .parquet.", parser=parse_path)
    ] = None,
    escape_formulas: Annotated[
        bool,
        typer.Option(
            "--escape-formulas", help="Put an apostrophe before cells of a .csv that a spreadsheet would run."
        ),
    ] = False,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    split: Split = "test",
    cache: CacheFolder = Path("cache"),
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            callback=refuse_long,
            help="Where the model is now, if it was moved; once for each, in the order of the training. "
            "A hub id is downloaded.",
        ),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label texts with a trained classifier: a JSON object per text on stdout, or a table with --out."""
    import polars as pl

    from llmembed import prediction as stage
    from llmembed.classifier import Classifier
    from llmembed.datasets import is_file
    from llmembed.datasets.tables import check_format

    if (text is None) == (source is None):
        raise UsageError("Name either --text or a source (a file, - for stdin, or a data set), not both.")
    if escape_formulas and (out is None or out.suffix != ".csv"):
        raise UsageError("--escape-formulas without --out FILE.csv: it is about cells of a CSV file.")
    if out is not None:
        check_format(out)
        check_writable(out)
    loaded = Classifier.load(classifier)
    if source is not None and source != "-" and not is_file(source):
        if backbone or device:
            option = "--backbone" if backbone else "--device"
            raise UsageError(
                f"{option} and the data set {source}: its embeddings are read from the cache, without a model."
            )
        dataset = load(source, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
        dataset = stage.leave_out_quarantined(loaded, dataset, root=cache, on_warning=print_note)
        table = pl.DataFrame({"text": dataset.texts(split), "label": dataset.labels(split)})
        probabilities = stage.predict_dataset(loaded, dataset, root=cache, split=split)
    else:
        table, texts = read_input(source, text, text_column)
        if out is not None:
            stage.check_columns(table, loaded.record.labels, out)
        probabilities = stage.predict_texts(loaded, texts, backbones=backbone or [], device=device)
    if out is not None:
        decided, labels = loaded.decide(probabilities), loaded.record.labels
        formulas = stage.write_predictions(table, decided, probabilities, labels, out, escape_formulas=escape_formulas)
        print_note(f"{len(table):,} predictions written to {out}")
        if formulas:
            print_note(
                f"{formulas:,} cells of {out} begin as formulas of a spreadsheet do; --escape-formulas puts an "
                "apostrophe before them."
            )
        if as_json:
            print_json({"rows": len(table), "out": str(out)})
        return
    rows = list(stage.predictions(loaded, probabilities))
    if as_json and text is None:
        print_json({"predictions": rows})
        return
    for row in rows:
        print_json(row)


@app.command()
def evaluate(
    classifier: Annotated[Path, typer.Argument(help="Folder of a trained classifier.", parser=parse_path)],
    dataset: Annotated[str, typer.Argument(help=f"{DATASET_HELP} Its embeddings must be in the cache.")],
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    split: Split = "test",
    cache: CacheFolder = Path("cache"),
    as_json: AsJson = False,
) -> None:
    """Judge a trained classifier on a data set with the same labels, such as one of another domain."""
    from llmembed.classifier import Classifier
    from llmembed.prediction import evaluate_dataset
    from llmembed.reports.terminal import show_report

    loaded = Classifier.load(classifier)
    judged = load(dataset, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
    report = evaluate_dataset(loaded, judged, root=cache, split=split, on_warning=print_note)
    unknown = sorted(set(judged.labels(split)) - set(loaded.record.labels))
    if unknown:
        print_note(f"labels that the classifier does not know, counted as errors: {', '.join(unknown)}")
    print_json({"dataset": judged.name, "split": split, **asdict(report)}) if as_json else show_report(report, split)


def _check_classifier(out: Path | None) -> None:
    """Refuse a place for a classifier before a cache is opened; without `out` it is under models/."""
    from llmembed.classifier.files import check_destination

    check_folder("--out", out or Path("models"))
    if out is not None:
        check_destination(out)


def _head_options(**options: Any) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    return {name: None if name == "class_weight" and value == "none" else value for name, value in given.items()}
