"""Heads: features float32 [rows, features] -> class probabilities float32 [rows, classes].

Here stand what all heads share: the protocol, how a head is made, how it reads a matrix that may lie on disk, and its
two files, `head.json` and `head.safetensors`. Each head lives in a module of its own, imported when asked for. Knows no
texts and no layers.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmembed.cache.derived import Derived
from llmembed.errors import ClassifierError, InputError, UsageError
from llmembed.saved import Arrays, SavedFiles, checked_arguments, checked_labels

# Where each head is: imported only when asked for, because torch, LightGBM and scikit-learn take seconds to import.
HEADS = {
    "logistic": ("llmembed.heads.logistic", "LogisticHead"),
    "lda": ("llmembed.heads.lda", "LDAHead"),
    "gbdt": ("llmembed.heads.gbdt", "GBDTHead"),
    "mlp": ("llmembed.heads.mlp", "MLPHead"),
}
JSON_FILE = "head.json"
ARRAYS_FILE = "head.safetensors"
# Arrays that every head has in it.
OFFSET, CLASS_WEIGHTS = "class_offset", "class_weights"
TREES_FILE = "head.txt"
FORMAT = 2
# A value standardised over n rows is at most sqrt(n): the limit touches only values that training never saw, and keeps
# squares and their sums finite in float32.
LARGEST = 1e3
# 128 MB in float32: what is in memory at a time of a matrix on disk.
BLOCK_VALUES = 2**25

Features = NDArray[np.float32]
Codes = NDArray[np.int64]


@runtime_checkable
class Matrix(Protocol):
    """Features [rows, features] whose rows are read when they are asked for, such as `llmembed.features.Features`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Give (rows, features)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Features:
        """Read the rows of a slice or an integer index, float32 [rows, features]."""
        ...

    def select_rows(self, rows: Codes) -> "Matrix":
        """Give some rows as a matrix, without reading them."""
        ...

    def memoize(self, what: Mapping[str, Any], make: Callable[[], Derived]) -> Derived:
        """Give arrays that `what` and this matrix determine: those of an earlier run, or made now."""
        ...


# What a head is fitted on: an array, or a matrix whose rows may lie on disk.
Rows = ArrayLike | Matrix
Validation = tuple[Rows, ArrayLike]
# How much a row of each class counts: by a rule, or by its label.
ClassWeight = str | dict[Any, float] | None


class Head(Protocol):
    """A scikit-learn classifier that also saves itself without pickle.

    Attributes:
        classes_: the labels [classes], sorted; column i of the probabilities belongs to `classes_[i]`.
        class_weights_: how much the decision favours each class, float32 [classes]: 1 without a `class_weight`.
        n_features_in_: the number of features that it was fitted on.
        notes_: what the fit chose by itself, as plain JSON values.
    """

    classes_: NDArray[Any]
    class_weights_: Features
    n_features_in_: int
    notes_: dict[str, Any]

    def fit(
        self, X: Rows, y: ArrayLike, *, validation: Validation | None = None, groups: ArrayLike | None = None
    ) -> "Head":
        """Fit on X [rows, features] and the labels y [rows]; `validation` (X, y) chooses, it is never trained on.

        Rows of one of the `groups` [rows] are held out together, as copies of a text must be; without, each for itself.
        """
        ...

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the label of each row [rows]: what `decide` says of its probabilities."""
        ...

    def predict_proba(self, X: ArrayLike) -> Features:
        """Give the class probabilities, float32 [rows, classes], whatever the class weights; each row sums to 1."""
        ...

    def check_parameters(self) -> None:
        """Refuse parameters that no fit can work with, as an InputError or UsageError."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Give the parameters that the head was made with."""
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted head into `folder`."""
        ...

    @classmethod
    def load(cls, files: SavedFiles) -> "Head":
        """Make the head of which `save` wrote the files."""
        ...


def make_head(name: str, *, seed: int = 0, **params: Any) -> Head:
    """Make an unfitted head.

    Raises:
        UsageError: no such head, it has no such parameter, or cannot work with the value of one.
    """
    head_class = _head_class(name)
    known = sorted(head_class().get_params())
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise UsageError(f"Head {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(known)}.")
    head: Head = head_class(seed=seed, **params)
    try:
        head.check_parameters()
    except InputError as error:
        raise UsageError(str(error)) from error
    return head


def load_head(source: Path | SavedFiles) -> Head:
    """Load the head, of whichever kind, that was saved into a folder; its files may have been read already.

    Raises:
        ClassifierError: no head there, or a file of it is damaged.
    """
    names = (JSON_FILE, ARRAYS_FILE, TREES_FILE)
    files = SavedFiles.read(source, names) if isinstance(source, Path) else source
    if JSON_FILE not in files.contents:
        raise ClassifierError(f"There is no head in {files.folder}: {JSON_FILE} is missing.")
    name = files.read_json(JSON_FILE).get("head")
    if not isinstance(name, str) or name not in HEADS:
        raise files.damaged(JSON_FILE, f"it names the head {name!r}; known are {', '.join(HEADS)}")
    head: Head = _head_class(name).load(files)
    return head


def head_name(head: Head) -> str:
    """Return the name of a head, one of `HEADS`."""
    return next(name for name, (_, class_name) in HEADS.items() if class_name == type(head).__name__)


def write_head(folder: Path, head: Any, arrays: Arrays) -> None:
    """Write `head.json` (parameters, classes, notes, what was fitted) and `head.safetensors` (arrays).

    What every head has, such as its calibration, is written with them.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    params = head.get_params()
    if isinstance(params["class_weight"], dict):
        # The keys of JSON are strings, labels may be numbers.
        params["class_weight"] = list(params["class_weight"].items())
    content = {
        "format": FORMAT,
        "head": head_name(head),
        "params": params,
        "classes": head.classes_.tolist(),
        "notes": head.notes_,
        "fitted": {"features": head.n_features_in_, "sharpness": head.sharpness_},
    }
    arrays = {**arrays, OFFSET: head.offset_, CLASS_WEIGHTS: head.class_weights_}
    # Not save_file: on a full disk its error is none of the operating system's.
    content_of_arrays = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    (folder / ARRAYS_FILE).write_bytes(content_of_arrays)
    # Parameters from a search over an array are NumPy's scalars.
    text = json.dumps(content, indent=2, default=np.generic.item)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")


