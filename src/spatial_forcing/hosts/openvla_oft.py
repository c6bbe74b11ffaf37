"""OpenVLA-OFT: visual tokens in Llama, after BOS, one view after the other; state, prompt and actions behind.

The policy is this package's own (`spatial_forcing.openvla`).
"""

from pathlib import Path
from typing import Any

from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import WIDTH, small_tokenizer

# ---- a small one -------------------------------------------------------------------------------------------


def small_sizes(**variant: Any) -> Any:
    """An `OpenVLAConfig` of towers of 3 blocks at 56 pixels (4 x 4 tokens a view) and a Llama of 4 blocks."""
    from spatial_forcing.openvla.config import DINOV2, RELEASED_TEXT, SIGLIP, OpenVLAConfig, Tower

    vision = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    text = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    return OpenVLAConfig(
        towers=(
            Tower(DINOV2, 56, arguments=vision),
            Tower(SIGLIP, 56, arguments={**vision, "mlp_ratio": 4.0}),
        ),
        text_config={**RELEASED_TEXT, **text},
        **variant,
    )


def small_openvla(folder: Path) -> Path:
    """A folder that ``base_checkpoint`` and ``tokenizer`` take: a small plain OpenVLA with random weights."""
    if (folder / "config.json").is_file():
        return folder
    from spatial_forcing.openvla.checkpoint import save_openvla
    from spatial_forcing.openvla.config import PLAIN
    from spatial_forcing.openvla.model import OpenVLA

    save_openvla(OpenVLA(small_sizes(**PLAIN)), folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def small_options(folder: Path) -> dict[str, Any]:
    from spatial_forcing.openvla.base import architecture_of

    tokenizer = folder / "openvla_tokenizer"
    if not (tokenizer / "tokenizer_config.json").is_file():
        small_tokenizer().save_pretrained(tokenizer)
    return {
        "architecture": architecture_of(small_sizes().released()),
        "tokenizer": str(tokenizer),
        "tokenizer_max_length": 24,
    }


RECORDS = (
    PolicyRecord(
        type="openvla_oft",
        config="OpenVLAOFTConfig",
        module="spatial_forcing.openvla.configuration_openvla_oft",
        host=lambda policy, views: policy.model.spatial_forcing_host(),
        upstream=lambda policy: [policy.model.vision_backbone, policy.model.projector],
        sequence="[BOS] [view 1: 16x16] [view 2: 16x16] ... [state] [prompt] [action slots] [stop]",
        pretrained=lambda config: config.pretrained_path is not None or config.base_checkpoint is not None,
        published_late=True,
        small=SmallPolicy(options=small_options, image_hw=(40, 60), extra="openvla"),
        tap="block 24 of 32 of Llama, as published",
        tokens="16 x 16 a view",
        trains="LoRA on all linear layers (its default), or full",
        page="hosts/openvla.md",
    ),
)
