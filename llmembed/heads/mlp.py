"""Multi-layer perceptron: features float32 [rows, features] -> class probabilities, through one or more hidden layers.

A few networks are trained together, in a few passes over the rows, on the CPU or a GPU; their logits are averaged. Rows
that lie on disk are read ahead, in blocks. It may learn the fusion of the layers that make up its features.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from llmembed.devices import find_device
from llmembed.errors import InputError
from llmembed.features.fusion import LEARNED, Layout
from llmembed.heads.base import BaseHead, TrainingRows, Unseen
from llmembed.heads.classes import ClassWeight
from llmembed.heads.files import ARRAYS_FILE, JSON_FILE
from llmembed.heads.learned import Cooccurrence, WeightedMean
from llmembed.heads.parameters import Range
from llmembed.heads.steps import Step, limit_threads, shuffle_rows
from llmembed.matrix import FloatArray, IntArray, Matrix, row_blocks
from llmembed.memory import total_memory
from llmembed.saved import Arrays, SavedFiles

# A weight in float32, its gradient and the two moments of Adam.
BYTES_PER_WEIGHT = 16


class MLPHead(BaseHead):
    """Linear, layer normalisation, GELU, dropout for each hidden layer, then linear; AdamW, one-cycle learning rate.

    The schedule is fixed, and its last pass counts. To choose the best pass by held-out rows was worse than that by 0.2
    to 0.3 points, and to train on the held-out tenth as well better by as much (cross-validation on R8, R52 and MR). So
    without `validation` only the first member leaves a tenth of the rows out, which then calibrates the probabilities.

    Args:
        hidden: widths of the hidden layers, from the features on; with none the network is linear.
        dropout: share of hidden units that a training step leaves out.
        learning_rate: the peak of the cycle (Smith & Topin 2018).
        weight_decay: of AdamW.
        epochs: passes over the rows; None chooses 5 to 20, more for fewer rows and for more classes.
        batch_rows: rows per step; None chooses 32 to 256, more for more rows.
        ensemble_size: networks that differ in their initial weights and dropout; their logits are averaged.
        calibrate: without it, and without `validation`, no rows are held out, and probabilities are too sure.
        class_weight: `balanced` lets every class count alike in the loss; `sqrt` goes half of the way, which on R52
            gave 4 points of macro-F1 and cost no accuracy; None counts every row alike; a dict has weights by label.
        fusion: None, or `weighted` or `cooccurrence`: how the network itself fuses the layers that X has side by side.
        layout: for that, the number of layers and the dim of each backbone in X.
        compressed: width to which `cooccurrence` compresses every layer.
        device: where it is trained, such as `cpu` or `cuda:1`; None takes a GPU if there is one.
        seed: fixes initial weights, order, dropout, and the rows that are held out.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "hidden": Range(int, 1, items=0),
        "dropout": Range(float, 0, 0.99),
        "learning_rate": Range(float, 1e-9, 1e3),
        "weight_decay": Range(float, 0, 1e3),
        "epochs": Range(int, 1, optional=True),
        "batch_rows": Range(int, 1, optional=True),
        "ensemble_size": Range(int, 1),
        "compressed": Range(int, 1),
    }

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        epochs: int | None = None,
        batch_rows: int | None = None,
        ensemble_size: int = 2,
        calibrate: bool = True,
        class_weight: ClassWeight = "sqrt",
        fusion: str | None = None,
        layout: Layout = (),
        compressed: int = 256,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_rows = batch_rows
        self.ensemble_size = ensemble_size
        self.calibrate = calibrate
        self.class_weight = class_weight
        self.fusion = fusion
        self.layout = layout
        self.compressed = compressed
        self.device = device
        self.seed = seed

    def check_parameters(self) -> None:
        """Refuse parameters that no fit can work with, before it reads or allocates anything.

        Raises:
            InputError: the seed, or a number of units or networks, is none.
            UsageError: the device that was asked for is not here.
        """
        super().check_parameters()
        if self.device is not None:
            find_device(self.device)

    def _check_size(self) -> None:
        """Refuse networks that are larger than the machine, before they are made.

        Raises:
            InputError: they are, or the layout does not make up the features.
        """
        try:
            # On the device `meta` nothing is allocated.
            with torch.device("meta"):
                weights = int(self.ensemble_size) * sum(weight.numel() for weight in self._member().parameters())
        except (RuntimeError, OverflowError, TypeError):
            # More weights than the type of a size can count.
            weights = 2**63
        needed, there = weights * BYTES_PER_WEIGHT, total_memory()
        if needed > there:
            raise InputError(
                f"hidden {tuple(map(int, self.hidden))} on {self.n_features_in_:,} features makes {weights:,} weights, "
                f"{needed / 1e9:,.0f} GB while they are trained; this machine has {there / 1e9:,.0f} GB. "
                "Choose narrower layers."
            )

    def _hold_out(self, y_encoded: IntArray, groups: IntArray) -> IntArray:
        return super()._hold_out(y_encoded, groups) if self.calibrate else np.zeros(0, np.int64)

    def _fit(self, rows: TrainingRows) -> Unseen:
        self._check_size()
        width = self.hidden[0] if self.hidden else len(self.classes_)
        # The seed must fix the fit without changing the random state of the program around it.
        devices = range(torch.cuda.device_count())
        on_disk = not isinstance(rows.X, np.ndarray)
        with torch.random.fork_rng(devices=devices), limit_threads(width * self.n_features_in_, reading=on_disk):
            torch.manual_seed(self.seed)
            self._train(rows)
            # The others have been fitted on the rows that were held out.
            logits = self._logits(rows.X_val, members=1 if len(rows.held_out) else None)
        return Unseen(logits, rows.y_val)

    def _train(self, training: TrainingRows) -> None:
        rows = len(training.y)
        # With two classes 10 passes were as good as 20 (MR, cross-validated); with 52, 20 gave 0.5 points more (R52).
        most = np.clip(5 * len(self.classes_), 10, 20)
        # As int: a search over an array gives NumPy's, which torch does not take.
        epochs = int(self.epochs or np.clip(600_000 // rows, 5, most))
        batch_rows = int(self.batch_rows or np.clip(2 ** round(math.log2(rows / 64)), 32, 256))
        device = find_device(self.device)
        self.network_ = nn.ModuleList(self._member() for _ in range(self.ensemble_size)).to(device).train()
        step = Step(self.network_, self.learning_rate, self.weight_decay, epochs * math.ceil(rows / batch_rows))
        left_out = torch.zeros(rows, dtype=torch.bool)
        left_out[torch.from_numpy(training.held_out)] = True
        targets, left_out = torch.from_numpy(training.y).to(device), left_out.to(device)
        class_weights = torch.from_numpy(training.class_weights).to(device)
        for _ in range(epochs):
            for batch, chosen in shuffle_rows(training.X, batch_rows):
                step(batch.to(device), targets[chosen], class_weights, left_out[chosen])
        self.network_.to("cpu")
        self.fit_info_ |= {
            "epochs": epochs,
            "batch_rows": batch_rows,
            "ensemble_size": int(self.ensemble_size),
            "device": device,
            "threads": torch.get_num_threads(),
            "products": step.products,
        }
        if self.fusion == "weighted":
            self.fit_info_["layer_weights"] = self._layer_weights()

    def _layer_weights(self) -> list[list[float]]:
        """Return the mean weights of the layers of each backbone over the members."""
        fusions: list[Any] = [next(member.children()) for member in self.network_]
        by_backbone = zip(*(fusion.weights() for fusion in fusions), strict=True)
        return [torch.stack(each).mean(dim=0).tolist() for each in by_backbone]

    def _member(self) -> nn.Sequential:
        first = self._learned_fusion()
        widths = [first.width if first else self.n_features_in_, *self.hidden, len(self.classes_)]
        layers: list[nn.Module] = [first] if first else []
        for width, following in pairwise(widths[:-1]):
            layers += [nn.Linear(width, following), nn.LayerNorm(following), nn.GELU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    def _learned_fusion(self) -> WeightedMean | Cooccurrence | None:
        layout = tuple((layers, dim) for layers, dim in self.layout)
        if self.fusion is None:
            return None
        if sum(layers * dim for layers, dim in layout) != self.n_features_in_:
            raise InputError(f"The layout {layout} does not make up the {self.n_features_in_:,} features.")
        if self.fusion == "weighted":
            return WeightedMean(layout)
        return Cooccurrence(layout, compressed=self.compressed, dropout=self.dropout)

    def _logits(self, features: FloatArray | Matrix, *, members: int | None = None) -> FloatArray:
        """Return the mean logits of the first members, or of all."""
        self.network_.eval()
        logits = np.empty((len(features), len(self.classes_)), np.float32)
        with torch.inference_mode():
            for rows, block in row_blocks(features):
                # torch warns of arrays that are read-only, such as those that joblib maps into its workers.
                batch = torch.from_numpy(np.require(block, requirements="W"))
                each = [member(batch) for member in self.network_[:members]]
                logits[rows] = torch.stack(each).mean(dim=0).numpy()
        return logits

    def _arrays(self) -> Arrays:
        return {name: tensor.numpy() for name, tensor in self.network_.state_dict().items()}

    def _restore(self, files: SavedFiles, arrays: Arrays) -> None:
        self.network_ = self._empty_network(files, arrays)
        self.network_.load_state_dict({name: torch.from_numpy(each) for name, each in arrays.items()}, assign=True)

    def _empty_network(self, files: SavedFiles, arrays: Arrays) -> nn.ModuleList:
        """Make networks without memory for weights, into which exactly these arrays go.

        Raises:
            ClassifierError: there are no networks of these parameters and shapes.
        """
        widest = max((length for array in arrays.values() for length in array.shape), default=0)
        widths = [*self.hidden, *(number for each in self.layout for number in each)]
        # No more parts than there are arrays: each of them takes time to make.
        parts = len(self.hidden) + len(self.layout)
        if self.fusion is None:
            widths = [*widths, self.n_features_in_]
        elif self.fusion == "cooccurrence":
            widths, parts = [*widths, self.compressed], parts + sum(layers for layers, _ in self.layout)
        known = self.fusion in (None, *LEARNED) and self.dropout <= 1
        if not (known and all(1 <= width <= widest for width in widths) and parts <= len(arrays)):
            raise files.damaged(JSON_FILE, "its parameters do not fit the arrays")
        members = len({name.partition(".")[0] for name in arrays})
        try:
            with torch.device("meta"):
                network = nn.ModuleList(self._member() for _ in range(members))
        except InputError as error:
            raise files.damaged(JSON_FILE, error) from error
        shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
        files.expect_arrays(ARRAYS_FILE, arrays, shapes)
        return network
