"""LightGBM's text of trees, read strictly before LightGBM sees it: a wrong index or a torn line ends the process there.

In: text, and how many inputs, classes and rounds it must have. Out: the text itself, or a ValueError that says what is
wrong in which tree. Only numerical splits with finite thresholds and leaves pass. Knows no file.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

END = "end of trees\n"
# Between the header and the trees, and after each tree.
GAPS = ("\n\n", "\n\n\n")
# What a split may say: bit 0 would be categories, bit 1 is where missing values go, bits 2 and 3 what is missing.
DECISIONS = (0, 2, 4, 6, 8, 10)
# The lines of a tree with its numbers: the key, whether they are integers, how many there are more than splits.
LINES = (
    ("split_feature", True, 0),
    ("split_gain", False, 0),
    ("threshold", False, 0),
    ("decision_type", True, 0),
    ("left_child", True, 0),
    ("right_child", True, 0),
    ("leaf_value", False, 1),
    ("leaf_weight", False, 1),
    ("leaf_count", True, 1),
    ("internal_value", False, 0),
    ("internal_weight", False, 0),
    ("internal_count", True, 0),
)
FRACTION = r"-?\d[\d.]{0,30}(?:e[+-]?\d{1,3})?"
RANGE = re.compile(rf"none|\[{FRACTION}:{FRACTION}\]")
Numbers = NDArray[np.float64]


def cut_trees(text: str) -> str:
    """Return the text as far as its trees; what follows only repeats the parameters."""
    return text[: text.index(END) + len(END)]


def check_trees(text: str, *, inputs: int, classes: int, rounds: int) -> str:
    """Return the text of `rounds * classes` trees on `inputs` features, checked.

    Raises:
        ValueError: anything in it is not as LightGBM writes it.
    """
    if type(rounds) is not int:
        raise ValueError("the number of rounds is no whole number")
    header, _, trees = text.partition(GAPS[0])
    sizes = _check_header(header.split("\n"), inputs, classes, rounds * classes)
    if len(trees) != sum(sizes) + len(END) or not trees.endswith(END):
        raise ValueError("it is torn, or something was added to it")
    ends = np.cumsum([0, *sizes]).tolist()
    lines = [_tree_lines(trees[start:end], number) for number, (start, end) in enumerate(pairwise(ends))]
    leaves = np.array([int(each["num_leaves"]) for each in lines])
    numbers = {key: _parse_lines(key, [each[key] for each in lines], leaves, more, whole) for key, whole, more in LINES}
    _check_nodes(leaves, numbers, inputs)
    return text


def _check_header(lines: list[str], inputs: int, classes: int, trees: int) -> list[int]:
    """Return the sizes of the trees that the header gives, [trees]."""
    names = max((line.count(" ") + 1 for line in lines), default=0)
    if inputs > names:
        raise ValueError(f"its header names {names:,} features at most, expected {inputs:,}")
    wanted = [
        "tree",
        "version=v4",
        f"num_class={classes}",
        f"num_tree_per_iteration={classes}",
        "label_index=0",
        f"max_feature_idx={inputs - 1}",
        f"objective=multiclass num_class:{classes}",
        "feature_names=" + " ".join(f"Column_{column}" for column in range(inputs)),
    ]
    if len(lines) != len(wanted) + 2 or lines[: len(wanted)] != wanted:
        different = next((line for line, expected in zip(lines, wanted, strict=False) if line != expected), "")
        raise ValueError(f"its header has another line than expected ({different[:40]!r})")
    ranges = lines[-2].removeprefix("feature_infos=").split(" ")
    if len(ranges) != inputs or not all(RANGE.fullmatch(each) for each in ranges):
        raise ValueError("its feature_infos are not the ranges of the features")
    match = re.fullmatch(r"tree_sizes=([0-9]{1,9}(?: [0-9]{1,9})*)", lines[-1])
    sizes = [int(size) for size in match[1].split(" ")] if match else []
    if len(sizes) != trees:
        raise ValueError(f"it has {len(sizes):,} trees, expected {trees:,}")
    return sizes


def _tree_lines(text: str, number: int) -> dict[str, str]:
    """Return the lines of a tree as text by key."""
    body = text.removesuffix(GAPS[1])
    lines = [line.partition("=") for line in body.split("\n")]
    keys = ["Tree", "num_leaves", "num_cat", *(key for key, _, _ in LINES), "is_linear", "shrinkage"]
    found = {key: value for key, _, value in lines}
    fixed = {"Tree": str(number), "num_cat": "0", "is_linear": "0"}
    if (
        body == text
        or [key for key, _, _ in lines] != keys
        or any(found[key] != value for key, value in fixed.items())
        or not re.fullmatch(r"[1-9][0-9]{0,8}", found["num_leaves"])
        or not re.fullmatch(FRACTION, found["shrinkage"], re.ASCII)
    ):
        raise ValueError(f"tree {number} is not written as LightGBM writes it")
    return found


def _parse_lines(key: str, lines: list[str], leaves: NDArray[np.int64], more: int, whole: bool) -> Numbers:
    """Return the numbers of all trees under a key, one tree after the other."""
    # A tree of one leaf has no splits, and LightGBM leaves the weight of its leaf out.
    wanted = np.where((leaves == 1) & (key == "leaf_weight"), 0, leaves - 1 + more)
    found = np.array([line.count(" ") + 1 if line else 0 for line in lines])
    joined = " ".join(line for line in lines if line)
    different = np.flatnonzero(found != wanted)
    if len(different):
        tree = int(different[0])
        raise ValueError(f"tree {tree} has {found[tree]:,} values of {key}, expected {wanted[tree]:,}")
    if not re.fullmatch("[0-9 -]*" if whole else "[0-9 e.+-]*", joined) or "  " in joined:
        raise ValueError(f"a value of {key} is no number")
    # All trees at once: an array for each line took twice as long.
    numbers = np.fromstring(joined, np.float64, sep=" ") if joined else np.zeros(0)
    # As many numbers as there are between the spaces: none of them is two, such as 1-2.
    if len(numbers) != found.sum() or not np.abs(numbers).max(initial=0) < (2**31 if whole else np.inf):
        raise ValueError(f"a value of {key} is no number, or out of range")
    return numbers


def _check_nodes(leaves: NDArray[np.int64], numbers: Mapping[str, Numbers], inputs: int) -> None:
    features = numbers["split_feature"]
    if not ((features >= 0) & (features < inputs)).all():
        raise ValueError("a tree splits by a feature that there is not")
    if not np.isin(numbers["decision_type"], DECISIONS).all():
        raise ValueError("a tree splits by categories")
    if min(numbers["leaf_count"].min(initial=0), numbers["internal_count"].min(initial=0)) < 0:
        raise ValueError("a tree counts fewer than no rows")
    splits = leaves - 1
    tree = np.repeat(np.arange(len(leaves)), splits)
    node = np.arange(len(tree)) - np.repeat(np.cumsum(splits) - splits, splits)
    # Slots for the leaves and the nodes of each tree: leaf -1 is the last one before node 0.
    first = np.cumsum(leaves + splits) - (leaves + splits)
    seen = np.zeros(int((leaves + splits).sum()), np.int64)
    for child in (numbers["left_child"].astype(np.int64), numbers["right_child"].astype(np.int64)):
        # Node k is made by the k-th split, of a leaf that is there already, so its number is above its parent's.
        wrong = np.flatnonzero((child < -leaves[tree]) | (child >= splits[tree]) | ((child >= 0) & (child <= node)))
        if len(wrong):
            raise ValueError(f"tree {tree[wrong[0]]} has a child that cannot be one")
        np.add.at(seen, first[tree] + leaves[tree] + child, 1)
    expected = np.ones(len(seen), np.int64)
    expected[(first + leaves)[splits > 0]] = 0
    expected[first[splits == 0]] = 0
    # Every leaf and every node but the first is the child of one node, and no node is below itself: a tree.
    if not np.array_equal(seen, expected):
        raise ValueError("the nodes of a tree make no tree")
