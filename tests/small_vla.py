"""TinyVLA at its smallest, an observation for it, and a watched run."""

from collections.abc import Callable

import torch
from torch import Tensor

from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.tap import Tap


def tiny_vla(**changes) -> TinyVLA:
    sizes = {"views": 2, "image_size": 28, "width": 16, "depth": 4, "heads": 2, "max_words": 3, "chunk": 2}
    return TinyVLA(**sizes | changes)


def observation(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """images_BV3HW, words_BK, state_BS."""
    return torch.rand(batch, 2, 3, 28, 28), torch.randint(1, 512, (batch, 3)), torch.randn(batch, 4)


def watch_and_run(tap: Tap, run: Callable, inputs: tuple) -> None:
    with tap.watch():
        run(*inputs)
