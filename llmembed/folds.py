"""Folds of the training split: every row is held out once, together with the texts that contain it.

In: texts and labels. Out: the fold of each row. Knows no embeddings and no heads.

Where texts are parts of others, as the phrases of SST-2 are of its sentences, folds of single rows would hold out what
they have trained on: validation says 92 % there, and unseen sentences get 84 %.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold


def find_wholes(texts: Sequence[str]) -> NDArray[np.int64]:
    """Give for each text the row of the longest one that contains it, its own if none does, int64 [rows].

    Whole words count, in whatever case and spacing. A row that is given always has itself as its whole.
    """
    spoken = [f" {' '.join(text.casefold().split())} " for text in texts]
    counts = Counter(word for text in spoken for word in set(text.split()))
    # Whatever contains a text holds its rarest word, and few texts do.
    rarest = [min(text.split(), key=counts.__getitem__, default="") for text in spoken]
    sought = set(rarest)
    holding: defaultdict[str, list[int]] = defaultdict(list)
    wholes = np.arange(len(texts))
    for row in sorted(range(len(texts)), key=lambda row: len(spoken[row]), reverse=True):
        text = spoken[row]
        wholes[row] = next((longer for longer in holding[rarest[row]] if text in spoken[longer]), row)
        if wholes[row] == row:
            for word in sought.intersection(text.split()):
                holding[word].append(row)
    return wholes


def deal_folds(wholes: NDArray[np.int64], labels: NDArray[np.str_], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Deal rows into folds of about equal size, class by class; those with one whole go together -> int64 [rows]."""
    roots = np.unique(wholes)
    fold = np.zeros(len(wholes), np.int64)
    with warnings.catch_warnings():
        # A class with fewer rows than folds is missing from some of them; where it is unknown its rows count as errors.
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(roots, labels[roots])
        for number, (_, held) in enumerate(parts):
            fold[roots[held]] = number
    return fold[wholes]
