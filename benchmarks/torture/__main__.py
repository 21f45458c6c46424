"""Run all attacks and write the table: `make torture`. Exit code 1 if one of them succeeded."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.torture import children
from benchmarks.torture.attacks import disks, flips, foreign, inputs, kills, links, races, stops
from benchmarks.torture.scene import Scene
from benchmarks.torture.verdicts import Attack, UnavailableError, Verdict

FAMILIES = {
    "kills": kills,
    "flips": flips,
    "disks": disks,
    "links": links,
    "races": races,
    "foreign": foreign,
    "inputs": inputs,
    "stops": stops,
}
TABLE = Path(__file__).parent.parent / "torture.md"
# Children wait for disks and for each other more than they compute.
AT_ONCE = 3


@dataclass
class Line:
    """A line of the table: an attack and the verdicts of its cases."""

    name: str
    tried: int = 0
    failures: list[Verdict] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        gravest = min(self.failures, key=_gravity, default=None)
        first = self.skipped if gravest is None else f"{gravest.case}: {gravest.failure}"
        held = self.tried - len(self.failures)
        return f"| {self.name} | {self.tried} | {held} | {len(self.failures)} | {_cell(first)} |"


def main() -> None:
    """Attack, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="families of attacks, with commas", default=",".join(FAMILIES))
    parser.add_argument("--like", help="only attacks whose name has this in it", default="")
    parser.add_argument("--every", type=int, default=1, help="of each attack only every n-th case")
    parser.add_argument("--all-failures", action="store_true", help="print every failure, not three of each attack")
    parser.add_argument("--out", type=Path, default=TABLE, help="where the table goes")
    options = parser.parse_args()
    start, lines = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="torture-scene-") as folder:
        scene = Scene(Path(folder) / "scene")
        attacks = chain.from_iterable(FAMILIES[name].attacks(scene) for name in options.only.split(","))
        for attack in (attack for attack in attacks if options.like in attack.name):
            lines.append(run_attack(attack, options.every, 10**9 if options.all_failures else 3))
            seconds = time.perf_counter() - start, children.cpu_seconds()
            # After each, for a run that is stopped has found something too.
            options.out.write_text(page(lines, options.every, *seconds), encoding="utf-8")
    failed = sum(len(line.failures) for line in lines)
    print(f"{sum(line.tried for line in lines):,} cases, {failed:,} failed, {_minutes(*seconds)}: {options.out}")
    sys.exit(1 if failed else 0)


def run_attack(attack: Attack, every: int, shown: int) -> Line:
    """Run the cases of one attack, several at once."""
    line, start = Line(attack.name), time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for verdicts in pool.map(_guarded, attack.strikes[::every]):
            for verdict in verdicts:
                if isinstance(verdict, UnavailableError):
                    line.skipped = f"skipped: {verdict}"
                    continue
                line.tried += 1
                if verdict.failure:
                    line.failures.append(verdict)
                    if len(line.failures) <= shown:
                        print(f"  {_cell(f'{verdict.case}: {verdict.failure}')}", flush=True)
    line.seconds = time.perf_counter() - start
    print(f"{line.tried:5} tried, {len(line.failures):4} failed, {line.seconds:4.0f} s: {attack.name}", flush=True)
    return line


def _gravity(verdict: Verdict) -> int:
    """Return the place of a failure's kind among the kinds, the first one of a kind before the others."""
    kinds = ("other ", "another ", "neither the old", "torn", "it ended by", "it hung", "exit code 1:", "Error: ")
    return next((place for place, kind in enumerate(kinds) if kind in verdict.failure), len(kinds))


def _guarded(strike: Callable[[], Iterable[Verdict]]) -> list[Verdict | UnavailableError]:
    verdicts: list[Verdict | UnavailableError] = []
    try:
        verdicts.extend(strike())
    except UnavailableError as reason:
        verdicts.append(reason)
    except Exception as error:
        # What the harness did not foresee is a failure of one of the two, and is looked at.
        verdicts.append(Verdict("the harness", f"{type(error).__name__}: {error}"))
    return verdicts


def _minutes(seconds: float, cpu_seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes ({cpu_seconds / 60:.1f} of a core)"


def page(lines: list[Line], every: int, seconds: float, cpu_seconds: float) -> str:
    """Lay out the table with machine, commit and date."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    tried, failed = sum(line.tried for line in lines), sum(len(line.failures) for line in lines)
    return "\n".join(
        [
            "# Torture",
            "",
            "`make torture` writes this page. Each line is an attack on commands in processes of their own, with a",
            "tiny random Llama, 300 texts and a cache of five shards; what must hold is stated at the top of each file",
            "in [`torture/attacks/`](torture/attacks). A case fails by another number, a traceback, a hang, a crash,",
            "by something torn, lost or left behind, or by a refusal that does not name the file.",
            "",
            f"Commit {commit or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; "
            f"{_minutes(seconds, cpu_seconds)}.",
            f"{tried:,} cases{f' (every {every}th)' if every > 1 else ''}, {tried - failed:,} held, {failed:,} failed.",
            "",
            "| attack | tried | held | failed | the gravest failure, the first of its kind |",
            "|---|--:|--:|--:|---|",
            *map(str, lines),
            "",
        ]
    )


def _cell(text: str) -> str:
    readable = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return readable.replace("|", "\\|")[:400]


if __name__ == "__main__":
    main()
