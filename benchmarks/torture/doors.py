"""The public doors that attacks go through, as functions for a child; an error of ours becomes its line and exit code.

If the interface of llmembed changes, this is the one file of the torture that has to follow.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmembed.cache import Cache
from llmembed.classifier import Classifier
from llmembed.cli import main
from llmembed.datasets import Dataset, load_dataset
from llmembed.errors import LLMEmbedError
from llmembed.prediction import predict_dataset
from llmembed.training import train

# So few texts a shard that a small data set has several.
SHARD_ROWS = 64
CACHE = Path("cache")
DATASET = "films"


def speaking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let an error of llmembed end the process as the command line does."""

    @wraps(function)
    def with_a_line(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except LLMEmbedError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)

    return with_a_line


def command(*words: Any) -> None:
    """Run the command line with these words."""
    small_shards()
    sys.argv = ["llmembed", *map(str, words)]
    main()


def small_shards() -> None:
    """Make shards small, wherever the constant is."""
    for name, module in list(sys.modules.items()):
        if name.startswith("llmembed") and hasattr(module, "SHARD_ROWS"):
            module.SHARD_ROWS = SHARD_ROWS


@speaking
def rows() -> str:
    """Digest what the cache last extracted has for the data set, bit for bit, checked as for a training."""
    return digest_rows(load_dataset(DATASET))


def digest_rows(dataset: Dataset) -> str:
    """Digest the embeddings of a data set's texts."""
    matrix = Cache.latest(CACHE, dataset.name).matrix(dataset.texts())
    return sha256(matrix.tobytes()).hexdigest()


@speaking
def numbers(folder: str) -> str:
    """Digest a classifier's labels and its probabilities of the test split, to the last bit."""
    return digest_numbers(Path(folder), load_dataset(DATASET))


def digest_numbers(folder: Path, dataset: Dataset) -> str:
    """Digest a classifier's labels and its probabilities of a data set's test split."""
    classifier = Classifier.load(folder)
    probabilities = predict_dataset(classifier, dataset, root=CACHE)
    return sha256(json.dumps(list(classifier.record.labels)).encode() + probabilities.tobytes()).hexdigest()


@speaking
def trained(head: str, out: str, **options: Any) -> str:
    """Train and give the digest of what the new classifier says."""
    return digest_training(load_dataset(DATASET), head, Path(out), **options)


def digest_training(dataset: Dataset, head: str, out: Path, **options: Any) -> str:
    """Train and give the digest of the report: a training reads every committed row."""
    training = train(dataset, root=CACHE, head=head, out=out, **options)
    report = training.to_json()
    judged = {name: report[name] for name in ("accuracy", "macro_f1", "log_loss", "calibration_error", "confusion")}
    return json.dumps(judged, sort_keys=True)
