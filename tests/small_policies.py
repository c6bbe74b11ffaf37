"""Small policies of LeRobot's real classes, one for every record that says how it is made; no downloads."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from small_prompted import prompted

from spatial_forcing.hosts.record import SmallPolicy
from spatial_forcing.hosts.registry import RECORDS

HOSTS: dict[str, SmallPolicy] = {
    kind: record.small for kind, record in RECORDS.own().items() if record.small is not None
}
CAMERAS = ("observation.images.left", "observation.images.right")
LEFT, RIGHT = CAMERAS
WRIST = "observation.images.wrist"
SIZES = {LEFT: (40, 60), RIGHT: (64, 20), WRIST: (50, 50)}  # of three cameras, none like another
# Neither square nor a multiple of any stride, so that padding, its place and an overhang show.
SMALL, LARGE = (40, 60), (100, 150)
PICTURE = {kind: small.image_hw for kind, small in HOSTS.items()}
# Their visual tokens stand where the prompt has them.
PROMPTED = tuple(kind for kind, small in HOSTS.items() if small.steps is not None)
COMMON = {"chunk_size": 4, "n_action_steps": 2, "device": "cpu", "push_to_hub": False}


def options_of(kind: str, folder: Path) -> dict[str, Any]:
    """Options of the configuration class of LeRobot's policy ``kind``."""
    return {**COMMON, **HOSTS[kind].options(folder)}


def skip_without_parts(kind: str) -> None:
    """Skips a test of a policy where packages that it needs are missing; fails under CI=true."""
    missing = [name for name in HOSTS[kind].needs if find_spec(name) is None]
    if missing:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        what = f"lerobot_policy_spatial_forcing[{HOSTS[kind].extra}]"
        say(f"{kind} needs {', '.join(missing)}: pip install '{what}'")


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
    from lerobot.policies.factory import get_policy_class

    sizes = dict.fromkeys(CAMERAS, PICTURE[kind]) if sizes is None else sizes
    options = HOSTS[kind].without_data() | options
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
    kind = config.type.removeprefix("sf_")
    if kind in PROMPTED:
        return prompted(config, batch, tasks)
    batch["observation.language.tokens"] = torch.randint(1, 20, (size, words), generator=draw)
    batch["observation.language.attention_mask"] = torch.ones(size, words, dtype=torch.bool)
    return batch | HOSTS[kind].inputs(config, size, draw)


@contextmanager
def small_parts(*kinds: str) -> Iterator[None]:
    """While inside, names of models and sizes that LeRobot has written into its code mean small ones."""
    with ExitStack() as stack:
        for kind in kinds:
            if kind in HOSTS:
                stack.enter_context(HOSTS[kind].parts())
        yield


def aligned(policy, batch: dict):
    """(loss, valid_BVhw, |gradient of the alignment| of each visual token, same shape) of one forward."""
    loss, logs = policy(batch)
    shown = policy.feature_source.shown(policy, batch, None)
    how = {"image_hw": shown.sizes, "present_BV": shown.present_BV, "views": shown.view_indices}
    images = policy.feature_source(batch, shown)
    _, valid_BN = policy.forcing.target(images, **how)
    tap = policy.forcing.tap
    (gradient,) = torch.autograd.grad(policy.forcing(images, **how), tap.hidden_BLD)
    shape = (tap.layout.views, tap.layout.rows, tap.layout.cols)
    gradient_BN = tap.visual_of(gradient).norm(dim=-1)
    assert torch.isfinite(loss)
    assert logs["valid_fraction"] == pytest.approx(valid_BN.float().mean().item())
    return loss, valid_BN.unflatten(1, shape), gradient_BN.unflatten(1, shape)
