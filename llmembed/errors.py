"""The errors that a user can act on.

Each message says what was found, where, what was expected and the command that mends it. The command line prints the
message on one line and exits with `exit_code`; any other exception is a fault of llmembed and keeps its traceback.
"""

from collections.abc import Mapping


class LLMEmbedError(Exception):
    """Base of all errors that a user can act on; never raised itself."""

    exit_code = 1


class UsageError(LLMEmbedError):
    """Options that contradict each other or name something that does not exist."""

    exit_code = 2


class DatasetError(LLMEmbedError):
    """The texts or labels cannot be used as they are."""

    exit_code = 3


class BackboneError(LLMEmbedError):
    """The language model is missing, unsuitable, or gave values that must not be stored."""

    exit_code = 4


class EngineError(BackboneError):
    """What runs the model died or ran out of memory; another process may still succeed."""


class TextError(BackboneError):
    """Texts that a backbone cannot embed, each on its own; `reasons` says why, by their position."""

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)

    def __reduce__(self) -> tuple[type["TextError"], tuple[str, dict[int, str]]]:
        return type(self), (str(self), self.reasons)


class CacheError(LLMEmbedError):
    """The embeddings on disk are missing, incomplete or damaged."""

    exit_code = 5


class ClassifierError(LLMEmbedError):
    """A saved classifier is missing, damaged, or does not fit what it is used with."""

    exit_code = 6


class InputError(ClassifierError, ValueError):
    """Features, labels or parameters that a head cannot use; a ValueError, as scikit-learn expects."""
