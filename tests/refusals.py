"""Refusals, as the command line prints them: the sentence of an error, and behind it the commands that fix it."""

import re
from contextlib import contextmanager

import pytest

from llmembed.cli.remedies import fixes, in_options


def printed(error):
    """Return what the command line says of an error, on one line."""
    return " ".join([in_options(str(error)), *(f"fix: {command}" for command in fixes(error))])


@contextmanager
def refused(kind, match=""):
    """Expect an error of a kind, of which the command line says what matches."""
    with pytest.raises(kind) as caught:
        yield caught
    assert re.search(match, printed(caught.value)), printed(caught.value)
