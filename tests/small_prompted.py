"""Small checkpoints of LeRobot's policies that take pictures in a prompt, made of the real classes, and
batches for them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from small_smolvla import WIDTH, WORDS

VOCABULARY = 96
SPECIAL = {
    "pad_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "bos_token": "<|im_start|>",
    "unk_token": "<unk>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
}
ID = {name: i for i, name in enumerate(SPECIAL)}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} <|im_end|> {% endfor %}"
)
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "pad_token_id": ID["pad_token"],
}
TOKENS = {name: ID[name.removesuffix("_id")] for name in ("image_token_id", "video_token_id")}
TOKENS |= {f"vision_{end}_token_id": ID[f"vision_{end}_token"] for end in ("start", "end")}


def small_tokenizer() -> Any:
    """Splits at white space; has the special tokens of Qwen and InternVL, and Qwen's template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {name: SPECIAL[name] for name in ("pad_token", "eos_token", "bos_token", "unk_token")}
    extra = {name: token for name, token in SPECIAL.items() if name not in named}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, extra_special_tokens=extra, **named)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


# ---- GR00T N1.7 --------------------------------------------------------------------------------------------


@cache
def groot_processor() -> Any:
    """What LeRobot would make of the files of Cosmos-Reason2, which cannot be downloaded here."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    half = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 64 * 64, "longest_edge": 16777216}
    pictures = Qwen2VLImageProcessor(patch_size=16, image_mean=half, image_std=half, size=size)
    tokenizer = small_tokenizer()
    tokenizer.padding_side = "left"
    return Qwen3VLProcessor(pictures, tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE)


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
    Qwen3VLConfig(
        text_config=TEXT | {"num_hidden_layers": 6, "rope_scaling": rope, "rope_theta": 10000.0},
        vision_config=vision,
        tie_word_embeddings=True,
        **TOKENS,
    ).save_pretrained(folder / "backbone")
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


@contextmanager
def tracked_crops() -> Iterator[Any]:
    """While inside, GR00T's preprocessor says what it cropped; gives LeRobot's module of it."""
    from lerobot.policies.groot import processor_groot as groot

    from lerobot_policy_spatial_forcing.crops import track_crops

    steps = groot.GrootN17PackInputsStep, groot.GrootN17VLMEncodeStep
    plain = [step.__call__ for step in steps]
    track_crops()
    try:
        yield groot
    finally:
        for step, call in zip(steps, plain, strict=True):
            step.__call__ = call


def groot_steps(config: Any, **encode: Any) -> list[Any]:
    """The two steps of GR00T's preprocessor that matter, for pictures of 128 x 128."""
    from lerobot.policies.groot.processor_groot import GrootN17PackInputsStep, GrootN17VLMEncodeStep

    horizon = {"action_horizon": config.chunk_size, "valid_action_horizon": config.chunk_size}
    pack = GrootN17PackInputsStep(
        max_state_dim=config.max_state_dim, max_action_dim=config.max_action_dim, **horizon
    )
    step = GrootN17VLMEncodeStep(**{"image_crop_size": [116, 116], "image_target_size": [128, 128]} | encode)
    step._proc = groot_processor()
    return [pack, step]


# ---- EO-1 --------------------------------------------------------------------------------------------------


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
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"num_hidden_layers": 4, "rope_scaling": rope},
        vision_config=vision,
        tie_word_embeddings=True,
        **TOKENS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    parts = Qwen2VLImageProcessor(), small_tokenizer(), Qwen2VLVideoProcessor()
    Qwen2_5_VLProcessor(*parts, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def eo1_steps(config: Any) -> list[Any]:
    from lerobot.policies.eo1.processor_eo1 import EO1ConversationTemplateStep, EO1QwenProcessorStep

    return [
        EO1ConversationTemplateStep(input_features=config.input_features, chunk_size=config.chunk_size),
        EO1QwenProcessorStep(
            processor_name=config.vlm_base,
            image_min_pixels=config.image_min_pixels,
            image_max_pixels=config.image_max_pixels,
        ),
    ]


# ---- EVO1 --------------------------------------------------------------------------------------------------


def small_evo1(folder: Path) -> Path:
    """An InternVL3 of six blocks, for pictures of 84 x 84, with its tokenizer."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import InternVLConfig, InternVLModel

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "num_hidden_layers": 6},
        vision_config=vision | {"image_size": 84, "patch_size": 14},
        image_token_id=ID["context_image_token"],
        image_seq_length=9,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        InternVLModel(config).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


# ---- batches -----------------------------------------------------------------------------------------------

# EVO1 makes its prompt in the forward.
STEPS: dict[str, Any] = {"groot": groot_steps, "eo1": eo1_steps, "evo1": lambda config: []}


def prompted(config: Any, raw: dict[str, Any], tasks: Sequence[str] | None = None, **options: Any) -> Any:
    """A raw batch through the steps of the policy's preprocessor that make prompts of it."""
    from lerobot.processor.converters import batch_to_transition, transition_to_batch

    tasks = ["move the hand to ball"] * len(raw["action"]) if tasks is None else list(tasks)
    transition = batch_to_transition(dict(raw) | {"task": tasks})
    for step in STEPS[config.type.removeprefix("sf_")](config, **options):
        transition = step(transition)
    return transition_to_batch(transition)
