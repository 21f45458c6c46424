"""Parameters of heads: which values a fit can work with, stated once for each and checked before it reads a row.

In: values, from Python or the command line. Out: nothing, or an error that names parameter, value and range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from llmembed.errors import InputError


@dataclass(frozen=True)
class Range:
    """The values that a number may have, both ends included.

    Attributes:
        kind: `int` for whole numbers, `float` for any.
        least, most: the ends.
        optional: it may also be None.
        items: how many of them there must be at least, where it is a tuple of such numbers.
    """

    kind: type
    least: float
    most: float = float("inf")
    optional: bool = False
    items: int | None = None

    def holds(self, value: Any) -> bool:
        """Return whether a value is in the range."""
        if value is None:
            return self.optional
        if self.items is not None:
            return isinstance(value, tuple | list) and len(value) >= self.items and all(map(self._fits, value))
        return self._fits(value)

    def __str__(self) -> str:
        number = "a whole number" if self.kind is int else "a number"
        ends = f"from {self.least:.10g}" + ("" if self.most == float("inf") else f" to {self.most:.10g}")
        several = "" if self.items is None else ", each in a tuple" if self.items else ", each in a tuple, or none"
        return f"{number} {ends}{several}{' or None' * self.optional}"

    def _fits(self, value: Any) -> bool:
        # A bool is a whole number to Python, and NaN is in no range.
        known = isinstance(value, Integral if self.kind is int else Real) and not isinstance(value, bool)
        return known and self.least <= value <= self.most


def check_ranges(ranges: Mapping[str, Range], values: Mapping[str, Any]) -> None:
    """Refuse values that are in no range of theirs.

    Raises:
        InputError: it names the first of them.
    """
    for name, allowed in ranges.items():
        if not allowed.holds(values[name]):
            raise InputError(f"{name} is {values[name]!r}; expected {allowed}.")
