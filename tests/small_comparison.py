"""A comparison that takes seconds: one quick head, two fusions, two layers, two folds."""

from pathlib import Path

from llmembed.datasets import Dataset
from llmembed.experiments.comparison import Leaderboard, compare


def small_comparison(dataset: Dataset, root: Path, folder: Path, **options: object) -> Leaderboard:
    return compare(
        dataset,
        root=root,
        results=folder / "comparisons",
        out=folder / "model",
        **{"heads": ["logistic"], "fusions": ["mean", "concat"], "layers": (4, 6), "folds": 2, **options},
    )
