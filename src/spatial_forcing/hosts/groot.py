"""GR00T N1.7: Cosmos-Reason2, a Qwen3-VL, with the images in its prompt, and an action head.

Its preprocessor crops the images, at random in training, and leaves their patches only.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts.prompted import QWEN_LORA, image_grid, layer_reached, qwen_locate, unpatched
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import (
    PROMPT_TEMPLATE,
    PROMPT_TEXT,
    PROMPT_TOKENS,
    WIDTH,
    prompt_tokenizer,
)
from spatial_forcing.tap import Host

# Of Qwen3-VL's image processor, which Cosmos-Reason2 shares.
QWEN3_MEAN, QWEN3_STD = 0.5, 0.5


def groot_host(policy: Any, views: int) -> Host:
    vlm = policy._groot_model.backbone.model
    # Blocks after `select_layer` are gone by now.
    language, vision = vlm.model.language_model, vlm.config.vision_config
    side = 256 // (vision.patch_size * vision.spatial_merge_size)  # of LeRobot's default image
    return Host(
        name="GR00T N1.7",
        blocks=language.layers,
        final_norm=language.norm,
        width=vlm.config.text_config.hidden_size,
        layout=Layout(views, side, side),
        visual=None,
        layer=layer_reached(language.layers, groot_upstream(policy)),
        prompt=vlm,
        locate=qwen_locate(vlm.config),
    )


def groot_upstream(policy: Any) -> list[nn.Module]:
    return [policy._groot_model.backbone.visual]


def groot_images(policy: Any, batch: Mapping[str, Any]) -> list[Tensor]:
    """The images GR00T sees, reconstructed from their patches."""
    missing = [key for key in ("input_ids", "pixel_values", "image_grid_thw") if key not in batch]
    if missing:
        raise SpatialForcingError(
            f"The batch has no {', '.join(missing)}, which the preprocessor of groot leaves. It has: "
            f"{', '.join(sorted(batch))}."
        )
    vision = policy._groot_model.backbone.model.config.vision_config
    views, rows, cols = image_grid(batch["image_grid_thw"], len(batch["input_ids"]))
    images_BV3HW = unpatched(
        batch["pixel_values"], (views, rows, cols), vision.patch_size, vision.spatial_merge_size
    )
    return list((images_BV3HW * QWEN3_STD + QWEN3_MEAN).clamp(0, 1).unbind(1))


# ---- a small one -------------------------------------------------------------------------------------------


@cache
def small_processor() -> Any:
    """Small processor in place of the one from Cosmos-Reason2's files, for images of any size."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    half = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 64 * 64, "longest_edge": 16777216}
    images = Qwen2VLImageProcessor(patch_size=16, image_mean=half, image_std=half, size=size)
    tokenizer = prompt_tokenizer()
    tokenizer.padding_side = "left"
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=PROMPT_TEMPLATE)


def small_groot(folder: Path) -> Path:
    """A base checkpoint of GR00T N1.7: six blocks of Qwen3-VL, of which it keeps four."""
    if (folder / "base" / "config.json").is_file():
        return folder / "base"
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config
    from transformers import Qwen3VLConfig

    rope = {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"}
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    vision |= {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    sizes: dict[str, Any] = {
        "text_config": PROMPT_TEXT | {"num_hidden_layers": 6, "rope_scaling": rope, "rope_theta": 10000.0},
        "vision_config": vision,
        "tie_word_embeddings": True,
    }
    Qwen3VLConfig(**sizes, **PROMPT_TOKENS).save_pretrained(folder / "backbone")
    heads = {"num_attention_heads": 2, "dropout": 0.0, "final_dropout": True, "positional_embeddings": None}
    action = {"attention_head_dim": 8, "num_layers": 2, "norm_type": "ada_norm", "output_dim": 16}
    config = GR00TN17Config(
        model_name=str(folder / "backbone"),
        model_dtype="float32",
        dtype="float32",
        select_layer=4,
        backbone_embedding_dim=WIDTH,
        hidden_size=16,
        input_embedding_dim=16,
        max_state_dim=8,
        max_action_dim=8,
        action_horizon=4,
        max_seq_len=16,
        diffusion_model_cfg=heads | action | {"interleave_self_attention": True},
        vl_self_attention_cfg=heads | {"attention_head_dim": WIDTH // 2, "num_layers": 1},
        num_inference_timesteps=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        GR00TN17(config, load_backbone_weights=False).save_pretrained(folder / "base")
    return folder / "base"


def small_options(folder: Path) -> dict[str, Any]:
    sizes = {"use_bf16": False, "max_action_dim": 8, "max_state_dim": 8}
    return {"tune_llm": True, "base_model_path": str(small_groot(folder / "groot")), **sizes}


@contextmanager
def small_parts() -> Iterator[None]:
    """Context in which LeRobot builds the small processor."""
    from lerobot.policies.groot import processor_groot

    with mock.patch.object(processor_groot, "_build_n1_7_processor", return_value=small_processor()):
        yield


def small_steps(config: Any, **encode: Any) -> list[Any]:
    """The two steps of GR00T's preprocessor that matter, for images of 128 x 128."""
    from lerobot.policies.groot.processor_groot import GrootN17PackInputsStep, GrootN17VLMEncodeStep

    horizon = {"action_horizon": config.chunk_size, "valid_action_horizon": config.chunk_size}
    pack = GrootN17PackInputsStep(
        max_state_dim=config.max_state_dim, max_action_dim=config.max_action_dim, **horizon
    )
    step = GrootN17VLMEncodeStep(**{"image_crop_size": [116, 116], "image_target_size": [128, 128]} | encode)
    step._proc = small_processor()
    return [pack, step]


RECORDS = (
    PolicyRecord(
        type="groot",
        config="GrootConfig",
        host=groot_host,
        upstream=groot_upstream,
        sequence="[padding] [text] [view 1: 8x8] [view 2: 8x8] ... [text]   (action head on top)",
        unfreeze="--policy.tune_top_llm_layers=4, --policy.tune_llm=true or --policy.tune_visual=true, "
        f"or LoRA on the VLM: {QWEN_LORA}",
        pretrained=lambda config: True,
        images=groot_images,
        small=SmallPolicy(
            options=small_options,
            image_hw=(40, 60),
            parts=small_parts,
            steps=small_steps,
            needs=("diffusers", "tree"),
            extra="groot",
        ),
        tap="block 15 of 16 of Qwen3-VL with `tune_top_llm_layers=4`, else 12",
        tokens="8 x 8 a view, cropped",
        trains="language model: its last blocks, full or LoRA; or the vision tower",
        page="hosts/groot.md",
    ),
)
