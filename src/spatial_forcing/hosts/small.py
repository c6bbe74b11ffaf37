"""Parts of small test policies: tokenizers with a few words, and sizes, so that nothing is downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

WIDTH, VOCABULARY = 32, 64
WORDS = [*"move the hand to ball push puck task state action go".split(), *":;,."]  # noqa: SIM905
NAMED = ("pad_token", "eos_token", "bos_token", "unk_token")

# SmolVLM, PaliGemma and BART ask for these.
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
# Qwen-VL and InternVL ask for these.
PROMPT_SPECIAL = {
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
PROMPT_ID = {name: i for i, name in enumerate(PROMPT_SPECIAL)}
PROMPT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} <|im_end|> {% endfor %}"
)
# Of the language models of Qwen-VL and InternVL.
PROMPT_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 1024,
    "pad_token_id": PROMPT_ID["pad_token"],
}
PROMPT_TOKENS: dict[str, Any] = {
    f"{name}_id": PROMPT_ID[name]
    for name in ("image_token", "video_token", "vision_start_token", "vision_end_token")
}


def small_tokenizer(special: dict[str, str] = SPECIAL) -> Any:
    """A tokenizer that splits at white space and knows ``WORDS`` and some special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {name: special[name] for name in NAMED}
    extra = {name: token for name, token in special.items() if name not in named}
    return PreTrainedTokenizerFast(tokenizer_object=raw, extra_special_tokens=extra, **named)


def prompt_tokenizer() -> Any:
    """A small tokenizer with the special tokens of Qwen-VL and InternVL, and a chat template like Qwen's."""
    tokenizer = small_tokenizer(PROMPT_SPECIAL)
    tokenizer.chat_template = PROMPT_TEMPLATE
    return tokenizer


@contextmanager
def small_tokenizers(*names: str) -> Iterator[None]:
    """Context in which loading the tokenizer of these repositories gives the small one."""
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained

    def small_or_real(name: str, *args: Any, **kwargs: Any) -> Any:
        return small_tokenizer() if name in names else real(name, *args, **kwargs)

    with mock.patch.object(AutoTokenizer, "from_pretrained", small_or_real):
        yield
