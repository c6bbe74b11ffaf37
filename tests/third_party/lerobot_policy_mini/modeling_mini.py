"""The policy type ``mini``.

Shapes: B batch, L sequence, D width, T chunk, A action.
"""

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_mini.configuration_mini import MiniConfig


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int):
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        normed_BLD = self.before_attention(x_BLD)
        x_BLD = x_BLD + self.attention(normed_BLD, normed_BLD, normed_BLD, need_weights=False)[0]
        return x_BLD + self.mlp(x_BLD)


class MiniPolicy(PreTrainedPolicy):
    """Tokens of the state and of every view's patches, in that order; actions from the state's."""

    config_class = MiniConfig
    name = "mini"

    def __init__(self, config: MiniConfig, **_: Any):
        super().__init__(config)
        config.validate_features()
        views, width = len(config.image_features), config.width
        self.state = nn.Linear(config.robot_state_feature.shape[0], width)
        self.patches = nn.Conv2d(3, width, config.patch, config.patch)
        self.place = nn.Parameter(torch.randn(views * config.rows * config.cols, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.actions = nn.Linear(width, config.chunk_size * config.action_feature.shape[0])
        self.reset()

    def _chunk(self, batch: dict[str, Any]) -> Tensor:
        size = self.config.rows * self.config.patch, self.config.cols * self.config.patch
        views = [F.interpolate(batch[key], size, mode="bilinear") for key in self.config.image_features]
        tokens = [self.patches(view).flatten(2).transpose(1, 2) for view in views]
        visual_BND = torch.cat(tokens, dim=1) + self.place
        x_BLD = torch.cat([self.state(batch[OBS_STATE])[:, None], visual_BND], dim=1)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.actions(self.norm(x_BLD)[:, 0]).unflatten(1, (self.config.chunk_size, -1))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        error_BT = (self._chunk(batch) - batch[ACTION]).abs().mean(-1)
        inside_BT = ~batch["action_is_pad"]
        loss = (error_BT * inside_BT).sum() / inside_BT.sum().clamp(min=1)
        return loss, {"l1": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        return self._chunk(batch)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        if not self._queue:
            self._queue.extend(self._chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque()

    def get_optim_params(self) -> list[nn.Parameter]:
        return list(self.parameters())
