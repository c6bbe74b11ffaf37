"""SmolVLA: visual tokens in SmolVLM2's language model, one view after the other, beside an action expert."""

from pathlib import Path
from typing import Any

from torch import nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts.building import blocks_of_tokens, image_size, lora_flags
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import SPECIAL, VOCABULARY, WIDTH, small_tokenizer
from spatial_forcing.site import Host, VisionEncoder


def smolvla_host(policy: Any, views: int) -> Host:
    config, vlm = policy.config, policy.model.vlm_with_expert.get_vlm_model()
    patch, shuffle = vlm.config.vision_config.patch_size, vlm.connector.scale_factor
    resize = config.resize_imgs_with_padding
    # LeRobot keeps this target as (width, height).
    height, width = image_size(config) if resize is None else (resize[1], resize[0])
    if height != width:
        raise SpatialForcingError(
            f"The connector of SmolVLM takes the tokens of an image for those of a square; with images of "
            f"{height} x {width} it mixes up their places. Set resize_imgs_with_padding to a square."
        )
    rows, cols = height // patch // shuffle, width // patch // shuffle
    fit = "stretch" if resize is None else "pad"
    markers = (2, 1) if config.add_image_special_tokens else (0, 0)
    tokens = rows * cols
    return Host(
        name="SmolVLA",
        blocks=vlm.text_model.layers,
        final_norm=vlm.text_model.norm,
        width=vlm.config.text_config.hidden_size,
        layout=Layout(views, rows, cols, fit, anchor=(1.0, 1.0)),
        visual=blocks_of_tokens(views, tokens, markers[0], sum(markers) + tokens),
        vision=smolvla_vision(policy, Layout(views, height // patch, width // patch, fit, anchor=(1.0, 1.0))),
    )


def smolvla_vision(policy: Any, layout: Layout) -> VisionEncoder:
    """Vision encoder record of SmolVLM's SigLIP, called once per view; its grid is that of the patches."""
    vlm = policy.model.vlm_with_expert.get_vlm_model()
    return VisionEncoder(
        blocks=vlm.vision_model.encoder.layers,
        final_norm=vlm.vision_model.post_layernorm,
        width=vlm.config.vision_config.hidden_size,
        layout=layout,
        calls="per view",
        upstream=(vlm.vision_model.embeddings,),
        unfreeze="--policy.freeze_vision_encoder=false and --policy.train_expert_only=false, or LoRA on it: "
        + lora_flags(r".*\.vision_model\..*\.(q|v)_proj"),
    )


def smolvla_upstream(policy: Any) -> list[nn.Module]:
    vlm = policy.model.vlm_with_expert.get_vlm_model()
    return [vlm.vision_model, vlm.connector]


# ---- a small one -------------------------------------------------------------------------------------------


def small_smolvlm(
    folder: Path,
    *,
    width: int = WIDTH,
    blocks: int = 4,
    image: int = 32,
    patch: int = 4,
    vision_width: int = 16,
    vision_blocks: int = 1,
    shuffle: int = 2,
) -> Path:
    """A folder that ``vlm_model_name`` takes: configuration and processor of a small SmolVLM, no weights.

    Args:
        folder: to write; one that has a configuration stays as it is.
        width, blocks: of the language model, whose four heads share the width.
        image, patch: sides in pixels.
        vision_width, vision_blocks: of the vision encoder.
        shuffle: the connector makes one token of shuffle x shuffle patches.
    """
    if (folder / "config.json").is_file():
        return folder
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    vision = {"hidden_size": vision_width, "intermediate_size": 2 * vision_width, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": vision_blocks, "image_size": image, "patch_size": patch}
    text = {"model_type": "llama", "hidden_size": width, "intermediate_size": 2 * width}
    text |= {"num_hidden_layers": blocks, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"head_dim": width // 4, "vocab_size": VOCABULARY}
    # The classes' own deviation, 0.02, is for a thousand channels; of a hundred a block makes almost nothing.
    vision["initializer_range"], text["initializer_range"] = vision_width**-0.5, width**-0.5
    sizes: dict[str, Any] = {
        "image_token_id": list(SPECIAL).index("image_token"),
        "scale_factor": shuffle,
        "vision_config": vision,
        "text_config": text | {"pad_token_id": 0},
    }
    SmolVLMConfig(**sizes).save_pretrained(folder)
    parts = SmolVLMImageProcessor(), small_tokenizer(), SmolVLMVideoProcessor()
    SmolVLMProcessor(*parts).save_pretrained(folder)
    return folder


def small_options(folder: Path) -> dict[str, Any]:
    return {
        "vlm_model_name": str(small_smolvlm(folder / "smolvlm")),
        "resize_imgs_with_padding": (32, 32),
        "num_vlm_layers": 4,
        "train_expert_only": False,
        "load_vlm_weights": False,
        "tokenizer_max_length": 8,
        "num_steps": 2,
    }


RECORDS = (
    PolicyRecord(
        type="smolvla",
        config="SmolVLAConfig",
        host=smolvla_host,
        upstream=smolvla_upstream,
        sequence="[view 1: 8x8] [view 2: 8x8] ... [text] [state]   (action expert beside it)",
        unfreeze="--policy.train_expert_only=false, or LoRA on the VLM: "
        + lora_flags(r".*\.text_model\.layers\..*\.(q|v)_proj"),
        pretrained=lambda config: config.load_vlm_weights or config.pretrained_path is not None,
        views=lambda config, present: (
            present + min(len(config.image_features) - present, config.empty_cameras)
        ),
        small=SmallPolicy(options=small_options, image_hw=(40, 60)),
        tap="block 12 of 16 of SmolVLM2",
        tokens="8 x 8 a view, padded",
        trains="language model: full or LoRA",
        page="hosts/smolvla.md",
    ),
)
