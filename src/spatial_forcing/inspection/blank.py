"""A LeRobot policy on the meta device, built by LeRobot's own class: names and shapes without weights."""

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from spatial_forcing.teachers.checkpoint import Differences, differences

Shapes = Mapping[str, tuple[int, ...]]
FLORENCE = "vendored_florence_state_dict"


@contextmanager
def without_weights() -> Iterator[None]:
    """Context in which models come to the meta device, and transformers reads configurations alone.

    Some policies begin with the weights of a vision-language model (`from_pretrained`), which those of their
    checkpoint replace; here its configuration is enough.
    """
    from transformers import PretrainedConfig, PreTrainedModel

    def from_config(cls: Any, name: Any, *_: Any, config: Any = None, **__: Any) -> Any:
        known = isinstance(config, PretrainedConfig)
        return cls(config if known else cls.config_class.from_pretrained(name))

    with (
        mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_config)),
        torch.device("meta"),
    ):
        yield


def blank_policy(config: Any, folder: Path) -> Any:
    """Builds the policy of a configuration on the meta device.

    Args:
        config: LeRobot's; it is changed.
        folder: of the checkpoint that it is from.
    """
    from lerobot.policies.factory import get_policy_class

    config.device, config.pretrained_path = "meta", folder
    if hasattr(config, "pretrained_backbone_weights"):  # torchvision's, which would be downloaded
        config.pretrained_backbone_weights = None
    with without_weights(), contextlib.redirect_stdout(io.StringIO()):
        return get_policy_class(config.type)(config)


def policy_differences(policy: Any, found: Shapes) -> Differences:
    """Compares the tensors of a checkpoint with those of a policy, as LeRobot would rename them.

    Of tensors that are one in the model (tied weights) a checkpoint holds any.
    """
    tied: dict[int, list[str]] = {}
    for name, tensor in policy.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), []).append(name)
    there = _renamed(policy, found)
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    for names in tied.values():
        if any(name in there for name in names):
            for absent in [name for name in names if name not in there]:
                del expected[absent]
    return differences(there, expected)


def _renamed(policy: Any, found: Shapes) -> Shapes:
    """Shapes under the names that LeRobot's loading gives to tensors of earlier layouts."""
    state: dict[str, Tensor] = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
    modeling = importlib.import_module(type(policy).__module__)
    if (fix := getattr(policy, "_fix_pytorch_state_dict_keys", None)) is not None:  # pi0's family
        state = fix(state, policy.config)
        state = {n if n.startswith("model.") else f"model.{n}": tensor for n, tensor in state.items()}
    elif (is_earlier := getattr(modeling, f"_is_{FLORENCE}", None)) is not None and is_earlier(state):
        state = getattr(modeling, f"_remap_{FLORENCE}")(state)  # X-VLA's
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
