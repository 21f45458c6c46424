"""Labels: strings -> class indices int64; a list gives them back by position. Knows no texts and no heads.

Never an array of strings: NumPy's are as wide as the longest one, so that one of 30 kB took gigabytes, and drop the
NULs at the end of each, which made one class of two.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmembed.errors import InputError


def index_labels(labels: Iterable[Any], known: Sequence[Any]) -> tuple[NDArray[np.int64], list[Any]]:
    """Return the class index of each label, int64 [rows], and the names of all: the known ones, then others, sorted."""
    rows = list(labels)
    names = [*known, *sorted(set(rows) - set(known))]
    index = {name: number for number, name in enumerate(names)}
    return np.array([index[label] for label in rows], np.int64), names


def index_options(options: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the options of a head with weights by class index, where they were by label.

    Every class gets a weight, so that a fold which lacks one of them is no mistake.

    Raises:
        InputError: there is a weight for a label that is none.
    """
    weights = options.get("class_weight")
    if not isinstance(weights, dict):
        return dict(options)
    unknown = sorted(map(str, weights.keys() - set(labels)))
    if unknown:
        raise InputError(f"class_weight names {', '.join(unknown[:5])}; the labels are {name_some(labels)}.")
    by_index = {number: weights.get(label, 1.0) for number, label in enumerate(labels)}
    return {**options, "class_weight": by_index}


def name_some(labels: Iterable[str]) -> str:
    """List the first five of the labels, sorted."""
    names = sorted(set(labels))
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
