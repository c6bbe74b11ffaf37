"""X-VLA: a policy transformer over actions, Florence-2's visual tokens, text and soft prompts.

Shapes: B batch, L sequence, D width.
"""

from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.grid import Layout
from spatial_forcing.hosts.building import image_size
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import VOCABULARY, WIDTH, small_tokenizers
from spatial_forcing.tap import Host


def xvla_host(policy: Any, views: int) -> Host:
    config, transformer = policy.config, policy.model.transformer
    resize = config.resize_imgs_with_padding
    height, width = image_size(config) if resize is None else resize
    stride = 32  # of Florence-2's vision tower: 4 x 2 x 2 x 2
    rows, cols = ceil(height / stride), ceil(width / stride)
    tokens = 1 + rows * cols  # each view begins with its mean
    prompts = config.len_soft_prompts

    def visual(hidden_BLD: Tensor) -> Tensor:
        # actions | view 1, text | the other views | soft prompts
        start, end = config.chunk_size, hidden_BLD.shape[1] - prompts
        first = hidden_BLD[:, start + 1 : start + tokens]
        others = hidden_BLD[:, end - (views - 1) * tokens : end].unflatten(1, (views - 1, tokens))[:, :, 1:]
        return torch.cat([first, others.flatten(1, 2)], dim=1)

    return Host(
        name="X-VLA",
        blocks=transformer.blocks,
        final_norm=None,  # only the actions pass it
        width=config.hidden_size,
        layout=Layout(
            views,
            rows,
            cols,
            "stretch" if resize is None else "pad",
            anchor=(1.0, 1.0),
            overhang=(cols * stride / width, rows * stride / height),
            offset=(1 - stride) / (2 * stride),
        ),
        visual=visual,
        entry="norm1",
    )


SMALL_FLORENCE = {
    "vision_config": {
        "model_type": "florence_vision",
        "embed_dim": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "num_groups": [1, 1, 2, 2],
        "depths": [1, 1, 1, 1],
        "window_size": 4,
        "projection_dim": WIDTH,
    },
    "text_config": {
        "d_model": WIDTH,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "vocab_size": VOCABULARY,
    },
}


def small_options(folder: Path) -> dict[str, Any]:
    return {
        "florence_config": SMALL_FLORENCE,
        "hidden_size": WIDTH,
        "depth": 4,
        "num_heads": 2,
        "num_domains": 2,
        "len_soft_prompts": 3,
        "dim_time": 8,
        "max_len_seq": 128,
        "tokenizer_max_length": 8,
        "pad_language_to": "max_length",
        "action_mode": "auto",
        "max_action_dim": 8,
        "max_state_dim": 8,
    }


RECORDS = (
    PolicyRecord(
        type="xvla",
        config="XVLAConfig",
        host=xvla_host,
        upstream=lambda policy: [policy.model.vlm, policy.model.transformer.vlm_proj],
        sequence="[actions] [view 1: mean, 7x7] [text] [view 2: mean, 7x7] ... [soft prompts]",
        unfreeze="--policy.train_policy_transformer=true",
        pixels="imagenet",
        language_model=False,
        views=lambda config, present: max(config.num_image_views or 0, present),
        small=SmallPolicy(
            options=small_options,
            image_hw=(100, 150),  # a token per 32 pixels
            parts=partial(small_tokenizers, "facebook/bart-large"),
        ),
        tap="block 18 of 24 of the policy transformer",
        tokens="7 x 7 a view at 224 px, and a mean token that is left out",
        trains="always does",
        page="hosts/xvla.md",
    ),
)
