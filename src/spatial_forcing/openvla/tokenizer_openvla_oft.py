"""The tokenizer of OpenVLA-OFT as a LeRobot policy: its files are saved in the policy's checkpoint.

LeRobot saves a tokenizer's name alone, which may be a folder that is gone where the checkpoint is read.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, TokenizerProcessorStep
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.openvla.base import local_checkpoint

CONFIG = "tokenizer_config.json"
FILES = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)
ADVICE = "Name a folder that has one, or a repository: --policy.tokenizer=<folder>, of convert --tokenizer."


class TokenizerError(SpatialForcingError):
    """A tokenizer cannot be found or read."""


def tokenizer_files(name: str) -> dict[str, bytes]:
    """The files of a tokenizer by name, from a folder or a repository on the Hub.

    Raises:
        TokenizerError: there is none.
    """
    try:
        folder = local_checkpoint(name, what="tokenizer", files=FILES)
    except SpatialForcingError as error:
        raise TokenizerError(f"{str(error).rstrip('.')}. {ADVICE}") from error
    found = {path.name: path.read_bytes() for pattern in FILES for path in sorted(folder.glob(pattern))}
    if CONFIG not in found:
        there = ", ".join(sorted(found)) or "no such file"
        raise TokenizerError(f"No tokenizer in {folder}: expected {CONFIG}, found {there}. {ADVICE}")
    return found


def tokenizer_of(files: Mapping[str, bytes], name: str) -> Any:
    """The tokenizer that some files are.

    Args:
        files: their content by name.
        name: where they are from, for messages.

    Raises:
        TokenizerError: they are none.
    """
    from transformers import AutoTokenizer

    # A folder of their own: beside a config.json of OpenVLA, transformers warns that it does not know that.
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            return AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # of many kinds: damaged files, packages that are missing
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise TokenizerError(f"The tokenizer of {name} cannot be read: {told[0]} {ADVICE}") from error


@ProcessorStepRegistry.register(name="openvla_tokenizer")
@dataclass
class OpenVLATokenizerStep(TokenizerProcessorStep):
    """Tokenises the prompts, with a tokenizer whose files are saved as the step's state.

    Args:
        files: of the tokenizer; empty until the state of a saved step is loaded.

    Raises:
        TokenizerError: without files the tokenizer is looked for under its name, when it is needed.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.files:
            self.input_tokenizer = tokenizer_of(self.files, str(self.tokenizer_name))

    def _tokenize_text(self, text: str | list[str]) -> dict[str, Tensor]:
        if self.input_tokenizer is None:  # saved without its state
            self._use(tokenizer_files(str(self.tokenizer_name)))
        return super()._tokenize_text(text)

    def _use(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.input_tokenizer = tokenizer_of(files, str(self.tokenizer_name))

    def state_dict(self) -> dict[str, Tensor]:
        return {
            name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
            for name, content in self.files.items()
            if content
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._use({name: tensor.cpu().numpy().tobytes() for name, tensor in state.items()})