def read_head(files: SavedFiles, head_class: type) -> tuple[Any, Arrays]:
    """Read what `write_head` wrote: a head with all that every head has set, and the arrays that are its own.

    Raises:
        ClassifierError: a file is missing or damaged.
    """
    content = files.read_json(JSON_FILE)
    if content.get("format") != FORMAT:
        raise ClassifierError(
            f"{files.folder / JSON_FILE} has format {content.get('format')}; this llmembed reads format {FORMAT}, "
            "whose probabilities do not depend on class weights. Train the classifier again with `llmembed train`."
        )
    try:
        params = content["params"]
        if isinstance(params, dict) and isinstance(params.get("class_weight"), list):
            params = {**params, "class_weight": dict(params["class_weight"])}
        head = head_class(**checked_arguments(head_class.__init__, params))  # type: ignore[misc]
        head.classes_ = np.asarray(checked_labels(content["classes"]))
        head.notes_, fitted = dict(content["notes"]), dict(content["fitted"])
        if fitted.keys() != {"features", "sharpness"} or not all(0 < value < math.inf for value in fitted.values()):
            raise ValueError("the fitted numbers are not features and sharpness, both positive and finite")
        head.n_features_in_, head.sharpness_ = fitted["features"], fitted["sharpness"]
        if type(head.n_features_in_) is not int:
            raise TypeError("the number of features is no whole number")
    except (KeyError, TypeError, ValueError) as error:
        raise files.damaged(JSON_FILE, f"{type(error).__name__}: {error}") from error
    arrays = files.read_arrays(ARRAYS_FILE)
    shared = {name: arrays.pop(name) for name in (OFFSET, CLASS_WEIGHTS) if name in arrays}
    files.expect_arrays(ARRAYS_FILE, shared, dict.fromkeys((OFFSET, CLASS_WEIGHTS), head.classes_.shape))
    head.offset_, head.class_weights_ = shared[OFFSET], shared[CLASS_WEIGHTS]
    if not (head.class_weights_ > 0).all():
        raise files.damaged(ARRAYS_FILE, f"{CLASS_WEIGHTS!r} holds weights that are not positive")
    return head, arrays


def select_rows(X: "Features | Matrix", rows: Codes) -> "Features | Matrix":
    """Give some rows, without reading those that lie on disk."""
    return X[rows] if isinstance(X, np.ndarray) else X.select_rows(rows)


def row_blocks(X: "Features | Matrix", values: int = BLOCK_VALUES) -> Iterator[tuple[slice, Features]]:
    """Read the rows in order, so many that they hold `values` values at a time; the next block is read meanwhile.

    Yields:
        which rows, and they, float32 [rows, features].
    """
    step = max(1, values // X.shape[1])
    parts = [slice(start, min(start + step, len(X))) for start in range(0, len(X), step)]
    if isinstance(X, np.ndarray):
        yield from ((part, X[part]) for part in parts)
        return
    yield from zip(parts, read_ahead(X.__getitem__, parts), strict=True)


def read_ahead(read: Callable[[Any], Features], parts: Iterable[Any]) -> Iterator[Features]:
    """Read the parts one after the other, each while the one before it is worked on."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Features]] = deque()
        for part in parts:
            waiting.append(reader.submit(read, part))
            if len(waiting) == 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def weigh_classes(class_weight: ClassWeight, codes: Codes, classes: NDArray[Any]) -> Features:
    """Give the weight of a row of each class, float32 [classes], 1 on average over the rows.

    It is the same for all classes (None), one over the rows of the class (`balanced`), the root of that (`sqrt`), or
    proportional to what a dict has for the label, 1 if nothing.

    Raises:
        InputError: none of them, a weight that is not positive, or a dict with labels that no row has.
    """
    exponents = {None: 0.0, "sqrt": 0.5, "balanced": 1.0}
    counts = np.bincount(codes, minlength=len(classes)).clip(min=1)
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


def encode(y: ArrayLike, classes: NDArray[Any]) -> Codes:
    """Give the position of each label [rows] in the sorted `classes`, -1 for a label that is not among them."""
    labels = np.asarray(y)
    codes = np.searchsorted(classes, labels).clip(0, len(classes) - 1)
    return np.where(classes[codes] == labels, codes, -1)


def decide(probabilities: Features, class_weights: Features) -> Codes:
    """Give the class of each row, int64 [rows]: the most probable one after each was multiplied by its weight."""
    return np.asarray((probabilities * class_weights).argmax(axis=1), np.int64)


def softmax(logits: NDArray[np.floating]) -> Features:
    """Give probabilities float32 [rows, classes] for logits [rows, classes]."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: Features = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def _head_class(name: str) -> Any:
    if name not in HEADS:
        raise UsageError(f"There is no head {name!r}; there are {', '.join(HEADS)}.")
    module, class_name = HEADS[name]
    return getattr(import_module(module), class_name)
