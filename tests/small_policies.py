"""Small configurations of LeRobot's real policy classes, with a tokenizer made here; no downloads."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WORDS = [*"move the hand to ball push puck task state action go".split(), *":;,."]  # noqa: SIM905
SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<video>",
]
WIDTH = 32


def small_tokenizer() -> Any:
    """Splits at white space; has the special tokens that SmolVLM, PaliGemma and BART ask for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            "video_token": "<video>",
        },
    )


def small_smolvlm(folder: Path) -> Path:
    """A folder that ``vlm_model_name`` takes: configuration and processor of a small SmolVLM, no weights."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    config = SmolVLMConfig(
        image_token_id=4,
        scale_factor=2,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 64,
            "pad_token_id": 0,
        },
    )
    config.save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), small_tokenizer(), SmolVLMVideoProcessor()).save_pretrained(
        folder
    )
    return folder


FLORENCE = {
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
        "vocab_size": 64,
    },
}

OPTIONS: dict[str, dict[str, Any]] = {
    "smolvla": {
        "resize_imgs_with_padding": (32, 32),
        "num_vlm_layers": 4,
        "train_expert_only": False,
        "load_vlm_weights": False,
        "tokenizer_max_length": 8,
        "num_steps": 2,
    },
    "pi0": {"image_resolution": (56, 56), "num_inference_steps": 2, "tokenizer_max_length": 8},
    "pi05": {"image_resolution": (56, 56), "num_inference_steps": 2, "tokenizer_max_length": 24},
    "pi0_fast": {"image_resolution": (56, 56)},
    "act": {
        "pretrained_backbone_weights": None,
        "dim_model": WIDTH,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 4,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
    },
    "xvla": {
        "florence_config": FLORENCE,
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
    },
}
COMMON = {"chunk_size": 4, "n_action_steps": 2, "device": "cpu", "push_to_hub": False}


def options_of(kind: str, folder: Path) -> dict[str, Any]:
    """Options of the configuration class of LeRobot's policy ``kind``."""
    options = {**COMMON, **OPTIONS[kind]}
    if kind == "smolvla":
        options["vlm_model_name"] = str(small_smolvlm(folder / "smolvlm"))
    return options


@contextmanager
def small_parts(kind: str) -> Any:
    """While inside, names of models and sizes that LeRobot has written into its code mean small ones."""
    with pytest.MonkeyPatch.context() as patch:
        from transformers import AutoTokenizer

        real = AutoTokenizer.from_pretrained

        def from_pretrained(name: str, *args: Any, **kwargs: Any) -> Any:
            by_name = name in ("google/paligemma-3b-pt-224", "facebook/bart-large")
            return small_tokenizer() if by_name else real(name, *args, **kwargs)

        patch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
        if kind in ("pi0", "pi05", "pi0_fast"):
            _shrink_paligemma(patch, kind)
        yield


def _shrink_paligemma(patch: pytest.MonkeyPatch, kind: str) -> None:
    import importlib

    from transformers import CONFIG_MAPPING, PaliGemmaConfig, SiglipVisionConfig

    modeling = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")

    def small_paligemma() -> Any:
        config = PaliGemmaConfig(text_config={"model_type": "gemma"})
        config.vision_config = SiglipVisionConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14, image_size=56
        )
        config.projection_dim = WIDTH
        return config

    real = modeling.PaliGemmaForConditionalGenerationWithPiGemma

    def build(config: Any) -> Any:
        # LeRobot has written PaliGemma's own sizes over the small ones by now.
        config.vision_config.projection_dim, config.vision_config.intermediate_size = WIDTH, 32
        return real(config)

    patch.setattr(modeling, "PaliGemmaForConditionalGenerationWithPiGemma", build)
    patch.setattr(
        modeling, "CONFIG_MAPPING", {"paligemma": small_paligemma, "gemma": CONFIG_MAPPING["gemma"]}
    )
    # LeRobot's attention has eight heads written into it.
    sizes = modeling.GemmaConfig(width=WIDTH, depth=4, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=4)
    patch.setattr(modeling, "get_gemma_config", lambda variant: sizes)
