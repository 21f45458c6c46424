"""Children: a function in a forked process of its own, with its output, its end and what it returned.

In: a function, its arguments, a folder to work in, faults to install. Out: an `Outcome`. Knows no attack.
"""

import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from typing import Any

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.torture.preload"])
# Two threads of the harness must not ask for the end of the same child.
ONE_AT_A_TIME = Lock()
SECONDS = 60.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}

Fault = Callable[[], None]


class PromiseError(AssertionError):
    """What should hold does not; the sentence says what happened instead."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code (minus the signal's number; None: it hung), what it printed and returned."""

    status: int | None
    out: str
    err: str
    value: Any = None

    def __str__(self) -> str:
        if self.status is None:
            return "it hung"
        if self.status < 0:
            return f"it ended by {signal.Signals(-self.status).name}"
        lines = [line for line in self.err.splitlines() if line.strip()]
        return f"exit code {self.status}: {lines[-1][:300] if lines else 'not a word'}"

    @property
    def crashed(self) -> bool:
        """Return whether it ended in another way than well or with a line of ours."""
        return self.status not in (0, 2, 3, 4, 5, 6) or "Traceback (most recent" in self.err

    @property
    def refused(self) -> bool:
        """Return whether it ended with an error of ours, in one line."""
        said = [line for line in self.err.splitlines() if line.lower().startswith("error: ")]
        return not self.crashed and self.status != 0 and len(said) == 1


def ended_well(outcome: Outcome, what: str) -> Outcome:
    """Return the outcome back if it is a success; else say so."""
    if outcome.crashed or outcome.status != 0:
        raise PromiseError(f"{what}: {outcome}")
    return outcome


def was_refused(outcome: Outcome, what: str) -> Outcome:
    """Return the outcome back if it is a refusal of ours in one line; else say so."""
    if not outcome.refused:
        raise PromiseError(f"{what}: {'it was not refused' if outcome.status == 0 else outcome}")
    return outcome


@dataclass
class Child:
    """A child that is running."""

    process: Any
    notes: tempfile.TemporaryDirectory = field(repr=False)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Return how it ended; one that has not after so many seconds is killed."""
        hung = not wait([self.process.sentinel], seconds)
        if hung:
            os.kill(self.process.pid, signal.SIGKILL)
            wait([self.process.sentinel])
        with ONE_AT_A_TIME:
            self.process.join()
        folder = Path(self.notes.name)
        out, err = (folder.joinpath(name).read_text(errors="replace") for name in ("out", "err"))
        value = folder / "value"
        result = pickle.loads(value.read_bytes()) if value.exists() else None
        self.notes.cleanup()
        return Outcome(None if hung else self.process.exitcode, out, err, result)


def start(
    function: Callable[..., Any], *arguments: Any, folder: Path, faults: Sequence[Fault] = (), memory: int = 0
) -> Child:
    """Start a function in a child that works in `folder`; `faults` are installed there, `memory` more bytes are all."""
    os.environ.update(ENVIRONMENT)
    notes = tempfile.TemporaryDirectory(prefix="torture-child-")
    with ONE_AT_A_TIME:
        forkserver.ensure_running()
        server = forkserver._forkserver._forkserver_address
        given = (function, arguments, folder, Path(notes.name), tuple(faults), memory, server)
        process = CONTEXT.Process(target=_work, args=given)
        process.start()
    return Child(process, notes)


def run(function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS, **options: Any) -> Outcome:
    """Run a function in a child and give how it ended; options as in `start`."""
    return start(function, *arguments, **options).wait(seconds)


def cpu_seconds() -> float:
    """Return the processor time that all children took which have ended (Linux; elsewhere 0)."""
    status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/stat")
    if not status.exists():
        return 0.0
    ticks = status.read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _work(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: Path,
    notes: Path,
    faults: Sequence[Fault],
    memory: int,
    server: str,
) -> None:
    # What it starts in turn comes from the same server, where everything is imported.
    forkserver._forkserver._forkserver_address = server
    forkserver._forkserver.ensure_running = lambda: None
    # SIGINT is ignored in jobs that a shell started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    if memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    for fault in faults:
        fault()
    status: Any = 0
    try:
        (notes / "value").write_bytes(pickle.dumps(function(*arguments)))
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # What was to stop the function comes too late.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # As an interpreter ends: its threads before its child processes.
    threading._shutdown()
    sys.exit(status)
