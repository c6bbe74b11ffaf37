"""Discrete action tokens of OpenVLA: the last ids of the vocabulary, each a bin of [-1, 1].

Facts from the public action tokenizer: N bins are the edges of a linear grid, so that there are N - 1
centres; the largest values have the smallest ids.
"""

import torch
from torch import Tensor

IGNORED = -100  # a label that counts for no loss


class ActionTokens:
    """Converts normalised actions to token ids and back.

    Args:
        vocabulary: token ids in use; the last `bins` are of actions.
        bins: edges of the grid over [-1, 1].
    """

    def __init__(self, vocabulary: int, bins: int = 256):
        self.vocabulary, self.bins = vocabulary, bins

    def encode(self, actions: Tensor) -> Tensor:
        """Token ids (int64, same shape) of actions; values beyond [-1, 1] are clipped."""
        edges = torch.linspace(-1, 1, self.bins, dtype=torch.float64, device=actions.device)
        return self.vocabulary - torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)

    def decode(self, ids: Tensor) -> Tensor:
        """Centres of the bins (float32, same shape); ids of no action give the nearest bin."""
        edges = torch.linspace(-1, 1, self.bins, dtype=torch.float64, device=ids.device)
        centres = (edges[:-1] + edges[1:]) / 2
        return centres[(self.vocabulary - ids - 1).clamp(0, self.bins - 2)].float()

    def are_actions(self, ids: Tensor) -> Tensor:
        """True where an id is one of an action: of the labels of a batch, its action slots."""
        return (ids >= self.vocabulary - self.bins) & (ids < self.vocabulary)
