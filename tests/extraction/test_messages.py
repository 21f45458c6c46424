"""What is said through a pipe arrives as it was said."""

from multiprocessing import Pipe
from typing import get_args

import pytest

from llmembed.backbones import BadText, EngineInfo
from llmembed.errors import BackboneError, TextError
from llmembed.extraction.messages import (
    Assign,
    BadTextsFound,
    BatchEmbedded,
    FromWorker,
    Idle,
    NoMore,
    Ready,
    RunFailed,
    ShardCommitted,
    ToWorker,
    WantsMore,
    WorkerLost,
)

MESSAGES = [
    Ready(EngineInfo("transformers", "5.23.0", "2.13.0", "cpu", "float32")),
    Idle(),
    WantsMore(),
    BatchEmbedded(-3, -7),
    BadTextsFound({b"key": BadText("nan in layer 2", 2, float("inf"))}),
    ShardCommitted(4, 9),
    WorkerLost("it ended with exit code -9."),
    Assign({b"key": "a text", b"\0": ""}),
    NoMore(),
]


def passed_on(message):
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send(message)
        return theirs.recv()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_crosses_a_pipe_unchanged(message):
    assert passed_on(message) == message


def test_an_error_crosses_a_pipe_with_its_facts():
    error = passed_on(RunFailed(TextError("2 texts failed.", {1: "no tokens", 5: "nan"}))).error
    assert (type(error), str(error), error.reasons) == (TextError, "2 texts failed.", {1: "no tokens", 5: "nan"})
    assert type(passed_on(RunFailed(BackboneError("no such layer"))).error) is BackboneError


def test_these_are_all_messages():
    assert {type(message) for message in MESSAGES} | {RunFailed} == {*get_args(FromWorker), *get_args(ToWorker)}
