"""Small configurations of LeRobot's real policy classes, with a tokenizer made here; no downloads."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from small_prompted import STEPS, groot_processor, prompted, small_eo1, small_evo1, small_groot
from small_smolvla import WIDTH, small_smolvlm, small_tokenizer

VOCABULARY = 64
CAMERAS = ("observation.images.left", "observation.images.right")
# Neither square nor a multiple of any stride, so that padding, its place and an overhang show.
SMALL, LARGE = (40, 60), (100, 150)
# ACT and X-VLA have a token per 32 pixels and take pictures as they come.
PICTURE = {"smolvla": SMALL, "pi0": SMALL, "pi05": SMALL, "pi0_fast": SMALL, "act": LARGE, "xvla": LARGE}
PICTURE |= {"groot": SMALL, "eo1": SMALL, "evo1": SMALL}
# Their visual tokens stand where the prompt has them.
PROMPTED = tuple(STEPS)


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
        "vocab_size": VOCABULARY,
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
    "pi0_fast": {
        "image_resolution": (56, 56),
        "tokenizer_max_length": 24,
        "max_action_tokens": 6,
        "fast_skip_tokens": 0,
    },
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
    "groot": {"tune_llm": True, "use_bf16": False, "max_action_dim": 8, "max_state_dim": 8},
    "eo1": {
        "dtype": "float32",
        "image_min_pixels": 4 * 28 * 28,
        "image_max_pixels": 12 * 28 * 28,
        "max_action_dim": 8,
        "max_state_dim": 8,
        "num_denoise_steps": 2,
    },
    "evo1": {
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
    },
}
COMMON = {"chunk_size": 4, "n_action_steps": 2, "device": "cpu", "push_to_hub": False}


def options_of(kind: str, folder: Path) -> dict[str, Any]:
    """Options of the configuration class of LeRobot's policy ``kind``."""
    options = {**COMMON, **OPTIONS[kind]}
    if kind == "smolvla":
        options["vlm_model_name"] = str(small_smolvlm(folder / "smolvlm"))
    if kind == "groot":
        options["base_model_path"] = str(small_groot(folder / "groot"))
    if kind == "eo1":
        options["vlm_base"] = str(small_eo1(folder / "eo1"))
    if kind == "evo1":
        options["vlm_model_name"] = str(small_evo1(folder / "evo1"))
    return options


def skip_without_parts(kind: str) -> None:
    """Skips a test of GR00T where the packages of its action head are missing; fails under CI=true."""
    missing = [name for name in ("diffusers", "tree") if kind == "groot" and find_spec(name) is None]
    if missing:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"GR00T needs {', '.join(missing)}: pip install 'spatial-forcing[groot]'")


def features_of(sizes: Mapping[str, tuple[int, int]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's input and output features: a camera for each size (height, width), 4 states, 4 actions."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in sizes.items()}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (4,))
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (4,))}


def small_config(
    kind: str,
    folder: Path,
    *,
    forcing: dict[str, Any] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    **options: Any,
) -> Any:
    """The configuration of ``kind``, or of ``sf_<kind>`` if there are forcing options."""
    from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
    from lerobot_policy_spatial_forcing.forcing import ForcingConfig

    skip_without_parts(kind)
    options = {**options_of(kind, folder), **options}
    if sizes is not None:
        options["input_features"], options["output_features"] = features_of(sizes)
    if forcing is None:
        return CLASSES[kind].plain_class(**options)
    return CLASSES[kind](**options, forcing=ForcingConfig(**{"teacher": "untrained-tiny"} | forcing))


def small_policy(
    kind: str,
    folder: Path,
    *,
    forcing: dict[str, Any] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    seed: int = 7,
    **options: Any,
) -> Any:
    """A policy of ``kind`` with random weights, in training mode; with forcing if there are options of it.

    The same seed gives the same weights with forcing and without.
    """
    from lerobot.configs.types import NormalizationMode
    from lerobot.policies.factory import get_policy_class

    sizes = dict.fromkeys(CAMERAS, PICTURE[kind]) if sizes is None else sizes
    if kind == "act":  # it wants the statistics of a data set, and there is none here
        options = {"normalization_mapping": {"VISUAL": NormalizationMode.IDENTITY}} | options
    with small_parts(kind):
        config = small_config(kind, folder, forcing=forcing, sizes=sizes, **options)
        torch.manual_seed(seed)
        return get_policy_class(config.type)(config).train()


