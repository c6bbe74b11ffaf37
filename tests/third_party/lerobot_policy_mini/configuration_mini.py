"""Configuration of the policy type ``mini``."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig


@PreTrainedConfig.register_subclass("mini")
@dataclass
class MiniConfig(PreTrainedConfig):
    """A small transformer over image patches and the robot's state.

    Attributes:
        rows, cols: patches of an image, which is resized to ``patch`` pixels for each.
    """

    rows: int = 3
    cols: int = 5
    patch: int = 8
    width: int = 32
    depth: int = 4
    chunk_size: int = 4
    n_action_steps: int = 2
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.MEAN_STD,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=1e-3, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        if not self.image_features or self.robot_state_feature is None or self.action_feature is None:
            raise ValueError("mini needs images, observation.state and action.")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
