"""Everything that a child needs, imported once: children are forked from a process that has done this and nothing else.

To start anew costs six seconds of imports, to fork a few milliseconds. Nothing is computed here: threads do not survive
a fork.
"""

import multiprocessing
from contextlib import suppress
from importlib import import_module

MODULES = (
    "lightgbm",
    "numpy",
    "polars",
    "pyarrow.parquet",
    "safetensors.numpy",
    "safetensors.torch",
    "scipy.optimize",
    "sklearn.metrics",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "llmembed.backbones.transformers",
    "llmembed.cli",
    "llmembed.experiments.comparison",
    "llmembed.extraction",
    "llmembed.heads.gbdt",
    "llmembed.heads.lda",
    "llmembed.heads.logistic",
    "llmembed.heads.mlp",
    "llmembed.prediction",
    "llmembed.reports.terminal",
    "llmembed.training",
    "benchmarks.torture.doors",
)

forking = True
_get_context = multiprocessing.get_context


def get_context(method: str | None = None) -> object:
    """Return the context asked for; what would be spawned is forked from the server, which is sixty times quicker."""
    return _get_context("forkserver" if method == "spawn" and forking else method)


multiprocessing.get_context = get_context
for name in MODULES:
    import_module(name)
with suppress(ImportError):
    # A process started under pytest imports its command.
    import_module("pytest")
