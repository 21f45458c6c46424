"""The machine that a benchmark ran on, in one line; competitors in processes of their own, and the memory they take."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_SAMPLES = 0.02


def describe_machine(*packages: str) -> str:
    """Return the processor, the cores in use, and the versions that matter, those of more packages among them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    versions = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "transformers", "pyarrow", "lightgbm", *packages)
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = names[0] if names else platform.processor()
    return f"{processor} ({vectors}), {cores} cores; Python {platform.python_version()}, {versions}"


def run_alone(competitor: str) -> dict[str, Any]:
    """Run this script once more, with its options and `--alone COMPETITOR`; give the JSON of its last line."""
    command = [sys.executable, *sys.argv, "--alone", competitor]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class MemoryWatch:
    """The anonymous resident memory of this process from now on, as Linux counts it: without mapped files."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def peak(self, until: float) -> int:
        """Return the largest, in bytes, up to a moment of `time.perf_counter`."""
        return max(size for moment, size in self._samples if moment <= until)

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self._samples.append((time.perf_counter(), 1024 * kilobytes))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
