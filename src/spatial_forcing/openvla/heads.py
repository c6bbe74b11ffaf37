"""Projectors and action head of OpenVLA; parameter names are those of the released checkpoints.

B: batch, N: tokens, C: vision width, D: width of the language model, P: proprioception, K: chunk,
A: numbers of an action. Inputs are cast to the dtype of the module's weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Maps features of the two vision towers into the language model: fc1, GELU, fc2, GELU, fc3."""

    def __init__(self, width: int, language_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, language_width)
        self.fc3 = nn.Linear(language_width, language_width)

    def forward(self, features_BNC: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(features_BNC.to(self.fc1.weight.dtype)))
        return self.fc3(F.gelu(self.fc2(hidden)))


class ProprioProjector(nn.Module):
    """Maps a proprioceptive state to one token of the language model: fc1, GELU, fc2."""

    def __init__(self, width: int, language_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, language_width)
        self.fc2 = nn.Linear(language_width, language_width)

    def forward(self, proprio_BP: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(proprio_BP.to(self.fc1.weight.dtype))))


class ResidualBlock(nn.Module):
    """`x + relu(linear(norm(x)))`."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """Norm, linear layer, ReLU, residual blocks, norm, linear layer."""

    def __init__(self, width: int, hidden: int, out: int, blocks: int = 2):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ActionHead(nn.Module):
    """L1 regression head of OFT: hidden states of a chunk's action slots to normalised actions."""

    def __init__(self, language_width: int, action_width: int):
        super().__init__()
        self.action_width = action_width
        self.model = ResidualMLP(action_width * language_width, language_width, action_width)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """actions_BKA of the hidden states of S = K x A slots, in the order of time."""
        hidden = hidden_BSD.to(self.model.fc1.weight.dtype)
        return self.model(hidden.unflatten(1, (-1, self.action_width)).flatten(2))
