"""An attack: a name, and cases that hold or fail; and the helpers with which attacks are put together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.torture.children import PromiseError


class UnavailableError(Exception):
    """The machine lacks what the attack needs; the sentence says what."""


@dataclass(frozen=True)
class Verdict:
    """What became of one case: what was done, and how it failed, or nothing where it held."""

    case: str
    failure: str = ""


@dataclass(frozen=True)
class Attack:
    """Something that is done to llmembed in many cases.

    Attributes:
        name: what is done, as the table has it.
        strikes: functions that each try some cases and give a verdict of each.
    """

    name: str
    strikes: Sequence[Callable[[], Iterable[Verdict]]] = field(repr=False)


def each(cases: Iterable[tuple[str, Callable[..., None], tuple[Any, ...]]]) -> list[Callable[[], Iterable[Verdict]]]:
    """Make strikes of cases: what is done, a function that raises `PromiseError` unless all holds, its arguments."""
    return [_single(case, check, arguments) for case, check, arguments in cases]


def _single(case: str, check: Callable[..., None], arguments: tuple[Any, ...]) -> Callable[[], Iterable[Verdict]]:
    def strike() -> Iterator[Verdict]:
        try:
            check(*arguments)
        except PromiseError as failure:
            yield Verdict(case, str(failure))
        else:
            yield Verdict(case)

    return strike
