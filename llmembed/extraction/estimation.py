"""What an extraction would cost: all missing texts tokenised, a sample of them embedded; writes nothing.

In: a plan. Out: an `Estimate`.
"""

import time
from contextlib import closing
from dataclasses import dataclass

from llmembed.backbones import Backbone, Tokens, load_backbone
from llmembed.devices import visible_gpus
from llmembed.errors import TextError
from llmembed.extraction import Plan, row_bytes
from llmembed.extraction.resources import CHOOSE, Resources

# The timed sample.
SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Estimate:
    """What an extraction would do: `expected_seconds` comes from a short timed sample of the missing texts."""

    rows: int
    missing: int
    tokens: int
    truncated: int
    bytes: int
    expected_seconds: float
    cache: str


def estimate(plan: Plan, resources: Resources = CHOOSE) -> Estimate:
    """Return what an extraction would do, from all texts tokenised and a sample of them embedded; writes nothing."""
    resources.check()
    processes = max(len(resources.groups(visible_gpus())), 1)
    missing = list(plan.missing().values())
    tokens, truncated, seconds = 0, 0, 0.0
    if missing:
        with closing(load_backbone(plan.spec, plan.files, **resources.loading)) as backbone:
            all_tokens, missing = _tokenized(backbone, missing)
            tokens, truncated = int(all_tokens.lengths.sum()), int(all_tokens.truncated.sum())
            sample = backbone.tokenize(missing[:: max(1, len(missing) // SAMPLE_ROWS)])
            start = time.perf_counter()
            list(backbone.embed([sample]))
            seconds = (time.perf_counter() - start) * tokens / int(sample.lengths.sum())
    return Estimate(
        rows=len(plan.dataset.table),
        missing=len(missing),
        tokens=tokens,
        truncated=truncated,
        bytes=len(missing) * row_bytes(plan.spec),
        expected_seconds=round(seconds / processes, 1),
        cache=plan.cache.url,
    )


def _tokenized(backbone: Backbone, texts: list[str]) -> tuple[Tokens, list[str]]:
    try:
        return backbone.tokenize(texts), texts
    except TextError as error:
        texts = [text for row, text in enumerate(texts) if row not in error.reasons]
        return backbone.tokenize(texts), texts
