"""How a command ends: done, refused in one line, stopped by a signal, or with nobody to read the rest.

In: a command. Out: its exit code. Any other exception is a fault of llmembed and keeps its traceback. Knows no command.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import typer

from llmembed.cli.remedies import fixes, in_options
from llmembed.errors import LLMEmbedError, UsageError
from llmembed.printable import print_note, write

STOPPED = 130
# What a shell gives for a program that wrote to a pipe without a reader (128 + SIGPIPE).
UNREAD = 141
# What the parser of the command line raises; typer has no public name for it.
USAGE: type[BaseException] = typer.BadParameter.__mro__[1]


def run(command: Callable[[], None]) -> int:
    """Run a command and give its exit code; SIGTERM stops it as Ctrl-C does."""
    for stream in (sys.stdout, sys.stderr):
        # A closed one is None, and who captures output may have put something else there.
        if isinstance(stream, TextIOWrapper):
            # A letter that the terminal's encoding lacks becomes an escape, not an error.
            stream.reconfigure(errors="backslashreplace")
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        told.append(number)
        _terminate_children()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        code = _run(command)
        write(flush=True)
    except KeyboardInterrupt:
        code = _say_stopped()
    except BrokenPipeError:
        code = UNREAD
    except LLMEmbedError as error:
        print_note(f"error: {in_options(str(error))}")
        for fix in fixes(error):
            print_note(f"fix: {fix}")
        code = error.exit_code
    except OSError as error:
        # typer writes the help on stdout itself; there is no file's name in what that raises.
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        print_note(f"error: The output cannot be written: {error.strerror}.")
        code = UsageError.exit_code
    except BaseException:
        # An extension in Rust that imports NumPy makes a panic of its own of the KeyboardInterrupt.
        if not told:
            raise
        code = _say_stopped()
    _stop_handling()
    _close_stdout()
    return code


def _say_stopped() -> int:
    _stop_handling()
    print_note("stopped; what was finished before is kept, and no file is written by half.")
    return STOPPED


def _stop_handling() -> None:
    # What is being closed has nothing to lose any more, and a handler's exception there would be a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _run(command: Callable[[], None]) -> int:
    try:
        command()
    except typer.Exit as ended:
        return ended.exit_code
    except USAGE as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if "\n" in message:
            # The whole help, where no command is named.
            error.show()  # type: ignore[attr-defined]
        else:
            context = getattr(error, "ctx", None)
            print_note(f"error: {message.rstrip('.')}. See `{context.command_path if context else 'llmembed'} --help`.")
        return 2
    return 0


def _terminate_children() -> None:
    from multiprocessing import active_children

    # The interpreter would wait for them: a comparison that was told to stop went on for more than a minute.
    for child in active_children():
        child.terminate()


def _close_stdout() -> None:
    # What is left in a buffer that cannot be written would be an error again when the interpreter ends.
    try:
        write(flush=True)
    except (OSError, LLMEmbedError):
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
