"""The commands that use a classifier: predict, evaluate. Parse, call one function of a stage, print."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmembed.cli.app import app
from llmembed.cli.inputs import load, read_input
from llmembed.cli.options import (
    DATASET_HELP,
    AsJson,
    CacheFolder,
    Device,
    LabelColumn,
    Limit,
    OnEmpty,
    Split,
    TextColumn,
    parse_path,
    refuse_long,
)
from llmembed.cli.remedies import print_warning
from llmembed.errors import UsageError
from llmembed.files import check_writable
from llmembed.printable import print_json, print_note

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from llmembed.classifier import Classifier


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
    from llmembed.classifier import load_classifier
    from llmembed.datasets import is_file
    from llmembed.datasets.tables import check_format

    if (text is None) == (source is None):
        raise UsageError("Name either --text or a source (a file, - for stdin, or a data set), not both.")
    if escape_formulas and (out is None or out.suffix != ".csv"):
        raise UsageError("--escape-formulas without --out FILE.csv: it is about cells of a CSV file.")
    if out is not None:
        check_format(out)
        check_writable(out)
    loaded = load_classifier(classifier)
    if source is not None and source != "-" and not is_file(source):
        if backbone or device:
            option = "--backbone" if backbone else "--device"
            raise UsageError(
                f"{option} and the data set {source}: its embeddings are read from the cache, without a model."
            )
        dataset = load(source, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
        dataset = stage.leave_out_quarantined(loaded, dataset, root=cache, on_warning=print_warning)
        table = pl.DataFrame({"text": dataset.texts(split), "label": dataset.labels(split)})
        probabilities = stage.predict_dataset(loaded, dataset, root=cache, split=split)
    else:
        table, texts = read_input(source, text, text_column)
        if out is not None:
            stage.check_columns(table, loaded.record.labels, out)
        probabilities = stage.predict_texts(loaded, texts, backbones=backbone or [], device=device)
    if out is not None:
        _write(loaded, table, probabilities, out, escape_formulas=escape_formulas)
        if as_json:
            print_json({"rows": len(table), "out": str(out)})
        return
    rows = [asdict(prediction) for prediction in stage.predictions(loaded, probabilities)]
    if as_json and text is None:
        print_json({"predictions": rows})
        return
    for row in rows:
        print_json(row)


def _write(
    classifier: "Classifier", table: "pl.DataFrame", probabilities: "np.ndarray", out: Path, *, escape_formulas: bool
) -> None:
    from llmembed.prediction import write_predictions

    decided, labels = classifier.decide(probabilities), classifier.record.labels
    formulas = write_predictions(table, decided, probabilities, labels, out, escape_formulas=escape_formulas)
    print_note(f"{len(table):,} predictions written to {out}")
    if formulas:
        print_note(
            f"{formulas:,} cells of {out} begin as formulas of a spreadsheet do; --escape-formulas puts an apostrophe "
            "before them."
        )


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
    from llmembed.classifier import load_classifier
    from llmembed.prediction import evaluate_dataset
    from llmembed.reports.terminal import show_report

    loaded = load_classifier(classifier)
    judged = load(dataset, text_column=text_column, label_column=label_column, on_empty=on_empty, limit=limit)
    report = evaluate_dataset(loaded, judged, root=cache, split=split, on_warning=print_warning)
    unknown = sorted(set(judged.labels(split)) - set(loaded.record.labels))
    if unknown:
        print_note(f"labels that the classifier does not know, counted as errors: {', '.join(unknown)}")
    print_json({"dataset": judged.name, "split": split, **asdict(report)}) if as_json else show_report(report, split)
