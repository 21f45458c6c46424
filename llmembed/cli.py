"""The command line: parse, call one function of a stage, print. Heavy modules are imported inside the commands.

Results go to stdout (`--json`: one object), everything else to stderr.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from llmembed import __version__
from llmembed.errors import LLMEmbedError, UsageError

if TYPE_CHECKING:
    from llmembed.dataset import Dataset

app = typer.Typer(
    help="Run a frozen language model once over a data set, then fit classifiers from disk in seconds.",
    epilog="Exit codes: 0 done, 1 a fault of llmembed, or engines that differ (check-parity), 2 usage, 3 data set, "
    "4 backbone, 5 cache, 6 classifier, 130 stopped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DATASET_HELP = "A name (jobs/NAME.toml), a Parquet, CSV, TSV or JSONL file, or a folder with train and test files."
CacheFolder = Annotated[Path, typer.Option("--cache", help="Folder of the embeddings.", metavar="FOLDER")]
Backbone = Annotated[
    str | None, typer.Option(help="minilm, bert-large, roberta-large, llama2-7b, a hub id or a folder.")
]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        help="Whose embeddings: a name, a hub id, a folder, or a cache's BACKBONE-FINGERPRINT; repeat to fuse several.",
    ),
]
Layers = Annotated[
    str | None, typer.Option(help="Layers, such as -5,-4,-3; 0 is the embedding layer, -1 the last.", metavar="I,J,…")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
TextColumn = Annotated[str, typer.Option(help="Column of the texts.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.")]
OnEmpty = Annotated[Literal["error", "skip"], typer.Option(help="What to do with empty texts.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many distinct texts of each split, always the same ones.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU if there is one.")]
Split = Annotated[Literal["train", "validation", "test"], typer.Option(help="Which rows of a data set.")]
ChosenEngine = Annotated[
    Literal["vllm", "transformers"] | None,
    typer.Option("--engine", help="What runs the model; default: vllm where it is installed beside a GPU."),
]
Gpus = Annotated[
    str | None, typer.Option(help="all, or numbers: one process for each GPU; default: one GPU.", metavar="all|0,1,…")
]
TensorParallel = Annotated[int, typer.Option(min=1, help="GPUs that share a model too large for one (vllm).")]
Pooling = Annotated[Literal["mean", "max", "first", "last"] | None, typer.Option(help="From tokens to a vector.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens a text may have; longer ones are cut.")]
Template = Annotated[str | None, typer.Option(help="What the model reads; {text} stands for the text.")]


def main() -> None:
    """Run the command line; an error that the user can act on becomes one line and an exit code."""
    try:
        app()
    except LLMEmbedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Run a frozen language model once over a data set, then fit classifiers from disk in seconds."""
    if show:
        print(__version__)
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
    dtype: Annotated[
        Literal["float16", "float32"] | None, typer.Option(help="Number format on disk; default float16.")
    ] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    on_bad_value: Annotated[
        Literal["error", "skip"],
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
    from llmembed import extract as stage
    from llmembed.dataset import load_dataset
    from llmembed.estimate import estimate
    from llmembed.resources import Resources
    from llmembed.show import ProgressLine, extraction_line, show_estimate, show_extraction

    loaded = load_dataset(dataset, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
    _warn(*loaded.warnings)
    plan = stage.plan_extraction(
        loaded,
        root=cache,
        backbone=backbone,
        layers=_layers(layers),
        pooling=pooling,
        max_length=max_length,
        template=template,
        dtype=dtype,
    )
    resources = Resources(engine=engine, device=device, gpus=gpus, tensor_parallel=tensor_parallel)
    if dry_run:
        costs = estimate(plan, resources)
        _print_json(asdict(costs)) if as_json else show_estimate(costs)
        return
    try:
        with ProgressLine("loading the model") as progress:
            report = stage.extract(
                plan,
                resources,
                on_bad_value=on_bad_value,
                on_progress=lambda done: progress.update(done.done, done.total, extraction_line(done)),
                on_warning=_warn,
            )
    except KeyboardInterrupt:
        _warn(
            f"stopped; {len(plan.cache.commits)} shards in {plan.cache.folder} are kept. Run the same command to go on."
        )
        raise typer.Exit(130) from None
    _print_json(asdict(report)) if as_json else show_extraction(report, loaded)


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
        typer.Option(help="Largest relative error that passes; default: 1e-4 in float32, 0.05 in bfloat16."),
    ] = None,
    tensor_parallel: TensorParallel = 1,
    as_json: AsJson = False,
) -> None:
    """Compare the engines vllm and transformers on a sample; exit with 1 if they differ by more than rounding."""
    from llmembed.dataset import load_dataset
    from llmembed.extract import plan_extraction
    from llmembed.parity import check_parity
    from llmembed.show import show_parity

    loaded = load_dataset(dataset, text_column=text_column, label_column=label_column)
    plan = plan_extraction(
        loaded,
        root=Path("cache"),
        backbone=backbone,
        layers=_layers(layers),
        pooling=pooling,
        max_length=max_length,
        template=template,
    )
    parity = check_parity(
        plan.spec, plan.files, loaded.texts(), rows=rows, tolerance=tolerance, tensor_parallel=tensor_parallel
    )
    _print_json(asdict(parity)) if as_json else show_parity(parity)
    if not parity.passed:
        raise typer.Exit(1)


