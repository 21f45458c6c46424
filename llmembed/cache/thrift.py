"""Thrift's compact protocol, as far as Parquet's footers and page headers use it: bytes -> structs.

In: a buffer and a place in it. Out: the fields of the struct there by their numbers, and where it ends. pyarrow has a
parser, but one damaged byte in a footer (a codec that does not exist) makes it abort the whole process. Knows no field.
"""

from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12
# Parquet's own structs are five deep.
DEPTH = 12


def read_struct(view: memoryview, at: int, depth: int = DEPTH) -> tuple[dict[int, Any], int]:
    """Read a struct: integers, bytes, booleans, lists and structs by their numbers, and where it ends.

    Raises:
        ValueError: it is no such struct, or ends after the buffer.
    """
    fields: dict[int, Any] = {}
    number = 0
    while header := _byte(view, at):
        # A step to the next number and a type in one byte; the long form is for numbers that Parquet does not have.
        step, kind = divmod(header, 16)
        if not step:
            raise ValueError("a field number of another form")
        number += step
        fields[number], at = (kind == TRUE, at + 1) if kind in (TRUE, FALSE) else _read(view, at + 1, kind, depth)
    return fields, at + 1


def _read(view: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth == 0:
        raise ValueError("nested too deeply")
    if kind in (TRUE, FALSE, BYTE):
        return _byte(view, at), at + 1
    if kind in (I16, I32, I64):
        zigzag, at = _read_number(view, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == BINARY:
        size, at = _read_number(view, at)
        if size > len(view) - at:
            raise ValueError("a string that ends after the buffer")
        return bytes(view[at : at + size]), at + size
    if kind == STRUCT:
        return read_struct(view, at, depth - 1)
    if kind != LIST:
        raise ValueError(f"a field of type {kind}")
    size, kind = divmod(_byte(view, at), 16)
    at += 1
    if size == 15:
        size, at = _read_number(view, at)
    items = []
    # Every item takes a byte at least, so that a size that is not true ends with the buffer.
    for _ in range(size):
        item, at = _read(view, at, kind, depth - 1)
        items.append(item)
    return items, at


def _read_number(view: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(view, at)
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than 64 bits")


def _byte(view: memoryview, at: int) -> int:
    if at >= len(view):
        raise ValueError("it ends after the buffer")
    return view[at]
