"""Faults that are installed in a child before its work begins: kills and torn writes at a write step, links that fail.

A write step is a call that changes something under a folder: it opens a file for writing, flushes, links, renames or
removes it, makes or removes a folder. The interpreter announces these (`sys.addaudithook`), whoever makes them. A write
itself it does not, so a torn one is made by the kernel, which kills a process that writes beyond RLIMIT_FSIZE.
"""

import errno
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> which of its arguments are paths.
STEPS = {"os.link": (0, 1), "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,)}

# A step is told as what it does and to what.
OnStep = Callable[[str], None]


def record_steps(root: Path, log: Path) -> None:
    """Write a line for every step under `root`."""
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _watch(root, lambda step: os.write(lines, (step + "\n").encode()))


def kill_at(root: Path, number: int) -> None:
    """Kill this process before the step of this number, from 0, is made."""
    _watch(root, _at(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def tear_after(root: Path, number: int, size: int) -> None:
    """From the step of this number on, have the kernel kill this process at a write beyond `size` bytes of a file."""
    # Python ignores the signal and would see an error; its action can be set in the main thread alone.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _watch(root, _at(number, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))))


def signal_after(root: Path, number: int, seconds: float) -> None:
    """Send this process a signal so many seconds after it opens the first file under `root`: it has begun its work."""
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), number))
    timer.daemon = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not timer.ident and str(Path(str(arguments[0])).absolute()).startswith(str(root)):
            timer.start()

    sys.addaudithook(hook)


def start_anew() -> None:
    """Let this process start new interpreters: one that is stopped while it asks the server ends the server."""
    # To import it imports everything, as the server of the children has done.
    from benchmarks.torture import preload

    preload.forking = False


def stutter(root: Path, seed: int, longest: float) -> None:
    """Wait before steps, now and then for `longest` seconds, so that processes meet in all orders."""
    chance = random.Random(seed)
    _watch(root, lambda step: time.sleep(chance.choice((0, 0, 0, 0.001, 0.01, longest))))


def refuse_links(number: int) -> None:
    """Fail every hard link with an error number, as FAT and some network and FUSE file systems do."""

    def link(src: Any, dst: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number), os.fspath(src), None, os.fspath(dst))

    os.link = link


def lose_replies() -> None:
    """Make every hard link, and then say that the name is taken, as NFS does when the first reply was lost."""
    real = os.link

    def link(src: Any, dst: Any, **options: Any) -> None:
        real(src, dst, **options)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(src), None, os.fspath(dst))

    os.link = link


def limit_files(size: int) -> None:
    """Fail writes beyond a size, which stands for a full disk where none can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def tell_work() -> None:
    """Print a line when a model runs or a head is fitted, so that a refusal can be told from one that came too late."""
    from importlib import import_module

    import torch

    from llmembed.heads import HEADS

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        def tell(*arguments: Any, **options: Any) -> Any:
            print("work began", file=sys.stderr, flush=True)
            return function(*arguments, **options)

        return tell

    torch.nn.Module.__call__ = told(torch.nn.Module.__call__)
    for entry in HEADS.values():
        head = getattr(import_module(entry.module), entry.class_name)
        head.fit = told(head.fit)


def _at(number: int, act: Callable[[], None]) -> OnStep:
    passed = iter(range(number + 1))

    def step(_: str) -> None:
        if next(passed, None) == number:
            act()

    return step


def _watch(root: Path, on_step: OnStep) -> None:
    lock, below = threading.Lock(), str(root.resolve()) + os.sep

    def named(path: Any) -> str:
        return str(Path(os.fsdecode(path)).absolute()) if isinstance(path, (str, bytes, os.PathLike)) else ""

    def announce(event: str, paths: list[str]) -> None:
        if any((path + os.sep).startswith(below) for path in paths):
            with lock:
                on_step(f"{event} {' -> '.join(path.removeprefix(below) for path in paths)}")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            announce("open", [named(arguments[0])])
        elif event in STEPS:
            announce(event.removeprefix("os."), [named(arguments[number]) for number in STEPS[event]])

    flush = os.fsync

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        announce("fsync", [os.path.realpath(f"/proc/self/fd/{number}")])
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)
