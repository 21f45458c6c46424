"""Multi-layer perceptron: features float32 [rows, features] -> class probabilities, through one or more hidden layers.

Trained on the CPU in a few passes over the rows; the pass with the best validation result is kept.
Knows no texts, layers or fusion.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from llmembed.heads import (
    Features,
    Validation,
    as_features,
    distinct,
    encode,
    fit_sharpness,
    hold_out,
    log_loss,
    read_head,
    softmax,
    write_head,
)

PREDICT_ROWS = 4096
WEIGHTS_TO_SHARE = 2**18


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear, layer normalisation, GELU, dropout for each hidden layer, then linear; AdamW, one-cycle learning rate.

    Args:
        hidden: widths of the hidden layers, from the features on; with none the network is linear.
        dropout: share of hidden units that a training step leaves out.
        learning_rate: the peak of the cycle (Smith & Topin 2018).
        weight_decay: of AdamW.
        epochs: passes over the rows; None chooses 8 to 20, more for fewer rows.
        batch_rows: rows per step; None chooses 32 to 256, more for more rows.
        seed: fixes initial weights, order, dropout, and the validation rows where none are given.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        epochs: int | None = None,
        batch_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_rows = batch_rows
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: Validation | None = None) -> Self:
        """Fit on X [rows, features] and labels y [rows]; without `validation`, a tenth of the rows is held out for it.

        Raises:
            ClassifierError: NaN in X, or fewer than two classes.
        """
        features = as_features(X)
        self.classes_ = distinct(y)
        self.n_features_in_ = features.shape[1]
        codes = encode(y, self.classes_)
        if validation is None:
            train, held = hold_out(codes, seed=self.seed)
            features, codes, X_val, val_codes = features[train], codes[train], features[held], codes[held]
        else:
            X_val = as_features(validation[0], self.n_features_in_)
            val_codes = encode(validation[1], self.classes_)
        # The seed must fix the fit without changing the random state of the program around it.
        with torch.random.fork_rng(devices=[]), _threads(self._widths()[1] * self.n_features_in_):
            torch.manual_seed(self.seed)
            self._train(features, codes, X_val, val_codes)
        self.sharpness_ = fit_sharpness(self._logits(X_val), val_codes)
        return self

    def _train(self, features: Features, codes: NDArray[Any], X_val: Features, val_codes: NDArray[Any]) -> None:
        rows = len(features)
        epochs = self.epochs or int(np.clip(450_000 // rows, 8, 20))
        batch_rows = self.batch_rows or int(np.clip(2 ** round(math.log2(rows / 64)), 32, 256))
        self.network_ = self._network()
        optimiser = torch.optim.AdamW(
            self.network_.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        steps = epochs * math.ceil(rows / batch_rows)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
        )
        X, y = torch.from_numpy(features), torch.from_numpy(codes)
        best: tuple[float, float] = (-1.0, -math.inf)
        kept = self.network_.state_dict()
        for epoch in range(epochs):
            self._pass(X, y, batch_rows, optimiser, schedule)
            score = self._score(X_val, val_codes)
            if score >= best or not len(val_codes):
                best, best_epoch = score, epoch + 1
                kept = {name: tensor.clone() for name, tensor in self.network_.state_dict().items()}
        self.network_.load_state_dict(kept)
        self.notes_ = {
            "epochs": epochs,
            "best_epoch": best_epoch,
            "batch_rows": batch_rows,
            "validation_rows": len(val_codes),
        }

    def _pass(self, X: torch.Tensor, y: torch.Tensor, batch_rows: int, optimiser: Any, schedule: Any) -> None:
        self.network_.train()
        for rows in torch.split(torch.randperm(len(X)), batch_rows):
            loss = nn.functional.cross_entropy(self.network_(X.index_select(0, rows)), y.index_select(0, rows))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()

    def _score(self, X_val: Features, val_codes: NDArray[Any]) -> tuple[float, float]:
        """Give validation accuracy, then the negative loss for epochs of equal accuracy."""
        if not len(val_codes):
            return 0.0, 0.0
        logits = self._logits(X_val)
        return float(np.mean(logits.argmax(axis=1) == val_codes)), -log_loss(logits, val_codes)

    def _widths(self) -> list[int]:
        return [self.n_features_in_, *self.hidden, len(self.classes_)]

    def _network(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        widths = self._widths()
        for width, following in pairwise(widths[:-1]):
            layers += [nn.Linear(width, following), nn.LayerNorm(following), nn.GELU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    def _logits(self, features: Features) -> Features:
        self.network_.eval()
        with torch.inference_mode():
            parts = [self.network_(part).numpy() for part in torch.split(torch.from_numpy(features), PREDICT_ROWS)]
        return np.concatenate(parts)

    def predict_proba(self, X: ArrayLike) -> Features:
        """Give the class probabilities, float32 [rows, classes].

        Raises:
            ClassifierError: another number of features than in training, or NaN.
        """
        return softmax(self.sharpness_ * self._logits(as_features(X, self.n_features_in_)))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the most probable label of each row [rows]."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def save(self, folder: Path) -> None:
        """Write `head.json` and `head.safetensors` into `folder`."""
        arrays = {name: tensor.numpy() for name, tensor in self.network_.state_dict().items()}
        write_head(folder, self, arrays, features=self.n_features_in_, sharpness=self.sharpness_)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a head that `save` wrote.

        Raises:
            ClassifierError: a file is missing or damaged.
        """
        head: Self
        head, arrays, fitted = read_head(folder, cls)
        # JSON has no tuples; equal parameters must stay equal.
        head.hidden = tuple(head.hidden)
        head.sharpness_ = fitted["sharpness"]
        head.network_ = head._network()
        head.network_.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return head


@contextmanager
def _threads(weights: int) -> Iterator[None]:
    """Use one thread for a network too small to share, and put the number back afterwards.

    Threads that wait for each other at every step are slow beside a busy neighbour: 20 passes over 1,257 rows with
    16,384 weights took 153 s with 4 threads and 7 s with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if weights >= WEIGHTS_TO_SHARE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
