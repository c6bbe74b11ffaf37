"""EVO1: an InternVL3 with the images in its prompt, which is built in the forward, and an action head."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from spatial_forcing.grid import Layout
from spatial_forcing.hosts.prompted import layer_reached, token_indices
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import PROMPT_ID, PROMPT_TEXT, WIDTH, prompt_tokenizer
from spatial_forcing.tap import Host, Located


def evo1_host(policy: Any, views: int) -> Host:
    embedder = policy.model.embedder
    vlm = embedder.model
    side = round(embedder.num_image_token**0.5)
    # Cameras that are missing have tokens, too, of a black image behind the others.
    layout = Layout(policy.config.max_views, side, side)
    return Host(
        name="EVO1",
        blocks=vlm.language_model.layers,
        final_norm=vlm.language_model.norm,
        width=vlm.config.text_config.hidden_size,
        layout=layout,
        visual=None,
        layer=layer_reached(vlm.language_model.layers, evo1_upstream(policy)),
        prompt=vlm,
        locate=lambda call: Located(
            token_indices(call["input_ids"] == embedder.img_context_token_id, layout), layout
        ),
    )


def evo1_upstream(policy: Any) -> list[nn.Module]:
    vlm = policy.model.embedder.model
    return [vlm.vision_tower, vlm.multi_modal_projector]


# ---- a small one -------------------------------------------------------------------------------------------


def small_evo1(folder: Path) -> Path:
    """An InternVL3 of six blocks, for images of 84 x 84, with its tokenizer."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import InternVLConfig, InternVLModel

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes: dict[str, Any] = {
        "text_config": PROMPT_TEXT | {"model_type": "qwen2", "num_hidden_layers": 6},
        "vision_config": vision | {"image_size": 84, "patch_size": 14},
        "image_token_id": PROMPT_ID["context_image_token"],
        "image_seq_length": 9,
    }
    config = InternVLConfig(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        InternVLModel(config).save_pretrained(folder)
    prompt_tokenizer().save_pretrained(folder)
    return folder


def small_options(folder: Path) -> dict[str, Any]:
    return {
        "vlm_model_name": str(small_evo1(folder / "evo1")),
        "training_stage": "stage2",
        "use_amp": False,
        "vlm_dtype": "float32",
        "use_flash_attn": False,
        "vlm_num_layers": 4,
        "image_resolution": (84, 84),
        "max_views": 2,
        "max_action_dim": 8,
        "max_state_dim": 8,
        "embed_dim": WIDTH,
        "hidden_dim": 32,
        "state_hidden_dim": 32,
        "num_heads": 2,
        "num_layers": 1,
        "num_inference_timesteps": 2,
    }


RECORDS = (
    PolicyRecord(
        type="evo1",
        config="Evo1Config",
        host=evo1_host,
        upstream=evo1_upstream,
        pretrained=lambda config: True,
        sequence="[words] [view 1: 16x16] [words] [view 2: 16x16] ... [text]   (action head on top)",
        unfreeze="--policy.training_stage=stage2",
        views=lambda config, present: config.max_views,
        # Its prompt is made in the forward: there are no steps for it, and the batch names the task.
        small=SmallPolicy(options=small_options, image_hw=(40, 60), steps=lambda config: []),
        tap="block 10 of 14 of InternVL3",
        tokens="16 x 16 a view",
        trains="VLM: `training_stage=stage2`",
        page="hosts/evo1.md",
    ),
)
