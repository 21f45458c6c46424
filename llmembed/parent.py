"""Processes and the one that started them: what must not outlive it, and who is told to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread, current_thread, main_thread


def die_with_parent() -> None:
    """End this process when the one that started it has ended, however that was; without such a one do nothing."""
    parent = parent_process()
    if parent is None:
        return

    def wait_and_die() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait_and_die, daemon=True).start()


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let the processes that are started in the body ignore Ctrl-C, which a terminal sends to them too.

    Their parent is told as well and ends them; by themselves each of them would print a traceback.
    """
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
