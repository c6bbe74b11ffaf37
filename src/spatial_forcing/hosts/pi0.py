"""pi0, pi0.5 and pi0-FAST: visual tokens in PaliGemma's language model, one view after the other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Generator, Tensor, nn

from spatial_forcing.grid import Layout
from spatial_forcing.hosts.building import blocks_of_tokens, lora_flags
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.small import VOCABULARY, WIDTH, small_tokenizers
from spatial_forcing.site import Host, VisionEncoder


def pi_host(policy: Any, views: int) -> Host:
    model = policy.model.paligemma_with_expert.paligemma.model
    patch = model.config.vision_config.patch_size
    rows, cols = (side // patch for side in policy.config.image_resolution)
    return Host(
        name=policy.config.type.removeprefix("sf_"),
        blocks=model.language_model.layers,
        final_norm=model.language_model.norm,
        width=model.config.text_config.hidden_size,
        layout=Layout(views, rows, cols, "pad"),
        visual=blocks_of_tokens(views, rows * cols),
        layer=round(len(model.language_model.layers) * 2 / 3),  # 12 of 18 in the published code
        vision=pi_vision(policy, Layout(views, rows, cols, "pad")),
    )


def pi_vision(policy: Any, layout: Layout) -> VisionEncoder:
    """Vision encoder record of PaliGemma's SigLIP, called once per view; its grid is the language model's."""
    model = policy.model.paligemma_with_expert.paligemma.model
    encoder = model.vision_tower.vision_model
    lora = lora_flags(r".*\.vision_tower\..*\.(q|v)_proj")
    flag = "--policy.freeze_vision_encoder=false and --policy.train_expert_only=false, or "
    return VisionEncoder(
        blocks=encoder.encoder.layers,
        final_norm=encoder.post_layernorm,
        width=model.config.vision_config.hidden_size,
        layout=layout,
        calls="per view",
        upstream=(encoder.embeddings,),
        unfreeze=f"{flag if hasattr(policy.config, 'freeze_vision_encoder') else ''}LoRA on it: {lora}",
    )


def pi_upstream(policy: Any) -> list[nn.Module]:
    model = policy.model.paligemma_with_expert.paligemma.model
    return [model.vision_tower, model.multi_modal_projector]


# ---- small ones --------------------------------------------------------------------------------------------


@contextmanager
def small_parts(kind: str) -> Iterator[None]:
    """Context in which the sizes of PaliGemma and Gemma that LeRobot's code hard-codes are small."""
    from transformers import AutoProcessor

    modeling, processor = (
        import_module(f"lerobot.policies.{kind}.modeling_{kind}"),
        AutoProcessor.from_pretrained,
    )

    def few_actions_or_real(name: str, *args: Any, **kwargs: Any) -> Any:
        # The same words for every action of pi0-FAST.
        by_name = name == "lerobot/fast-action-tokenizer"
        return (lambda action: [[1, 2, 3]]) if by_name else processor(name, *args, **kwargs)

    real = modeling.PaliGemmaForConditionalGenerationWithPiGemma

    def build(config: Any) -> Any:
        # LeRobot has written PaliGemma's own sizes over the small ones by now.
        config.vision_config.projection_dim, config.vision_config.intermediate_size = WIDTH, 32
        config.text_config.vocab_size = VOCABULARY
        return real(config)

    # LeRobot's attention has eight heads written into it.
    sizes = modeling.GemmaConfig(width=WIDTH, depth=4, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=4)
    with ExitStack() as stack:
        stack.enter_context(small_tokenizers("google/paligemma-3b-pt-224"))
        for target, name, new in (
            (AutoProcessor, "from_pretrained", few_actions_or_real),
            (modeling, "PaliGemmaForConditionalGenerationWithPiGemma", build),
            (modeling, "CONFIG_MAPPING", {"paligemma": _small_paligemma, "gemma": _small_gemma}),
            (modeling, "get_gemma_config", lambda variant: sizes),
        ):
            stack.enter_context(mock.patch.object(target, name, new))
        yield


def _small_paligemma() -> Any:
    from transformers import PaliGemmaConfig, SiglipVisionConfig

    text: dict[str, Any] = {"text_config": {"model_type": "gemma"}}
    vision: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"patch_size": 14, "image_size": 56}
    config = PaliGemmaConfig(**text)
    config.vision_config = SiglipVisionConfig(**vision)
    config.projection_dim = WIDTH
    return config


def _small_gemma(**options: Any) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING["gemma"](**{**options, "vocab_size": VOCABULARY})


def _small(kind: str, options: dict[str, Any], **more: Any) -> SmallPolicy:
    def small_options(folder: Path) -> dict[str, Any]:
        return {"image_resolution": (56, 56), **options}

    return SmallPolicy(options=small_options, image_hw=(40, 60), parts=partial(small_parts, kind), **more)


def fast_inputs(config: Any, size: int, draw: Generator) -> dict[str, Tensor]:
    """Random action tokens in place of those that pi0-FAST's preprocessor makes."""
    return {
        "action.tokens": torch.randint(1, 20, (size, config.max_action_tokens), generator=draw),
        "action.token_mask": torch.ones(size, config.max_action_tokens, dtype=torch.bool),
    }


# ---- records -----------------------------------------------------------------------------------------------

_LORA = lora_flags(r".*\.paligemma\.model\.language_model\..*\.(q|v)_proj")


def _record(kind: str, config: str, text: str, unfreeze: str, small: SmallPolicy) -> PolicyRecord:
    return PolicyRecord(
        type=kind,
        config=config,
        host=pi_host,
        upstream=pi_upstream,
        sequence=f"[view 1: 16x16] [view 2: 16x16] ... {text}",
        unfreeze=unfreeze,
        small=small,
        tap="block 12 of 18 of Gemma, as published",
        tokens="16 x 16 a view, padded",
        trains="language model: full or LoRA",
        page="hosts/pi0.md",
    )


_EXPERT_OR_LORA = f"--policy.train_expert_only=false, or LoRA on the VLM: {_LORA}"
RECORDS = (
    _record(
        "pi0",
        "PI0Config",
        "[text]   (action expert beside it)",
        _EXPERT_OR_LORA,
        _small("pi0", {"num_inference_steps": 2, "tokenizer_max_length": 8}),
    ),
    _record(
        "pi05",
        "PI05Config",
        "[text with state]   (action expert beside it)",
        _EXPERT_OR_LORA,
        _small("pi05", {"num_inference_steps": 2, "tokenizer_max_length": 24}),
    ),
    _record(
        "pi0_fast",
        "PI0FastConfig",
        "[text] [action tokens]",
        f"LoRA on the VLM: {_LORA}",
        _small(
            "pi0_fast",
            {"tokenizer_max_length": 24, "max_action_tokens": 6, "fast_skip_tokens": 0},
            inputs=fast_inputs,
        ),
    ),
)
