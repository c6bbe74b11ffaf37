"""ACT: tokens of a ResNet's last feature map in a post-norm encoder, without resizing of images.

Shapes: L sequence, B batch, D width.
"""

from math import ceil
from pathlib import Path
from typing import Any

from spatial_forcing.grid import Layout
from spatial_forcing.hosts.building import image_size
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import WIDTH
from spatial_forcing.tap import Host


def act_host(policy: Any, views: int) -> Host:
    config, encoder = policy.config, policy.model.encoder
    height, width = image_size(config)
    stride = 16 if config.replace_final_stride_with_dilation else 32
    rows, cols = ceil(height / stride), ceil(width / stride)
    # Before the images: the latent, the state, the environment state.
    first = 1 + bool(config.robot_state_feature) + bool(config.env_state_feature)
    # A post-norm encoder ends without a norm: LeRobot puts an identity there, which serves.
    return Host(
        name="ACT",
        blocks=encoder.layers,
        final_norm=encoder.norm,
        width=config.dim_model,
        layout=Layout(
            views,
            rows,
            cols,
            # The last cells reach beyond the image, and a convolution looks at the first pixel of its cell.
            overhang=(cols * stride / width, rows * stride / height),
            offset=(1 - stride) / (2 * stride),
        ),
        visual=lambda hidden_LBD: hidden_LBD[first : first + views * rows * cols].transpose(0, 1),
        entry="",  # post-norm blocks: the tap reads the block itself
    )


def small_options(folder: Path) -> dict[str, Any]:
    return {
        "pretrained_backbone_weights": None,
        "dim_model": WIDTH,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 4,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
    }


def without_data() -> dict[str, Any]:
    from lerobot.configs.types import NormalizationMode

    return {"normalization_mapping": {"VISUAL": NormalizationMode.IDENTITY}}


RECORDS = (
    PolicyRecord(
        type="act",
        config="ACTConfig",
        host=act_host,
        upstream=lambda policy: [policy.model.backbone, policy.model.encoder_img_feat_input_proj],
        sequence="[latent] [state] [view 1: H/32 x W/32] [view 2: H/32 x W/32] ...",
        language_model=False,
        # A token per 32 pixels.
        small=SmallPolicy(options=small_options, image_hw=(100, 150), without_data=without_data),
        tap="layer 3 of 4 of the encoder",
        tokens="H/32 x W/32 a view",
        trains="always does",
        page="hosts/act.md",
    ),
)
