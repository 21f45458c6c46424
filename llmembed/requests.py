"""Requests: what a data set is read by, what an extraction and what a training are asked for, as data.

In: arguments of `load_dataset`, `extract` and `train`. Out: the same, frozen: recorded with what came of them, and
handed on by errors that an extraction would fix. Knows no data set, no cache and no head.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from llmembed.choices import Fusion, OnBadValue, OnEmpty, Pooling, StorageDtype


class Reading(BaseModel):
    """The arguments of `load_dataset`: what is read, its columns, what becomes of empty texts, how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    argument: str
    text_column: str = "text"
    label_column: str = "label"
    on_empty: OnEmpty = "error"
    limit: int | None = None

    @property
    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return [self.text_column, self.label_column]


class ExtractionRequest(BaseModel):
    """The arguments of an extraction; what is None comes from the data set's job."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reading: Reading
    backbone: str | None = None
    layers: tuple[int, ...] | None = None
    pooling: Pooling | None = None
    max_length: int | None = None
    template: str | None = None
    dtype: StorageDtype | None = None
    on_bad_value: OnBadValue = "error"
    root: str = "cache"


class TrainingSpec(BaseModel):
    """How a classifier is fitted; with the rows, the machine and its threads it fixes every number.

    Attributes:
        fusion: how layers become one vector.
        head: what learns from the vector.
        head_options: parameters of the head; weights of classes may stand by label.
        seed: fixes every random choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fusion: Fusion = "concat"
    head: str = "mlp"
    head_options: dict[str, Any] = {}
    seed: int = 0
