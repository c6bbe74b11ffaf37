"""TinyVLA as a LeRobot policy, type ``tiny``: ``lerobot-train --policy.type=tiny`` (and ``sf_tiny`` with
Spatial Forcing).

Configuration, policy and processors share this file because LeRobot finds the latter two by the module of
the first.
Shapes: B batch, V views, H W pixels, S proprioception, T chunk, A action.
"""

from collections import deque
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.processor import make_default_policy_processor_steps, make_policy_processor_pipelines
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.guard import said_last
from spatial_forcing.hosts.tiny import TinyVLA, hash_words
from spatial_forcing.hosts.tiny_normalizer import POINTS, like, normalizer_processor, unnormalizer_processor


@PreTrainedConfig.register_subclass("tiny")
@dataclass
class TinyConfig(PreTrainedConfig):
    """Configuration of the built-in VLA.

    Args:
        use_images: False makes the *blind* reference policy: proprioception and instruction only.
        use_environment_state: True gives the *state* reference policy the true object and goal positions.
        use_points: True gives the *oracle* reference policy the 3D points that its patches show, beside the
            images: `observation.points` of demonstrations and environments with `points`.
        image_size: side in pixels of what the network sees; images of other sizes are stretched to it.
        chunk_size: T, actions predicted at once.
        n_action_steps: how many of them are executed before the next prediction.
        position_std: see TinyVLA; the default was chosen by the baseline's held-out error
            (LOG.md, 2026-11-26).
        decay_steps: of the cosine learning-rate schedule; LeRobot scales it to the number of training steps.
    """

    use_images: bool = True
    use_environment_state: bool = False
    use_points: bool = False
    image_size: int = 112
    patch: int = 14
    width: int = 128
    depth: int = 4
    heads: int = 4
    chunk_size: int = 8
    n_action_steps: int = 4
    vocabulary: int = 512
    max_words: int = 12
    position_std: float = 1.0
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )
    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 1e-4
    warmup_steps: int = 50
    decay_steps: int = 2000
    decay_lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        # No ValueErrors: LeRobot's parser of flags drops what those say.
        with said_last():
            if not 1 <= self.n_action_steps <= self.chunk_size:
                raise SpatialForcingError(
                    f"n_action_steps must be 1 to chunk_size = {self.chunk_size}, got {self.n_action_steps}."
                )

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.decay_lr,
            num_warmup_steps=self.warmup_steps,
            num_decay_steps=self.decay_steps,
        )

    def validate_features(self) -> None:
        if self.action_feature is None or self.robot_state_feature is None:
            raise SpatialForcingError("TinyVLA needs `action` and `observation.state` in the data set.")
        if self.use_images and not self.image_features:
            raise SpatialForcingError(
                "TinyVLA needs at least one camera in the data set, or use_images=false."
            )
        self.points_per_side()

    def points_per_side(self) -> int:
        """Points per side of each patch, 0 without `use_points`.

        Raises:
            SpatialForcingError: the data have no square of points for each patch, or images are not used.
        """
        if not self.use_points:
            return 0
        patches = len(self.image_features) * (self.image_size // self.patch) ** 2 if self.use_images else 0
        feature = (self.input_features or {}).get(POINTS)
        found = 0 if feature is None else feature.shape[0] // 3
        side = isqrt(found // patches) if patches else 0
        if not side or found != side**2 * patches:
            raise SpatialForcingError(
                f"use_points needs {POINTS} with a square of points for each of the {patches} patches; the "
                f"data have {found} points. Collect with --points {self.image_size // self.patch} (or a "
                "multiple), and give --env.points alike."
            )
        return side

    @property
    def views(self) -> int:
        return len(self.image_features) if self.use_images else 0

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None


class TinyPolicy(PreTrainedPolicy):
    """TinyVLA trained with an L1 loss on standardised action chunks."""

    config_class = TinyConfig  # type: ignore[assignment]  # LeRobot declares None
    name = "tiny"  # type: ignore[assignment]
    _fsdp_wrap_modules = ["Block"]  # noqa: RUF012 (LeRobot's contract: what FSDP2 shards on its own)

    def __init__(self, config: TinyConfig, **_: Any):
        super().__init__(config)
        with said_last():
            config.validate_features()
        state = _width(config.robot_state_feature)
        if config.use_environment_state:
            state += _width(config.env_state_feature)
        self.model = TinyVLA(
            views=config.views,
            image_size=config.image_size,
            patch=config.patch,
            state_dim=state,
            action_dim=_width(config.action_feature),
            chunk=config.chunk_size,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            vocabulary=config.vocabulary,
            max_words=config.max_words,
            position_std=config.position_std,
            points=config.points_per_side(),
        )
        self.reset()

    def images_BV3HW(self, batch: dict[str, Any]) -> Tensor:
        """The images of a batch, in the order of the configuration's cameras, stretched to its image size."""
        square = (self.config.image_size, self.config.image_size)
        images = [batch[key] for key in self.config.image_features]
        stretched = [
            image
            if tuple(image.shape[-2:]) == square
            else F.interpolate(image, size=square, mode="bilinear", antialias=True)
            for image in images
        ]
        return torch.stack(stretched, dim=1)

    def _actions(self, batch: dict[str, Any]) -> Tensor:
        state = [batch[OBS_STATE]]
        if self.config.use_environment_state:
            state.append(batch[OBS_ENV_STATE])
        words = hash_words(batch["task"], self.config.vocabulary, self.config.max_words).to(state[0].device)
        images = self.images_BV3HW(batch) if self.config.views else None
        points = self.points_BNP3(batch[POINTS]) if self.config.use_points else None
        return self.model(images, words, torch.cat(state, dim=-1), points)

    def points_BNP3(self, points_BX: Tensor) -> Tensor:
        """The points of each patch: of a batch's column, view by view and row by row, those in each patch."""
        side, k = self.config.image_size // self.config.patch, self.config.points_per_side()
        points_BVhkwk3 = points_BX.view(len(points_BX), self.config.views, side, k, side, k, 3)
        return points_BVhkwk3.transpose(3, 4).reshape(len(points_BX), -1, k * k, 3)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The mean absolute error of the predicted chunk, in standard deviations of each action dimension."""
        error_BTA = (self._actions(batch) - batch[ACTION]).abs()
        inside_BT = ~batch["action_is_pad"]
        loss = (error_BTA.mean(-1) * inside_BT).sum() / inside_BT.sum().clamp(min=1)
        return loss, {"action_loss": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Predicted action chunk actions_BTA, standardised."""
        self.eval()
        return self._actions(batch)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action (B, A) of the current chunk; a new chunk every n_action_steps."""
        if not self._queue:
            chunk_BTA = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._queue.extend(chunk_BTA.unbind(1))
        return self._queue.popleft()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque()

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        return list(self.parameters())


def make_tiny_pre_post_processors(config: TinyConfig, dataset_stats: dict | None = None) -> tuple[Any, Any]:
    """LeRobot's default processors: standardise state and action, leave images in [0, 1], points in metres.

    A number that never moves in the data is centred only, see ``tiny_normalizer``.
    """
    s = make_default_policy_processor_steps(config, dataset_stats, normalizer_device=config.device)
    normalize, unnormalize = (
        like(normalizer_processor, s.normalize),
        like(unnormalizer_processor, s.unnormalize),
    )
    return make_policy_processor_pipelines(
        input_steps=[s.rename_observations, s.add_batch_dim, s.to_device, normalize],
        output_steps=[unnormalize, s.to_cpu],
    )


def _width(feature: PolicyFeature | None) -> int:
    if feature is None or feature.type is FeatureType.VISUAL:
        raise SpatialForcingError(
            "TinyVLA was asked for a feature that the data set does not have "
            "(observation.environment_state?)."
        )
    return feature.shape[0]
