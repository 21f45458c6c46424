"""Learned fusions, the first part of an mlp: layers side by side [rows, features] -> one vector [rows, width].

`layout` says how the features are made up: layers and dim of each backbone, one after the other.
"""

import torch
from torch import nn

from llmembed.features.fusion import Layout

# The logits of the layers are learned in units of 0.1: Adam moves a parameter by about the learning rate a step, which
# in the few hundred steps of a fit would leave the softmax where it began.
LOGIT_UNIT = 10.0


def split_layers(features: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """Cut features [rows, features] into the layers [rows, layers, dim] of each backbone."""
    parts = torch.split(features, [layers * dim for layers, dim in layout], dim=1)
    return [part.reshape(-1, layers, dim) for part, (layers, dim) in zip(parts, layout, strict=True)]


class WeightedMean(nn.Module):
    """A mean of the layers whose weights, a softmax over the depths of each backbone, are learned.

    Attributes:
        width: features that come out, the dims of the backbones side by side.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.width = sum(dim for _, dim in layout)
        self._layout = layout
        self.logits = nn.ParameterList(torch.zeros(layers) for layers, _ in layout)

    def weights(self) -> list[torch.Tensor]:
        """Return the weights of the layers of each backbone, [layers]; they sum to 1."""
        return [(LOGIT_UNIT * logits).softmax(dim=0) for logits in self.logits]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool [rows, features] -> [rows, width]."""
        backbones = split_layers(features, self._layout)
        pooled = [torch.einsum("rld,l->rd", each, w) for each, w in zip(backbones, self.weights(), strict=True)]
        return torch.cat(pooled, dim=1)


class Cooccurrence(nn.Module):
    """Co-occurrence pooling with learned compression (LLMEmbed, ACL 2024, section 3).

    Every layer x_i [dim] of every backbone is compressed to c_i = relu(W_i x_i + b_i) [compressed]. With the rows
    dropout(c_i / |c_i|) as X [layers, compressed], the Gram matrix G = X Xᵀ is power-normalised to
    2 · sigmoid(σ · G) - 1 and stands beside the mean of the layers of each backbone. Two things differ from the paper's
    code: there the rows keep their length, so that the entries of G run into the hundreds and the sigmoid saturates;
    here they are cosines. And G is symmetric, with ones on its diagonal: only what is above the diagonal is kept. σ is
    learned too.

    Attributes:
        width: features that come out: layers * (layers - 1) / 2, and the dims of the backbones.
    """

    def __init__(self, layout: Layout, *, compressed: int, dropout: float, sigma: float = 1.0) -> None:
        super().__init__()
        count = sum(layers for layers, _ in layout)
        self.width = count * (count - 1) // 2 + sum(dim for _, dim in layout)
        self._layout = layout
        self.compress = nn.ModuleList(nn.Linear(dim, compressed) for layers, dim in layout for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.sigma = nn.Parameter(torch.tensor(float(sigma)))
        # Not a weight: it must exist also where weights are still to be read.
        self._above = torch.triu_indices(count, count, offset=1, device="cpu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool [rows, features] -> [rows, width]."""
        backbones = split_layers(features, self._layout)
        layers = [layer for each in backbones for layer in each.unbind(dim=1)]
        compressed = [linear(layer) for linear, layer in zip(self.compress, layers, strict=True)]
        stacked = torch.stack(compressed, dim=1).relu()
        # Under the root, so that a row of zeros has a finite gradient. Dropout comes after: before, it would halve the
        # cosines of training and not those of prediction.
        rows = self.dropout(stacked / (stacked.square().sum(dim=2, keepdim=True) + 1e-6).sqrt())
        above = (rows @ rows.transpose(1, 2))[:, self._above[0], self._above[1]]
        # 2 · sigmoid(x) - 1 = tanh(x / 2).
        return torch.cat([torch.tanh(self.sigma / 2 * above), *(each.mean(dim=1) for each in backbones)], dim=1)
