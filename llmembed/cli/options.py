"""Options that several commands have, and values: words of a command line -> what the stages take, or a refusal.

Knows no command and loads nothing.
"""

import json
import os
from collections.abc import Sequence
from errno import ENAMETOOLONG
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from llmembed import choices
from llmembed.errors import LLMEmbedError, UsageError
from llmembed.files import why_unwritable

# NumPy's generators take no larger seed.
MAX_SEED = 2**32 - 1
# Wider is a slip of the hand: a layer of a million units on 1,920 features holds 8 GB.
MAX_WIDTH = 2**20


def parse_path(value: str | Path) -> Path:
    """Parse a path that can be one: not empty, which would be the working directory, and not too long."""
    if value == "":
        raise typer.BadParameter("it is empty; name a place.")
    refuse_long([str(value)])
    return Path(value)


def refuse_long(value: Any) -> Any:
    """Parse names, one or several or none, that may be those of files."""
    for name in value if isinstance(value, list | tuple) else [value]:
        try:
            os.lstat(name or ".")
        except OSError as error:
            if error.errno == ENAMETOOLONG:
                raise typer.BadParameter(f"{error.strerror}: {len(name):,} characters.") from error
    return value


def parse_number(value: Any) -> Any:
    """Parse finite numbers, one or several or none: NaN is neither under a least nor above a greatest value."""
    for number in value if isinstance(value, list | tuple) else [value]:
        if number is not None and not isfinite(number):
            raise typer.BadParameter(f"{number} is not a finite number.")
    return value


def parse_layers(option: str | None) -> tuple[int, ...] | None:
    """Parse whole numbers with commas."""
    try:
        return None if option is None else tuple(int(layer) for layer in option.split(","))
    except ValueError as error:
        raise UsageError(f"--layers {option}: expected whole numbers with commas, such as -5,-4,-3.") from error


def parse_names(option: str, value: str | None, known: Sequence[str]) -> list[Any]:
    """Parse names with commas, all of them known."""
    names = [] if value is None else value.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(f"{option} {value}: there is no {unknown[0]!r}; there are {', '.join(known)}.")
    return list(dict.fromkeys(names))


def parse_widths(option: str | None) -> tuple[int, ...] | None:
    """Parse widths of hidden layers with commas."""
    if option is None:
        return None
    widths = option.split(",")
    if not all(width.isdecimal() and len(width) <= len(str(MAX_WIDTH)) for width in widths):
        raise UsageError(f"--hidden {option}: expected widths with commas, such as 512,256, up to {MAX_WIDTH:,}.")
    if not all(1 <= int(width) <= MAX_WIDTH for width in widths):
        raise UsageError(f"--hidden {option}: widths go from 1 to {MAX_WIDTH:,}.")
    return tuple(map(int, widths))


def parse_parameters(given: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE pairs; a value is JSON, several with commas a tuple of them, and anything else a string."""
    parameters: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-P {pair}: expected NAME=VALUE, such as epochs=20.")
        if name in parameters:
            raise UsageError(f"-P {pair}: {name} is given twice.")
        parameters[name] = _parse_value(value)
    return parameters


def _parse_value(value: str) -> Any:
    for text in (value, f"[{value}]"):
        try:
            read = json.loads(text)
        except (ValueError, RecursionError):
            continue
        return tuple(read) if isinstance(read, list) else read
    return value


def check_folder(option: str, folder: Path, kind: type[LLMEmbedError] = UsageError) -> None:
    """Refuse a folder in which nothing can be written, before anything is computed for it.

    Raises:
        LLMEmbedError: an error of the kind, with the reason.
    """
    if reason := why_unwritable(folder / "file"):
        raise kind(f"{option} {folder} cannot be written: {reason}. Name another place.")


def check_classifier(out: Path | None) -> None:
    """Refuse a place for a classifier before a cache is opened; without `out` it is under models/."""
    from llmembed.classifier.files import check_destination

    check_folder("--out", out or Path("models"))
    if out is not None:
        check_destination(out)


DATASET_HELP = "A name (jobs/NAME.toml), a Parquet, CSV, TSV or JSONL file, or a folder with train and test files."
CacheFolder = Annotated[
    Path, typer.Option("--cache", help="Folder of the embeddings.", metavar="FOLDER", parser=parse_path)
]
Backbone = Annotated[
    str | None,
    typer.Option(callback=refuse_long, help="minilm, bert-large, roberta-large, llama2-7b, a hub id or a folder."),
]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        callback=refuse_long,
        help="Whose embeddings: a name, a hub id, a folder, or a cache's BACKBONE-FINGERPRINT; repeat to fuse several.",
    ),
]
Layers = Annotated[
    str | None, typer.Option(help="Layers, such as -5,-4,-3; 0 is the embedding layer, -1 the last.", metavar="I,J,…")
]
OutFolder = Annotated[
    Path | None, typer.Option(help="Folder of the classifier; default: under models/.", parser=parse_path)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
TextColumn = Annotated[str, typer.Option(help="Column of the texts.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.")]
OnEmpty = Annotated[choices.OnEmpty, typer.Option(help="What to do with empty texts.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many distinct texts of each split, always the same ones.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU if there is one.")]
Split = Annotated[choices.Split, typer.Option(help="Which rows of a data set.")]
ChosenEngine = Annotated[
    choices.EngineName | None,
    typer.Option("--engine", help="What runs the model; default: vllm where it is installed beside a GPU."),
]
Gpus = Annotated[
    str | None, typer.Option(help="all, or numbers: one process for each GPU; default: one GPU.", metavar="all|0,1,…")
]
TensorParallel = Annotated[int, typer.Option(min=1, help="GPUs that share a model too large for one (vllm).")]
Pooling = Annotated[choices.Pooling | None, typer.Option(help="From tokens to a vector.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Fixes every random choice.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Tokens a text may have; longer ones are cut.")]
Template = Annotated[str | None, typer.Option(help="What the model reads; {text} stands for the text.")]
