"""What reaches a terminal or a pipe: lines without control characters, and JSON that stays valid in any encoding.

In: text from anywhere, such as labels and names of files. Out: lines on stdout and stderr. Knows no result.
"""

import codecs
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from llmembed.errors import UsageError

# C0, DEL, C1, what ends a line or turns the direction of writing, and halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Return a text on one line, with control characters as escapes such as `\x1b`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def print_line(text: object = "") -> None:
    """Write one line of a result on stdout."""
    write(printable(text) + "\n")


def print_note(text: object) -> None:
    """Write one line on stderr; where nobody reads it any more, the work goes on."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(printable(text), file=sys.stderr, flush=True)


def print_json(content: Mapping[str, Any]) -> None:
    """Write one JSON object as a line on stdout; in ASCII where stdout is not UTF-8."""
    ascii_only = sys.stdout is not None and codecs.lookup(sys.stdout.encoding).name != "utf-8"
    line = json.dumps(content, ensure_ascii=ascii_only)
    write(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n")


def write(lines: str = "", *, flush: bool = False) -> None:
    """Write on stdout what is printable already.

    Raises:
        UsageError: stdout cannot be written to, such as a file on a full disk.
        BrokenPipeError: its reader has gone.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(lines)
        if flush:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"The output cannot be written: {error.strerror or error}.") from error
