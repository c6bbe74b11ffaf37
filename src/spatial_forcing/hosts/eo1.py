"""EO-1: a Qwen2.5-VL with the images in its prompt, which denoises actions itself."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from spatial_forcing.grid import Layout
from spatial_forcing.hosts.prompted import QWEN_LORA, qwen_locate
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import (
    PROMPT_TEMPLATE,
    PROMPT_TEXT,
    PROMPT_TOKENS,
    WIDTH,
    prompt_tokenizer,
)
from spatial_forcing.tap import Host


def eo1_host(policy: Any, views: int) -> Host:
    vlm = policy.model.vlm_backbone.model
    language, vision = vlm.language_model, vlm.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    # LeRobot asks for at most so many pixels; how they are shared out the prompt will say.
    most = policy.config.image_max_pixels or 1280 * side**2
    rows = cols = max(1, int((most / side**2) ** 0.5))
    return Host(
        name="EO-1",
        blocks=language.layers,
        final_norm=language.norm,
        width=vlm.config.text_config.hidden_size,
        layout=Layout(views, rows, cols),
        visual=None,
        prompt=vlm,
        locate=qwen_locate(vlm.config),
    )


def eo1_upstream(policy: Any) -> list[nn.Module]:
    return [policy.model.vlm_backbone.model.visual]


# ---- a small one -------------------------------------------------------------------------------------------


def small_eo1(folder: Path) -> Path:
    """A Qwen2.5-VL of four blocks with its processor."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    rope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    sizes: dict[str, Any] = {
        "text_config": PROMPT_TEXT | {"num_hidden_layers": 4, "rope_scaling": rope},
        "vision_config": vision,
        "tie_word_embeddings": True,
    }
    config = Qwen2_5_VLConfig(**sizes, **PROMPT_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    parts = Qwen2VLImageProcessor(), prompt_tokenizer(), Qwen2VLVideoProcessor()
    Qwen2_5_VLProcessor(*parts, chat_template=PROMPT_TEMPLATE).save_pretrained(folder)
    return folder


def small_options(folder: Path) -> dict[str, Any]:
    return {
        "vlm_base": str(small_eo1(folder / "eo1")),
        "dtype": "float32",
        "image_min_pixels": 4 * 28 * 28,
        "image_max_pixels": 12 * 28 * 28,
        "max_action_dim": 8,
        "max_state_dim": 8,
        "num_denoise_steps": 2,
    }


def small_steps(config: Any) -> list[Any]:
    from lerobot.policies.eo1.processor_eo1 import EO1ConversationTemplateStep, EO1QwenProcessorStep

    return [
        EO1ConversationTemplateStep(input_features=config.input_features, chunk_size=config.chunk_size),
        EO1QwenProcessorStep(
            processor_name=config.vlm_base,
            image_min_pixels=config.image_min_pixels,
            image_max_pixels=config.image_max_pixels,
        ),
    ]


RECORDS = (
    PolicyRecord(
        type="eo1",
        config="EO1Config",
        host=eo1_host,
        upstream=eo1_upstream,
        pretrained=lambda config: True,
        sequence="[text] [view 1: H/28 x W/28] [view 2: H/28 x W/28] ... [text] [state] [actions]",
        unfreeze=f"LoRA on the VLM: {QWEN_LORA}",
        small=SmallPolicy(options=small_options, image_hw=(40, 60), steps=small_steps),
        tap="block 27 of 36 of Qwen2.5-VL",
        tokens="H/28 x W/28 a view after resizing to at most 128",
        trains="always does",
        page="hosts/eo1.md",
    ),
)
