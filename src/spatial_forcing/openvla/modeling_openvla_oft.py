"""OpenVLA-OFT as a LeRobot policy: ``--policy.type=openvla_oft`` (``sf_openvla_oft`` with Spatial Forcing).

Checkpoints are LeRobot's. `from_pretrained` reads released ones, too, where a configuration comes with them,
as LoRA needs it of its base model.

B: batch, V: views, H, W: pixels, T: text tokens, K: chunk, A: numbers of an action, S: action slots (K x A).
"""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import (
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.guard import said_last
from spatial_forcing.openvla.base import begin_with, is_released, local_checkpoint, read_architecture
from spatial_forcing.openvla.configuration_openvla_oft import OpenVLAOFTConfig
from spatial_forcing.openvla.images import centre_crop, resized
from spatial_forcing.openvla.model import OpenVLA, Text
from spatial_forcing.openvla.tokens import IGNORED

# All linear layers but those of the head and the projector of the state, which train themselves, and the
# language model's output layer, as peft's "all-linear" has it.
LORA_TARGETS = (
    r"model\.(vision_backbone\.(featurizer|fused_featurizer)\.blocks\.\d+\.(block\.)?"
    r"(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    r"|projector\.fc[123]"
    r"|language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj))"
)
FILM_PARTS = ("scale", "shift")


class OpenVLAOFTPolicy(PreTrainedPolicy):
    """OpenVLA-OFT (arXiv 2502.19645), or plain OpenVLA, trained on normalised action chunks.

    Raises:
        SpatialForcingError: nothing says what it begins with, the data set lacks a feature, or the base
            checkpoint does not load.
        MissingDependencyError: timm or transformers is not installed.
    """

    config_class = OpenVLAOFTConfig  # type: ignore[assignment]  # LeRobot declares None
    name = "openvla_oft"  # type: ignore[assignment]
    # What FSDP2 shards on its own: Llama's blocks, and the vision towers' (with FiLM around them).
    _fsdp_wrap_modules = ["LlamaDecoderLayer", "Block", "FilmBlock"]  # noqa: RUF012 (LeRobot's contract)

    def __init__(self, config: OpenVLAOFTConfig, **_: Any):
        super().__init__(config)
        dtype = getattr(torch, config.dtype)
        with said_last():
            config.check_beginning()
            base = config.base_checkpoint if config.pretrained_path is None else None
            folder = None if base is None else local_checkpoint(base)
            if folder is not None:
                config.architecture = config.architecture or read_architecture(folder)
            sizes = config.openvla()
            if folder is None:
                self.model = OpenVLA(sizes, attention=config.attention).to(dtype)
            else:
                self.model = begin_with(
                    folder, sizes, new_head=config.new_head, dtype=dtype, attention=config.attention
                )
                # What an adapter says of its base model, wherever the adapter is read.
                self.name_or_path = str(folder.resolve()) if Path(str(base)).exists() else str(base)
        if config.gradient_checkpointing:
            self.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: Any = None, **options: Any
    ) -> "OpenVLAOFTPolicy":
        """Loads a LeRobot checkpoint, or with a configuration the weights of a released one.

        Raises:
            SpatialForcingError: the released checkpoint does not fit the configuration.
        """
        name = str(pretrained_name_or_path)
        if config is None or not is_released(name):
            config = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path)
            config.pretrained_path = config.pretrained_path or Path(name)  # no base is read beneath it
            return super().from_pretrained(pretrained_name_or_path, config=config, **options)
        ours = ("dataset_stats", "dataset_meta")
        config.base_checkpoint, path, config.pretrained_path = name, config.pretrained_path, None
        try:
            policy = cls(config, **{key: options[key] for key in ours if key in options})
        finally:
            config.pretrained_path = path
        return policy.to(config.device).eval()

    # ---- inputs

    def pixel_values_BCHW(self, batch: dict[str, Any], *, crop: float = 1.0) -> Tensor:
        """Pixel values of the cameras of a batch, images in [0, 1], stretched to the towers' size.

        Raises:
            SpatialForcingError: the batch lacks a camera: the model has seen all of them in training.
        """
        cameras = list(self.config.image_features)
        missing = [camera for camera in cameras if camera not in batch]
        if missing:
            raise SpatialForcingError(
                f"openvla_oft needs all of its cameras in a batch: missing {', '.join(missing)}."
            )
        vision = self.model.vision_backbone
        seen = [centre_crop(resized(batch[camera], vision.image_size), crop) for camera in cameras]
        return vision.pixel_values(torch.stack(seen, dim=1))

    def prompts(self, batch: dict[str, Any]) -> list[Tensor]:
        """Token ids of each sample's prompt, without padding."""
        ids_BT, mask_BT = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
        return [ids[mask] for ids, mask in zip(ids_BT, mask_BT, strict=True)]

    def proprio_BP(self, batch: dict[str, Any]) -> Tensor | None:
        return batch[OBS_STATE] if self.config.use_proprio else None

    # ---- training

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch: the head's mean absolute error, or the cross-entropy of the action tokens.

        Actions beyond the end of an episode have no loss.
        """
        actions_BKA, inside_BK = batch[ACTION], ~batch["action_is_pad"]
        text = self.model.text(self.prompts(batch), actions_BKA)
        encoded = self.model(
            self.pixel_values_BCHW(batch),
            text.ids_BT,
            text.valid_BT,
            slots_BT=text.slots_BT,
            proprio_BP=self.proprio_BP(batch),
        )
        if self.model.action_head is None:
            loss = self.model.token_loss(encoded, self._labels(text, inside_BK))
        else:
            loss = self.model.regression_loss(encoded, text.slots_BT, actions_BKA, inside_BK)
        return loss, {"action_loss": loss.item()}

    def _labels(self, text: Text, inside_BK: Tensor) -> Tensor:
        """Labels of the text, none at the slots of actions beyond the end of an episode."""
        counted_BS = inside_BK.repeat_interleave(self.model.config.action_width, dim=1)
        labels_BT = text.labels_BT.clone()
        slots = labels_BT[text.slots_BT]
        labels_BT[text.slots_BT] = slots.masked_fill(~counted_BS.flatten(), IGNORED)
        return labels_BT

    # ---- acting

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Predicted action chunk actions_BKA, normalised."""
        self.eval()
        pixels_BCHW = self.pixel_values_BCHW(batch, crop=self.config.inference_crop)
        ids_BT, mask_BT = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        return self.model.predict(pixels_BCHW, ids_BT, mask_BT, self.proprio_BP(batch)).float()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action (B, A) of the current chunk; a new chunk every n_action_steps."""
        if not self._queue:
            chunk_BKA = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._queue.extend(chunk_BKA.unbind(1))
        return self._queue.popleft()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque()

    # ---- what trains

    def get_optim_params(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """OFT's LoRA: rank 32 on all linear layers; what is new trains whole.

        LeRobot's trainer always names a rank, its own default of 16 without ``--peft.r``; that one wins.
        """
        whole = [part for part in ("action_head", "proprio_projector") if getattr(self.model, part, None)]
        return {
            "target_modules": LORA_TARGETS,
            "modules_to_save": whole + (list(FILM_PARTS) if self.config.film else []),
            "r": 32,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "init_lora_weights": "gaussian",
        }

    def _validate_peft_config(self, peft_config: Any) -> None:
        if self.config.base_checkpoint is None:
            super()._validate_peft_config(peft_config)
