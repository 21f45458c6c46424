"""Heads: features float32 [rows, features] -> class probabilities float32 [rows, classes].

Here stand the protocol, which heads there are, and how one is made or loaded. Each lives in a module of its own,
imported when asked for. Knows no texts, no layers and no cache.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import ArrayLike, NDArray

from llmembed.errors import ClassifierError, InputError, UsageError
from llmembed.heads.files import ARRAYS_FILE, JSON_FILE, TREES_FILE
from llmembed.matrix import FloatArray, MatrixLike
from llmembed.saved import SavedFiles


class HeadEntry(NamedTuple):
    """Where a head is, and whether it can learn the fusion of the layers that its features are made of."""

    module: str
    class_name: str
    learns_fusions: bool = False


# Imported only when asked for, because torch, LightGBM and scikit-learn take seconds to import.
HEADS = {
    "mlp": HeadEntry("llmembed.heads.mlp", "MLPHead", learns_fusions=True),
    "gbdt": HeadEntry("llmembed.heads.gbdt", "GBDTHead"),
    "logistic": HeadEntry("llmembed.heads.logistic", "LogisticHead"),
    "lda": HeadEntry("llmembed.heads.lda", "LDAHead"),
}
Validation = tuple[MatrixLike, ArrayLike]


class Head(Protocol):
    """A scikit-learn classifier that also saves itself without pickle.

    Attributes:
        classes_: the labels [classes], sorted; column i of the probabilities belongs to `classes_[i]`.
        class_weights_: how much the decision favours each class, float32 [classes]: 1 without a `class_weight`.
        n_features_in_: the number of features that it was fitted on.
        fit_info_: what the fit chose by itself, as plain JSON values.
    """

    classes_: NDArray[Any]
    class_weights_: FloatArray
    n_features_in_: int
    fit_info_: dict[str, Any]

    def fit(
        self, X: MatrixLike, y: ArrayLike, *, validation: Validation | None = None, groups: ArrayLike | None = None
    ) -> "Head":
        """Fit on X [rows, features] and the labels y [rows]; `validation` (X, y) chooses, it is never trained on.

        Rows of one of the `groups` [rows] are held out together, as copies of a text must be; without, each for itself.
        """
        ...

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the label of each row [rows]: what `decide` says of its probabilities."""
        ...

    def predict_proba(self, X: ArrayLike) -> FloatArray:
        """Return the class probabilities, float32 [rows, classes], whatever the class weights; each row sums to 1."""
        ...

    def check_parameters(self) -> None:
        """Refuse parameters that no fit can work with, as an InputError or UsageError."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters that the head was made with."""
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
    return next(name for name, entry in HEADS.items() if entry.class_name == type(head).__name__)


def learns_fusions(name: str) -> bool:
    """Return whether a head can learn the fusion of the layers that its features are made of.

    Raises:
        UsageError: no such head.
    """
    return _entry(name).learns_fusions


def _entry(name: str) -> HeadEntry:
    if name not in HEADS:
        raise UsageError(f"There is no head {name!r}; there are {', '.join(HEADS)}.")
    return HEADS[name]


def _head_class(name: str) -> Any:
    entry = _entry(name)
    return getattr(import_module(entry.module), entry.class_name)
