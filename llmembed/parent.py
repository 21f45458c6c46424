"""Processes and the one that started them: what must not outlive it, and who is told to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread, current_thread, main_thread


def exit_with_parent() -> None:
    """Exit when the process that started this one has ended, however that was; without such a one do nothing."""
    parent = parent_process()
    if parent is None:
        return

    def wait_and_exit() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait_and_exit, daemon=True).start()


@contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes in the body: they ignore Ctrl-C, and SIGTERM waits until all of them have started.

    A terminal sends Ctrl-C to them too; their parent is told and ends them. By themselves each of them would print a
    traceback, as would one whose parent is stopped before it has told it what to do.
    """
    if current_thread() is not main_thread():
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
