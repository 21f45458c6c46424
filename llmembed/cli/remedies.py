"""What the command line says of an error: its sentence in terms of options, and the commands that fix it.

In: an error, or a sentence that names arguments as Python does. Out: lines. Nowhere else is a command line composed.
"""

import ast
import re
import shlex
from typing import TYPE_CHECKING, Any

from llmembed.errors import BackboneError, CacheError, ClassifierError, LLMEmbedError, UsageError
from llmembed.printable import print_note

if TYPE_CHECKING:
    from llmembed.requests import ExtractionRequest

# `name` or `name=value`, as sentences name an argument.
ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")
# The option of each argument that a sentence may name.
OPTIONS = {
    name: f"--{option or name.replace('_', '-')}"
    for name, option in {
        "backbone": "",
        "backbones": "backbone",
        "device": "",
        "dropout": "",
        "dtype": "",
        "engine": "",
        "folds": "",
        "fusion": "",
        "gpus": "",
        "head": "",
        "head_options": "parameter",
        "hidden": "",
        "label_column": "",
        "layers": "",
        "limit": "",
        "max_length": "",
        "on_bad_value": "",
        "on_empty": "",
        "out": "",
        "pooling": "",
        "root": "cache",
        "split": "",
        "template": "",
        "tensor_parallel": "",
        "text_column": "",
    }.items()
}


def in_options(sentence: str) -> str:
    """Return a sentence with options in the place of arguments: `max_length=9` becomes --max-length 9."""
    return ARGUMENT.sub(_option, sentence)


def fixes(error: LLMEmbedError) -> list[str]:
    """Return the commands that fix what an error tells of; none where only the user can know."""
    match error:
        case CacheError() | UsageError():
            return list(dict.fromkeys(map(extract_command, error.extractions)))
        case BackboneError() if error.requirement:
            again = "--force-reinstall " if error.reinstall else ""
            return [f"pip install {again}--no-deps {error.requirement}"]
        case ClassifierError() if error.folder:
            return ["llmembed train"]
    return []


def extract_command(request: "ExtractionRequest") -> str:
    """Return the command line that asks for an extraction."""
    argument = request.reading.argument
    # A name that begins with a dash would be read as an option.
    words = ["llmembed", "extract", f"./{argument}" if argument.startswith("-") else argument]
    asked = request.reading.model_dump(exclude={"argument"}, exclude_defaults=True)
    asked |= request.model_dump(exclude={"reading"}, exclude_defaults=True)
    for name, value in asked.items():
        words += [OPTIONS[name], _words(value)]
    return shlex.join(words)


def predict_command(classifier: str) -> str:
    """Return the command line that labels a text with a classifier."""
    folder = f"./{classifier}" if classifier.startswith("-") else classifier
    return f'llmembed predict {shlex.quote(folder)} --text "…"'


def print_warning(sentence: str) -> None:
    """Write a sentence on stderr that names arguments as Python does."""
    print_note(in_options(sentence))


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    if name not in OPTIONS:
        return found[0]
    if value is None:
        return OPTIONS[name]
    try:
        read = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return found[0]
    values = read if isinstance(read, list) else [read]
    return " ".join(f"{OPTIONS[name]} {shlex.quote(_words(each))}" for each in values)


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
