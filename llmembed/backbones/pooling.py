"""Pooling: the token states of one layer [batch, tokens, dim] -> one vector per text, float32 [batch, dim].

Texts are padded on the right; a padded position never counts. Knows tensors only, no model.
"""

import torch
from torch import Tensor

from llmembed.choices import Pooling


def pool(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Pool token states [batch, tokens, dim] of texts with `lengths` [batch] real tokens each.

    `mean` and `max` run over the real tokens, `first` and `last` take one of them.
    """
    if pooling == "first":
        return states[:, 0].float()
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1].float()
    real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    if pooling == "max":
        return states.float().masked_fill(~real[:, :, None], float("-inf")).amax(dim=1)
    # Weights first: a matrix product with them is several times faster than multiplying every state by a mask. Padded
    # states are finite (they are ordinary tokens to the model), so that the weight 0 removes them exactly.
    weights = real / lengths[:, None]
    return torch.bmm(weights[:, None].float(), states.float()).squeeze(1)