def small_batch(
    policy: Any,
    size: int = 3,
    *,
    seed: int = 1,
    without: tuple[str, ...] = (),
    tasks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A random batch as a policy's preprocessor would leave it, for all cameras but those ``without``.

    ``tasks``: what to do, sample by sample, for policies with a prompt.
    """
    draw = torch.Generator().manual_seed(seed)
    config = policy.config
    batch = {
        key: torch.rand(size, *feature.shape, generator=draw)
        for key, feature in config.image_features.items()
        if key not in without and "empty_camera" not in key
    }
    words = getattr(config, "tokenizer_max_length", 8)
    batch["observation.state"] = torch.randn(size, 4, generator=draw)
    batch["action"] = torch.randn(size, config.chunk_size, 4, generator=draw)
    batch["action_is_pad"] = torch.zeros(size, config.chunk_size, dtype=torch.bool)
    if config.type.removeprefix("sf_") in PROMPTED:
        return prompted(config, batch, tasks)
    batch["observation.language.tokens"] = torch.randint(1, 20, (size, words), generator=draw)
    batch["observation.language.attention_mask"] = torch.ones(size, words, dtype=torch.bool)
    if config.type.endswith("pi0_fast"):
        batch["action.tokens"] = torch.randint(1, 20, (size, config.max_action_tokens), generator=draw)
        batch["action.token_mask"] = torch.ones(size, config.max_action_tokens, dtype=torch.bool)
    return batch


@contextmanager
def small_parts(*kinds: str) -> Iterator[None]:
    """While inside, names of models and sizes that LeRobot has written into its code mean small ones."""
    with pytest.MonkeyPatch.context() as patch:
        from transformers import AutoProcessor, AutoTokenizer

        tokenizer, processor = AutoTokenizer.from_pretrained, AutoProcessor.from_pretrained

        def small_or_real(name: str, *args: Any, **kwargs: Any) -> Any:
            by_name = name in ("google/paligemma-3b-pt-224", "facebook/bart-large")
            return small_tokenizer() if by_name else tokenizer(name, *args, **kwargs)

        def few_actions_or_real(name: str, *args: Any, **kwargs: Any) -> Any:
            # The same words for every action of pi0-FAST.
            by_name = name == "lerobot/fast-action-tokenizer"
            return (lambda action: [[1, 2, 3]]) if by_name else processor(name, *args, **kwargs)

        patch.setattr(AutoTokenizer, "from_pretrained", small_or_real)
        patch.setattr(AutoProcessor, "from_pretrained", few_actions_or_real)
        for kind in {"pi0", "pi05", "pi0_fast"}.intersection(kinds):
            _shrink_paligemma(patch, kind)
        if "groot" in kinds:
            from lerobot.policies.groot import processor_groot

            patch.setattr(processor_groot, "_build_n1_7_processor", lambda name: groot_processor())
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

    def small_gemma(**options: Any) -> Any:
        return CONFIG_MAPPING["gemma"](**{**options, "vocab_size": VOCABULARY})

    real = modeling.PaliGemmaForConditionalGenerationWithPiGemma

    def build(config: Any) -> Any:
        # LeRobot has written PaliGemma's own sizes over the small ones by now.
        config.vision_config.projection_dim, config.vision_config.intermediate_size = WIDTH, 32
        config.text_config.vocab_size = VOCABULARY
        return real(config)

    patch.setattr(modeling, "PaliGemmaForConditionalGenerationWithPiGemma", build)
    patch.setattr(modeling, "CONFIG_MAPPING", {"paligemma": small_paligemma, "gemma": small_gemma})
    # LeRobot's attention has eight heads written into it.
    sizes = modeling.GemmaConfig(width=WIDTH, depth=4, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=4)
    patch.setattr(modeling, "get_gemma_config", lambda variant: sizes)