@app.command()
def train(
    dataset: Annotated[str | None, typer.Argument(help=f"{DATASET_HELP} Default: the one last extracted.")] = None,
    fusion: Annotated[
        Literal["last", "mean", "max", "concat", "gram", "weighted", "cooccurrence"],
        typer.Option(help="How layers become one vector; the last two are learned, by mlp alone."),
    ] = "concat",
    head: Annotated[
        Literal["mlp", "gbdt", "logistic", "lda"], typer.Option(help="What learns from the vector.")
    ] = "mlp",
    layers: Layers = None,
    cache: CacheFolder = Path("cache"),
    backbone: Backbones = None,
    hidden: Annotated[
        str | None, typer.Option(help="Widths of the hidden layers of --head mlp; default 256.", metavar="I,J,…")
    ] = None,
    dropout: Annotated[float | None, typer.Option(min=0, max=0.95, help="Dropout of --head mlp; default 0.5.")] = None,
    class_weight: Annotated[
        Literal["none", "sqrt", "balanced"] | None,
        typer.Option(help="How much more rows of rare classes count; default: sqrt for mlp, none for the others."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where --head mlp is trained: cpu or cuda; default: a GPU if there is one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes every random choice.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the classifier; default: under models/.")] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Stage 2: fit a classifier from the cache, without the model, and judge it on the test split."""
    from llmembed import train as stage
    from llmembed.show import show_training

    loaded = _load_or_latest(cache, backbone or [], dataset, text_column, label_column, on_empty, limit)
    training = stage.train(
        loaded,
        root=cache,
        out=out,
        backbones=backbone or [],
        fusion=fusion,
        head=head,
        layers=_layers(layers),
        seed=seed,
        head_options=_head_options(hidden=_widths(hidden), dropout=dropout, class_weight=class_weight, device=device),
        on_warning=_warn,
    )
    _print_json(training.to_json()) if as_json else show_training(training)


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
        list[float] | None, typer.Option(min=0, max=0.95, help="Dropout of mlp; repeat to compare several.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fit every configuration with so many seeds.")] = 1,
    folds: Annotated[int, typer.Option(min=2, help="Validation folds of the training split.")] = 3,
    cache: CacheFolder = Path("cache"),
    results: Annotated[
        Path, typer.Option(help="Folder of the results, which a second call reuses.", metavar="FOLDER")
    ] = Path("comparisons"),
    backbone: Backbones = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the best classifier; default: under models/.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the accuracy by layer: .png or .svg.", metavar="FILE")
    ] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Compare fusions, heads and layers on folds of the training split; test the best one once."""
    from llmembed import compare as stage
    from llmembed.fusion import Fusion
    from llmembed.heads import HEADS
    from llmembed.show import ProgressLine, show_leaderboard

    if picture is not None and picture.suffix not in (".png", ".svg"):
        raise UsageError(f"--picture {picture}: pictures are drawn as .png or .svg.")
    fusions = _names("--fusion", fusion, get_args(Fusion)) or stage.FUSIONS
    heads = _names("--head", head, tuple(HEADS)) or tuple(HEADS)
    if (hidden or dropout) and "mlp" not in heads:
        raise UsageError(f"{'--hidden' if hidden else '--dropout'} without --head mlp: it is an option of mlp alone.")
    loaded = _load_or_latest(cache, backbone or [], dataset, text_column, label_column, on_empty, limit)
    widths, dropouts = [_widths(each) for each in hidden or []], dropout or []
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
            layers=_layers(layers),
            fusions=fusions,
            heads=heads,
            options={"mlp": [dict(variant) for variant in variants]},
            seeds=range(seeds),
            folds=folds,
            on_progress=lambda done, total: progress.update(done, total, f"{done:,} of {total:,} fits"),
            on_warning=_warn,
        )
    _print_json(leaderboard.to_json()) if as_json else show_leaderboard(leaderboard)
    if picture is not None:
        from llmembed.picture import draw_depths

        draw_depths(leaderboard, picture)
        _warn(f"accuracy by layer drawn in {picture}")


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
    seed: Annotated[int, typer.Option(help="Fixes every random choice.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder of reproduction.md, reproduction.json and the classifiers.", metavar="FOLDER")
    ] = Path("reproduction"),
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Print the paper's table: its data sets, fusion by fusion, with baselines and published figures beside them."""
    from llmembed import reproduce as stage
    from llmembed.dataset import load_dataset
    from llmembed.fusion import Fusion
    from llmembed.heads import HEADS
    from llmembed.show import ProgressLine, show_reproduction

    fusions = _names("--fusion", fusion, get_args(Fusion))
    if len(_names("--head", head, tuple(HEADS))) > 1:
        raise UsageError(f"--head {head}: a table has one head; name one of {', '.join(HEADS)}.")
    named = _names("--dataset", ",".join(dataset) if dataset else None, tuple(stage.PAPER))
    datasets = [load_dataset(name, limit=limit) for name in stage.PAPER if not named or name in named]
    with ProgressLine("reading the caches") as progress:
        reproduction = stage.reproduce(
            datasets,
            root=cache,
            out=out,
            backbones=backbone or [],
            layers=_layers(layers),
            fusions=fusions,
            head=head,
            seed=seed,
            on_progress=lambda done, total: progress.update(done, total, f"{done:,} of {total:,} fits"),
        )
    _print_json(reproduction.to_json()) if as_json else show_reproduction(reproduction, out)


@app.command()
def predict(
    classifier: Annotated[Path, typer.Argument(help="Folder of a trained classifier.")],
    source: Annotated[
        str | None, typer.Argument(help="A file of texts, - for stdin (a text per line), or a data set in the cache.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="One text.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a table: .csv, .jsonl or .parquet.")] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    on_empty: OnEmpty = "error",
    limit: Limit = None,
    split: Split = "test",
    cache: CacheFolder = Path("cache"),
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Where the model is now, if it was moved; once for each, in the order of the training."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label texts with a trained classifier: a JSON object per text on stdout, or a table with --out."""
    import polars as pl

    from llmembed import predict as stage
    from llmembed.classifier import Classifier
    from llmembed.dataset import load_dataset
    from llmembed.tables import check_format

    if (text is None) == (source is None):
        raise UsageError("Name either --text or a source (a file, - for stdin, or a data set), not both.")
    if out is not None:
        check_format(out)
    loaded = Classifier.load(classifier)
    if source is not None and source != "-" and not Path(source).is_file():
        if backbone or device:
            option = "--backbone" if backbone else "--device"
            raise UsageError(
                f"{option} and the data set {source}: its embeddings are read from the cache, without a model."
            )
        dataset = load_dataset(
            source, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit
        )
        table = pl.DataFrame({"text": dataset.texts(split), "label": dataset.labels(split)})
        probabilities = stage.predict_dataset(loaded, dataset, root=cache, split=split)
    else:
        table, texts = _texts(source, text, text_column)
        if out is not None:
            stage.check_columns(table, loaded.record.labels, out)
        probabilities = stage.predict_texts(loaded, texts, backbones=backbone or [], device=device)
    if out is not None:
        stage.write_predictions(table, loaded.decide(probabilities), probabilities, loaded.record.labels, out)
        print(f"{len(table):,} predictions written to {out}", file=sys.stderr)
        if as_json:
            _print_json({"rows": len(table), "out": str(out)})
        return
    rows = list(stage.predictions(loaded, probabilities))
    if as_json and text is None:
        _print_json({"predictions": rows})
        return
    for row in rows:
        _print_json(row)


@app.command()
def evaluate(
    classifier: Annotated[Path, typer.Argument(help="Folder of a trained classifier.")],
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
    from llmembed.dataset import load_dataset
    from llmembed.predict import evaluate_dataset
    from llmembed.show import show_report

    loaded = Classifier.load(classifier)
    judged = load_dataset(dataset, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
    _warn(*judged.warnings)
    report = evaluate_dataset(loaded, judged, root=cache, split=split)
    unknown = sorted(set(judged.labels(split)) - set(loaded.record.labels))
    if unknown:
        _warn(f"labels that the classifier does not know, counted as errors: {', '.join(unknown)}")
    _print_json({"dataset": judged.name, "split": split, **asdict(report)}) if as_json else show_report(report, split)


def _load_or_latest(
    cache: Path,
    backbones: Sequence[str],
    dataset: str | None,
    text_column: str,
    label_column: str,
    on_empty: Literal["error", "skip"],
    limit: int | None,
) -> "Dataset":
    """Load the data set that is named, or else the one last extracted, and say which."""
    from llmembed.cache import Cache
    from llmembed.dataset import load_dataset

    reading: dict[str, Any] = {
        "argument": dataset,
        "text_column": text_column,
        "label_column": label_column,
        "on_empty": on_empty,
        "limit": limit,
    }
    if dataset is None:
        given = {"--text-column": text_column != "text", "--label-column": label_column != "label"}
        given |= {"--on-empty": on_empty != "error", "--limit": limit is not None}
        if any(given.values()):
            options = ", ".join(option for option, is_given in given.items() if is_given)
            raise UsageError(f"{options} without a data set: name the data set that it is for.")
        latest = Cache.latest(cache, backbone=backbones[0] if backbones else None)
        reading = latest.last_extraction().get("reading", {"argument": latest.dataset})
        _warn(f"no data set named: taking the one last extracted, {reading['argument']} ({latest.folder})")
    loaded = load_dataset(**reading)
    _warn(*loaded.warnings)
    return loaded


def _texts(source: str | None, text: str | None, text_column: str) -> tuple[Any, list[str]]:
    import polars as pl

    from llmembed.predict import read_lines, read_texts

    if source is not None and source != "-":
        return read_texts(Path(source), text_column)
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        # Bytes of an argument that are not UTF-8 reach Python as lone surrogates.
        raise UsageError("--text is not UTF-8.") from error
    texts = [text] if text is not None else read_lines(sys.stdin.buffer.read())
    return pl.DataFrame({"text": texts}, schema={"text": pl.String}), texts


def _layers(option: str | None) -> tuple[int, ...] | None:
    try:
        return None if option is None else tuple(int(layer) for layer in option.split(","))
    except ValueError as error:
        raise UsageError(f"--layers {option}: expected whole numbers with commas, such as -5,-4,-3.") from error


def _names(option: str, value: str | None, known: Sequence[str]) -> list[Any]:
    names = [] if value is None else value.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(f"{option} {value}: there is no {unknown[0]!r}; there are {', '.join(known)}.")
    return names


def _head_options(**options: Any) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    return {name: None if name == "class_weight" and value == "none" else value for name, value in given.items()}


def _widths(option: str | None) -> tuple[int, ...] | None:
    widths = None if option is None else option.split(",")
    if widths is not None and not all(width.isdecimal() and int(width) for width in widths):
        raise UsageError(f"--hidden {option}: expected widths with commas, such as 512,256.")
    return None if widths is None else tuple(map(int, widths))


def _warn(*sentences: str) -> None:
    for sentence in sentences:
        print(sentence, file=sys.stderr)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False))
