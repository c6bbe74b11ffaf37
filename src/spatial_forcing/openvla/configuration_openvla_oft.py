"""Configuration of OpenVLA-OFT as a LeRobot policy: ``--policy.type=openvla_oft``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.guard import said_last
from spatial_forcing.openvla.config import ATTENTION, OpenVLAConfig
from spatial_forcing.openvla.schedule import StepDecayConfig

# What parallel, regression are in OpenVLAConfig.
DECODINGS = {"l1": (True, True), "tokens": (True, False), "autoregressive": (False, False)}
GRIPPERS = ("as_recorded", "openvla")
DTYPES = ("float32", "bfloat16")


def q99_normalisation() -> dict[str, NormalizationMode]:
    """The normalisation that OpenVLA calls q99: none of images, q01 to q99 to [-1, 1] of numbers."""
    numbers = NormalizationMode.QUANTILES
    return {"VISUAL": NormalizationMode.IDENTITY, "STATE": numbers, "ACTION": numbers}


@PreTrainedConfig.register_subclass("openvla_oft")
@dataclass
class OpenVLAOFTConfig(PreTrainedConfig):
    """Configuration of OpenVLA-OFT (arXiv 2502.19645) and plain OpenVLA (arXiv 2406.09246)."""

    base_checkpoint: str | None = None
    """Folder or Hub repository of a released checkpoint that a new policy begins with: openvla/openvla-7b, or
    a fine-tuned one. Action head and projector of the state are new where it has none."""
    from_scratch: bool = False
    """Build OpenVLA-7B from random weights, about 30 GB, where neither base_checkpoint nor architecture is
    given; without this flag that is refused."""
    new_head: bool = False
    """Start with a new action head and state projector, for other actions or states than the base
    checkpoint's."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Sizes: the content of a released config.json. The base checkpoint's if empty."""
    decoding: str = "l1"
    """l1 (a chunk in parallel through an L1 regression head), tokens (in parallel, as discrete tokens) or
    autoregressive (one action of discrete tokens, as in OpenVLA before OFT)."""
    use_proprio: bool = True
    """Whether the state is a token of the sequence."""
    film: bool = False
    """Whether the instruction modulates the vision towers."""
    chunk_size: int = 8
    """Actions predicted at once."""
    n_action_steps: int = 8
    """Actions executed before the next prediction."""
    gripper: str = "as_recorded"
    """as_recorded, or openvla: the last number of an action is a gripper recorded as -1 (open) to 1 (closed),
    as in LIBERO, and the model is trained on 1 (open) and 0 (closed), not normalised, as released checkpoints
    are."""
    inference_crop: float = 1.0
    """Fraction of each image's area, in its middle, that is seen in rollouts. Released checkpoints were
    trained on random crops of 0.9 and need 0.9 here."""
    tokenizer: str = "openvla/openvla-7b"
    """Folder or Hub repository of Llama's tokenizer."""
    tokenizer_max_length: int = 64
    """Tokens of the prompt, at most."""
    dtype: str = "float32"
    """Data type of the weights, float32 or bfloat16."""
    attention: str = "sdpa"
    """Attention of the language model, sdpa or eager."""
    gradient_checkpointing: bool = False
    """Recompute the language model's activations in the backward pass."""
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=q99_normalisation)
    """Normalisation by kind of feature; QUANTILES is OpenVLA's q99, MIN_MAX its bounds."""
    optimizer_lr: float = 5e-4
    """Learning rate of AdamW."""
    optimizer_weight_decay: float = 0.01
    """Weight decay of AdamW."""
    optimizer_grad_clip_norm: float = 0.0
    """Largest norm of the gradient; 0, as in the public code, clips nothing."""
    decay_step: int = 100_000
    """Step at which the learning rate is multiplied by decay_factor."""
    decay_factor: float = 0.1
    """What the learning rate is multiplied by at decay_step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # No ValueErrors: LeRobot's parser of flags drops what those say.
        with said_last():
            self._check()

    def _check(self) -> None:
        choices = {"decoding": DECODINGS, "gripper": GRIPPERS, "dtype": DTYPES, "attention": ATTENTION}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UnknownNameError(f"{name} of openvla_oft", getattr(self, name), known)
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise SpatialForcingError(
                f"n_action_steps must be 1 to chunk_size = {self.chunk_size}, got {self.n_action_steps}."
            )
        if not 0 < self.inference_crop <= 1:
            raise SpatialForcingError(
                f"inference_crop is a fraction of an image's area above 0 and at most 1, got "
                f"{self.inference_crop}."
            )
        if self.decoding == "autoregressive" and (self.chunk_size > 1 or self.use_proprio or self.film):
            raise SpatialForcingError(
                "decoding=autoregressive gives one action, without state and FiLM: expected chunk_size=1, "
                f"n_action_steps=1, use_proprio=false, film=false; got chunk_size={self.chunk_size}, "
                f"use_proprio={self.use_proprio}, film={self.film}."
            )

    def check_beginning(self) -> None:
        """Checks that it is said what a new policy begins with: random weights of 7B are nobody's accident.

        Raises:
            SpatialForcingError: no base checkpoint, no sizes, no saved checkpoint, and not from scratch.
        """
        given = self.base_checkpoint or self.architecture or self.from_scratch
        if given or self.pretrained_path is not None:
            return
        raise SpatialForcingError(
            "openvla_oft has neither a checkpoint to begin with nor sizes: it would be OpenVLA-7B from "
            "random weights, about 30 GB in float32. Give --policy.base_checkpoint=openvla/openvla-7b (a "
            "repository or a folder), --policy.architecture=<content of a config.json> for a small one (see "
            "examples/small_openvla.py), or --policy.from_scratch=true if this is what you want."
        )

    def openvla(self, norm_stats: Mapping[str, Any] | None = None) -> OpenVLAConfig:
        """The sizes and the variant of the network, for these features.

        Args:
            norm_stats: statistics to put into it, by un-normalisation key.

        Raises:
            SpatialForcingError: the architecture is not one, or a feature is missing.
        """
        self.validate_features()
        parallel, regression = DECODINGS[self.decoding]
        variant: dict[str, Any] = {
            "views": len(self.image_features),
            "chunk": self.chunk_size,
            "action_width": _width(self.action_feature),
            "proprio_width": _width(self.robot_state_feature) if self.use_proprio else None,
            "parallel": parallel,
            "regression": regression,
            "film": self.film,
            "normalisation": self.normalisation,
            "norm_stats": dict(norm_stats or {}),
        }
        if not self.architecture:
            return OpenVLAConfig(**variant)
        statistics = variant.pop("norm_stats")
        return OpenVLAConfig.from_released({**self.architecture, "norm_stats": statistics}, **variant)

    @property
    def normalisation(self) -> Literal["q99", "bounds"]:
        """What OpenVLA calls the normalisation of the actions."""
        mode = self.normalization_mapping.get("ACTION")
        return "bounds" if mode is NormalizationMode.MIN_MAX else "q99"

    def validate_features(self) -> None:
        if not self.image_features or self.action_feature is None:
            raise SpatialForcingError("openvla_oft needs at least one camera and `action` in the data set.")
        if self.use_proprio and self.robot_state_feature is None:
            raise SpatialForcingError(
                "openvla_oft needs `observation.state` in the data set, or --policy.use_proprio=false."
            )

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> LRSchedulerConfig:
        return StepDecayConfig(decay_step=self.decay_step, factor=self.decay_factor)

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None


def _width(feature: PolicyFeature | None) -> int:
    assert feature is not None
    assert feature.type is not FeatureType.VISUAL
    return feature.shape[0]
