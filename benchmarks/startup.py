"""Start-up: `llmembed --help`, and an extraction that finds nothing to do, beside an empty Python program.

Needs `llmembed extract agnews`.

    LLMEMBED_DATA=… .venv/bin/python benchmarks/startup.py [--rounds 7] [--dataset agnews] [--cache cache]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe_machine

PROGRAM = "from llmembed.cli import main; main()"


def seconds(*words: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dataset", default="agnews")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    again = (PROGRAM, "extract", options.dataset, "--cache", str(options.cache), "--json")
    report = json.loads(seconds(*again)[1])
    commands = {"python -c pass": ("pass",), "llmembed --help": (PROGRAM, "--help"), "llmembed extract, again": again}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, words in commands.items():
            times[name].append(seconds(*words)[0])
    print(describe_machine())
    print(f"{report['rows']:,} rows of {options.dataset}; median of {options.rounds} rounds\n")
    print("| command | seconds | lowest - highest |\n|---|--:|--:|")
    for name, values in times.items():
        print(f"| `{name}` | {statistics.median(values):.2f} | {min(values):.2f} - {max(values):.2f} |")


if __name__ == "__main__":
    main()
