"""Choices: every closed set of names that a user picks from, written once.

Nothing comes in; types go out, whose members `typing.get_args` lists. Knows nothing of what the names stand for.
"""

from typing import Literal

Pooling = Literal["mean", "max", "first", "last"]
StorageDtype = Literal["float16", "float32"]
EngineName = Literal["vllm", "transformers"]
Fusion = Literal["last", "mean", "max", "concat", "gram", "weighted", "cooccurrence"]
HeadName = Literal["mlp", "gbdt", "logistic", "lda"]
# How much the rows of rare classes count; `none` stands for alike.
ClassWeightRule = Literal["none", "sqrt", "balanced"]
Split = Literal["train", "validation", "test"]
OnEmpty = Literal["error", "skip"]
OnBadValue = Literal["error", "skip"]
