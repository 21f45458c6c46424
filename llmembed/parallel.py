"""Parallel work: the cores that this process may use, threads on them, how many a product takes, and child processes.

In: work in parts. Out: what it returns, in order. Children work on one thread each, start undisturbed by a signal and
end with their parent. Knows nothing of the work.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from multiprocessing import parent_process
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

_within = threading.local()


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_threads() -> int:
    """Count the threads to work with: a core each, no more than OMP_NUM_THREADS; one inside of such a thread."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if getattr(_within, "thread", False):
        return 1
    return min(int(asked), count_cores()) if asked.isdecimal() and int(asked) else count_cores()


def in_threads(work: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """Do the parts in threads; yield what they return, in order. NumPy lets go of the interpreter while it computes."""
    threads = count_threads()
    if threads == 1 or len(parts) == 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(threads, initializer=_enter) as pool:
        for start in range(0, len(parts), 4 * threads):
            # In groups, so that what waits to be taken stays small.
            yield from pool.map(work, parts[start : start + 4 * threads])


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which every product takes one thread: how many share it changes its last bits."""
    context: AbstractContextManager[Any] = _blas().limit(limits=1, user_api="blas")
    return context


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Let processes started in the body work on one thread each: their threads would wait for each other on a core."""
    # Read by OpenMP and BLAS when a process starts.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, "1")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def exit_with_parent() -> None:
    """Exit when the process that started this one has ended, however that was; without such a one do nothing."""
    parent = parent_process()
    if parent is None:
        return

    def wait_and_exit() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()


@contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes in the body: they ignore Ctrl-C, and SIGTERM waits until all of them have started.

    A terminal sends Ctrl-C to them too; their parent is told and ends them. By themselves each of them would print a
    traceback, as would one whose parent is stopped before it has told it what to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminated = signal.signal(signal.SIGTERM, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, terminated)
        if waiting:
            signal.raise_signal(signal.SIGTERM)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _enter() -> None:
    _within.thread = True
