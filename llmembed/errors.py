"""The errors that a user can act on.

    LLMEmbedError
        UsageError          exit code 2
        DatasetError        3
        BackboneError       4
            EngineError
            TextError
        CacheError          5
        ClassifierError     6
            InputError      also a ValueError

Each sentence says what was found, where, and what was expected, and names arguments as Python writes them, between
backticks: `layers=(1, 2)`. What would help is a fact of the error, not a part of its sentence. Any other exception is a
fault of llmembed and keeps its traceback. Knows no command.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmembed.requests import ExtractionRequest


class LLMEmbedError(Exception):
    """Base of all errors that a user can act on; never raised itself."""

    exit_code = 1


class UsageError(LLMEmbedError):
    """Arguments that contradict each other or name something that does not exist.

    Attributes:
        extractions: what `extract` could be asked for so that the arguments are right.
    """

    exit_code = 2

    def __init__(self, sentence: str, *, extractions: Sequence["ExtractionRequest"] = ()) -> None:
        super().__init__(sentence)
        self.extractions = tuple(extractions)


class DatasetError(LLMEmbedError):
    """The texts or labels cannot be used as they are."""

    exit_code = 3


class BackboneError(LLMEmbedError):
    """The language model is missing, unsuitable, or gave values that must not be stored.

    Attributes:
        requirement: the package that brings the weights, as pip is asked for it; empty if there is none.
        reinstall: the package is there, but damaged.
    """

    exit_code = 4

    def __init__(self, sentence: str, *, requirement: str = "", reinstall: bool = False) -> None:
        super().__init__(sentence)
        self.requirement, self.reinstall = requirement, reinstall


class EngineError(BackboneError):
    """What runs the model died or ran out of memory; another process may still succeed."""


class TextError(BackboneError):
    """Texts that a backbone cannot embed, each on its own; `reasons` says why, by their position."""

    def __init__(self, sentence: str, reasons: Mapping[int, str]) -> None:
        super().__init__(sentence)
        self.reasons = dict(reasons)

    def __reduce__(self) -> tuple[type["TextError"], tuple[str, dict[int, str]]]:
        return type(self), (str(self), self.reasons)


class CacheError(LLMEmbedError):
    """The embeddings on disk are missing, incomplete or damaged.

    Attributes:
        cache: URL of the cache, or of the root in which there is none.
        missing, total: so many of so many texts, shards or caches cannot be had.
        shard: name of the first damaged shard.
        extractions: what `extract` must be asked for so that nothing is missing or damaged any more.
    """

    exit_code = 5

    def __init__(
        self,
        sentence: str,
        *,
        cache: str = "",
        missing: int = 0,
        total: int = 0,
        shard: str = "",
        extractions: Sequence["ExtractionRequest"] = (),
    ) -> None:
        super().__init__(sentence)
        self.cache, self.missing, self.total, self.shard = cache, missing, total, shard
        self.extractions = tuple(extractions)


class ClassifierError(LLMEmbedError):
    """A saved classifier is missing, damaged, or does not fit what it is used with.

    Attributes:
        folder: the classifier, where another training in its place would help; else empty.
    """

    exit_code = 6

    def __init__(self, sentence: str, *, folder: str = "") -> None:
        super().__init__(sentence)
        self.folder = folder


class InputError(ClassifierError, ValueError):
    """Features, labels or parameters that a head cannot use; a ValueError, as scikit-learn expects."""
