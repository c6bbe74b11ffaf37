"""Differences between LeRobot's releases, detected by feature in this one place, not by version number.

LeRobot 0.6.1 gathers sharded weights in its trainer, hands them over as ``state_dict`` and calls one process;
the next release (main branch of 2026-08-23) gathers them inside ``_save_pretrained``, which all processes
call, and renames a batch before it preprocesses it.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def writes_here() -> bool:
    """Whether this process writes checkpoints: the first of a group, or the only one.

    LeRobot 0.6.1 calls no other; its next release calls all.
    """
    return not dist.is_initialized() or dist.get_rank() == 0


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 shards the parameters of a module, or of a part of it."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for part in module.modules())


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    """Gathers the sharded tensors (FSDP2) of a state dict, contiguous. All processes must call it then."""
    from torch.distributed.tensor import DTensor

    gathered = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in state.items()}
    return {name: tensor.contiguous() for name, tensor in gathered.items()}


def renames_before_preprocessing() -> bool:
    """Whether LeRobot's trainer gives its preprocessor batches that ``--rename_map`` was applied to."""
    from lerobot.scripts import lerobot_train

    return hasattr(lerobot_train, "rename_batch_keys")
