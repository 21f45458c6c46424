"""Cores: how many this process may use, and work that is dealt out to a thread on each. Knows nothing of the work."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
    """Do the parts in threads; give what they return, in order. NumPy lets go of the interpreter while it computes."""
    threads = count_threads()
    if threads == 1 or len(parts) == 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(threads, initializer=_enter) as pool:
        for start in range(0, len(parts), 4 * threads):
            # In groups, so that what waits to be taken stays small.
            yield from pool.map(work, parts[start : start + 4 * threads])


def _enter() -> None:
    _within.thread = True
