"""Classes: labels as indices, how much a row of each class counts, and the class that is decided on.

In: labels [rows], or probabilities [rows, classes]. Out: class indices int64 [rows], weights float32 [classes]. Knows
no features.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmembed.errors import InputError
from llmembed.matrix import FloatArray, IntArray

# How much a row of each class counts: by a rule, or by its label.
ClassWeight = str | dict[Any, float] | None


def weigh_classes(class_weight: ClassWeight, y_encoded: IntArray, classes: NDArray[Any]) -> FloatArray:
    """Return the weight of a row of each class, float32 [classes], 1 on average over the rows.

    It is the same for all classes (None), one over the rows of the class (`balanced`), the root of that (`sqrt`), or
    proportional to what a dict has for the label, 1 if nothing.

    Raises:
        InputError: none of them, a weight that is not positive, or a dict with labels that no row has.
    """
    exponents = {None: 0.0, "sqrt": 0.5, "balanced": 1.0}
    counts = np.bincount(y_encoded, minlength=len(classes)).clip(min=1)
    if isinstance(class_weight, dict):
        labels = classes.tolist()
        unknown = class_weight.keys() - set(labels)
        # With a weight for every label, a fold that lacks one of the classes is no mistake.
        if unknown and not class_weight.keys() > set(labels):
            raise InputError(f"class_weight names {list(unknown)}; the labels are {labels}.")
        weights = np.array([class_weight.get(label, 1.0) for label in labels])
        if not (weights > 0).all():
            raise InputError(f"class_weight is {class_weight}; every weight must be positive.")
    elif class_weight in exponents:
        weights = counts ** -exponents[class_weight]
    else:
        raise InputError(f"class_weight is {class_weight!r}; it may be 'balanced', 'sqrt', None or a dict.")
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), np.float32)


def encode(y: ArrayLike, classes: NDArray[Any]) -> IntArray:
    """Return the position of each label [rows] in the sorted `classes`, -1 for a label that is not among them."""
    labels = np.asarray(y)
    y_encoded = np.searchsorted(classes, labels).clip(0, len(classes) - 1)
    return np.where(classes[y_encoded] == labels, y_encoded, -1)


def decide(probabilities: FloatArray, class_weights: FloatArray) -> IntArray:
    """Return the class of each row, int64 [rows]: the most probable one after each was multiplied by its weight."""
    return np.asarray((probabilities * class_weights).argmax(axis=1), np.int64)
