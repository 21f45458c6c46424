"""llmembed: run a frozen language model once over a data set, then fit classifiers from disk in seconds.

The names below are loaded when they are first used: importing the package loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmembed.cache import open_cache
    from llmembed.classifier import load_classifier
    from llmembed.datasets import load_dataset
    from llmembed.extraction import extract
    from llmembed.heads import make_head
    from llmembed.prediction import predict
    from llmembed.training import train

__version__ = "0.2.0"
__all__ = ["extract", "load_classifier", "load_dataset", "make_head", "open_cache", "predict", "train"]

_HOMES = {
    "extract": "extraction",
    "load_classifier": "classifier",
    "load_dataset": "datasets",
    "make_head": "heads",
    "open_cache": "cache",
    "predict": "prediction",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
