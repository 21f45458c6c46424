"""Memory: how much this machine, or the container around this process, has in all.

In: what the system says. Out: bytes. Not how much is free at the moment, so that what is decided by it is decided alike
whenever it is asked on the same machine.
"""

import os
from collections.abc import Iterator
from pathlib import Path

# The file with the limit in a folder of control groups of version 2, and of version 1, below the root.
LIMITS = {"": ("sys/fs/cgroup", "memory.max"), "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes")}


def total_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or less where a control group says so."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *_group_limits(root)])


def _group_limits(root: Path) -> Iterator[int]:
    """Yield the limits of the control groups of this process and of all around them (man 7 cgroups)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in LIMITS.keys() & set(controllers.split(",")):
            folder, name = LIMITS[controller]
            inside = Path(path.lstrip("/"))
            for group in (inside, *inside.parents):
                limit = _read_number(root / folder / group / name)
                if limit:
                    yield limit


def _read_number(path: Path) -> int | None:
    """Read a number; None for what is no limit, and where a container does not show the file."""
    try:
        content = path.read_text().strip()
    except OSError:
        return None
    return int(content) if content.isdecimal() else None
