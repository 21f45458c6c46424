"""The process that started this one: what must not outlive it."""

import os
from multiprocessing import parent_process
from threading import Thread


def die_with_parent() -> None:
    """End this process when the one that started it has ended, however that was; without such a one do nothing."""
    parent = parent_process()
    if parent is None:
        return

    def wait_and_die() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait_and_die, daemon=True).start()
