"""Saved files: what anybody may have written, read once and checked before it is used.

In: a folder, or what its files contain. Out: JSON values, arrays and arguments of the types, shapes and ranges that are
expected, or a ClassifierError that names the file. Nothing is allocated because a file asks for it. Knows no head.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from llmembed.errors import ClassifierError

# The labels are what can be long in it: 500 of 30 kB are let through. Parsed, it takes up to 20 times as much memory.
JSON_BYTES = 2**24
LARGEST_INTEGER = 2**63
# Characters of the labels in an array, where all are as long as the longest: 256 MB.
LABEL_CHARACTERS = 2**26

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SavedFiles:
    """The files of a folder as they were read, by name; the folder itself is for messages alone."""

    folder: Path
    contents: Mapping[str, bytes]

    @classmethod
    def read(cls, folder: Path, names: Iterable[str]) -> Self:
        """Read the files of these names that there are, all from one folder, whatever takes its place meanwhile.

        Raises:
            ClassifierError: one of them is no file, cannot be read, or is larger than the memory.
        """
        names, in_place = list(names), False
        read, faults = dict[str, bytes](), dict[str, str]()
        # A folder loses files only after it has given way to another one.
        while not in_place:
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                return cls(folder, {})
            except OSError as error:
                raise cls(folder, {}).damaged(names[0], f"it cannot be read, {error!r}") from error
            try:
                read, faults = _read_files(descriptor, names)
                in_place = _is_same(folder, descriptor)
            finally:
                os.close(descriptor)
        for name, reason in faults.items():
            raise cls(folder, {}).damaged(name, reason)
        return cls(folder, read)

    def damaged(self, name: str, reason: object) -> ClassifierError:
        """Return the error that says what is wrong with a file."""
        lines = str(reason).splitlines() or [type(reason).__name__]
        return ClassifierError(
            f"{self.folder / name} is damaged: {lines[0]}. Train the classifier again.", folder=str(self.folder)
        )

    def content(self, name: str) -> bytes:
        """Return what a file contains.

        Raises:
            ClassifierError: it is missing.
        """
        if name not in self.contents:
            raise self.damaged(name, "it is missing")
        return self.contents[name]

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file.

        Raises:
            ClassifierError: it is missing, no JSON object, nested too deeply, or has more than 16 MiB.
        """
        content = self.content(name)
        if len(content) > JSON_BYTES:
            raise self.damaged(name, f"it has {len(content):,} bytes, expected {JSON_BYTES:,} at most")
        try:
            value = json.loads(content.decode(), parse_constant=_refuse_constant)
        except ValueError as error:
            raise self.damaged(name, f"it is not valid JSON ({error})") from error
        except RecursionError as error:
            raise self.damaged(name, "it is nested too deeply") from error
        if not isinstance(value, dict):
            raise self.damaged(name, "it holds no JSON object")
        return value

    def read_arrays(self, name: str) -> Arrays:
        """Return the arrays of a safetensors file, by name.

        Raises:
            ClassifierError: it is missing, not valid, or holds values that are not finite.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        content = self.content(name)
        try:
            arrays: Arrays = load(content)
        except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise self.damaged(name, error) from error
        for array_name, array in arrays.items():
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise self.damaged(name, f"{array_name!r} holds values that are no finite fractions")
        return arrays

    def expect_arrays(self, name: str, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse arrays of a file that do not have exactly these names and shapes, in float32.

        Raises:
            ClassifierError: another name, shape or dtype.
        """
        if arrays.keys() != shapes.keys():
            raise self.damaged(name, f"it holds {_some(arrays)}, expected {_some(shapes)}")
        for array_name, shape in shapes.items():
            array = arrays[array_name]
            if array.shape != shape or array.dtype != np.float32:
                found = f"{array.dtype.name} {list(array.shape)}"
                raise self.damaged(name, f"{array_name!r} is {found}, expected float32 {list(shape)}")


def checked_arguments(function: Callable[..., Any], given: Any) -> dict[str, Any]:
    """Return arguments for all parameters of a function, converted to what its annotations say.

    Raises:
        ValueError: not these parameters, a value of another type, or a number that is not finite, negative or huge.
    """
    adapters = _adapters(function)
    if not isinstance(given, dict) or given.keys() != adapters.keys():
        raise ValueError(f"the parameters are {_some(given)}, expected {_some(adapters)}")
    converted = {}
    for name, adapter in adapters.items():
        try:
            converted[name] = adapter.validate_python(given[name])
        except (ValidationError, RecursionError) as error:
            raise ValueError(f"the parameter {name} has a value of another type") from error
        for number in _numbers(converted[name]):
            # Of NaN it is not true either.
            if not 0 <= number < LARGEST_INTEGER:
                raise ValueError(f"the parameter {name} is {str(number)[:20]}")
    return converted


def checked_labels(labels: Any) -> list[Any]:
    """Return the labels of classes, which are all strings, or all numbers of one type.

    Raises:
        ValueError: anything else, fewer than two, one of them twice, or more than an array can hold.
    """
    if not isinstance(labels, list) or len(labels) < 2:
        raise ValueError("there are not two labels or more")
    kinds = {type(label) for label in labels}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool} or len(set(labels)) < len(labels):
        raise ValueError("the labels are not all different and of one type")
    if kinds == {str}:
        fits = max(map(len, labels)) * len(labels) <= LABEL_CHARACTERS
    else:
        fits = all(abs(label) < LARGEST_INTEGER for label in labels)
    if not fits:
        raise ValueError("a label is too long or too large")
    return labels


def _read_files(folder: int, names: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return what the files in an open folder contain, and of those that cannot be read why; by name."""
    read, faults = dict[str, bytes](), dict[str, str]()
    for name in names:
        try:
            if not stat.S_ISREG(os.stat(name, dir_fd=folder).st_mode):
                faults[name] = "it is no regular file"
                continue
            with open(name, "rb", opener=partial(os.open, dir_fd=folder)) as file:
                read[name] = file.read()
        except FileNotFoundError:
            continue
        except (OSError, MemoryError) as error:
            faults[name] = f"it cannot be read, {error!r}"
    return read, faults


def _is_same(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False


@cache
def _adapters(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(function)
    return {name: TypeAdapter(hints[name]) for name in signature(function).parameters if name != "self"}


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) else []


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _some(names: Any) -> str:
    listed = sorted(map(repr, names)) if isinstance(names, Iterable) else [type(names).__name__]
    return (", ".join(listed[:5])[:200] or "nothing") + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
