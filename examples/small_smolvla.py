r"""A SmolVLM of a few hundred thousand parameters, to try ``sf_smolvla`` in minutes without a download.

    python examples/small_smolvla.py --out small-vlm
    lerobot-train --policy.type=sf_smolvla --policy.vlm_model_name=small-vlm --policy.num_vlm_layers=4 \
        --policy.resize_imgs_with_padding='[32,32]' --policy.train_expert_only=false ...

Writes the configuration of the real classes at small size and a tokenizer of a few words; LeRobot makes
random weights from it (``load_vlm_weights`` is off by default). It learns nothing useful: it shows that the
path works. docs/hosts/smolvla.md has the whole command.
"""

import argparse
from pathlib import Path
from typing import Any

WORDS = [*"move the hand to ball push puck task state action go".split(), *":;,."]  # noqa: SIM905
SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "video_token": "<video>",
}
EXTRA = ("image_token", "fake_image_token", "global_image_token", "end_of_utterance_token", "video_token")
WIDTH = 32


def small_tokenizer() -> Any:
    """Splits at white space; has the special tokens that SmolVLM, PaliGemma and BART ask for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {name: token for name, token in SPECIAL.items() if name not in EXTRA}
    extra = {name: SPECIAL[name] for name in EXTRA}
    return PreTrainedTokenizerFast(tokenizer_object=raw, extra_special_tokens=extra, **named)


def small_smolvlm(folder: Path) -> Path:
    """A folder that ``vlm_model_name`` takes: configuration and processor of a small SmolVLM, no weights."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
    config = SmolVLMConfig(
        image_token_id=list(SPECIAL).index("image_token"),
        scale_factor=2,
        vision_config=vision | {"image_size": 32, "patch_size": 4},
        text_config=text | {"pad_token_id": 0},
    )
    config.save_pretrained(folder)
    parts = SmolVLMImageProcessor(), small_tokenizer(), SmolVLMVideoProcessor()
    SmolVLMProcessor(*parts).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("small-vlm"), help="folder to write")
    print(small_smolvlm(parser.parse_args().out))
