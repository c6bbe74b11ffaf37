"""LeRobot's real policies as hosts, at small size: forcing changes nothing that they do; clear errors.

Shapes: B batch, V views, h w rows and columns of the host's grid.
"""

import functools
from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from small_policies import (
    CAMERAS,
    LEFT,
    PICTURE,
    PROMPTED,
    RIGHT,
    aligned,
    small_batch,
    small_config,
    small_policy,
)
from torch import Tensor

from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.cache.store import CacheError
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts import host_of
from spatial_forcing.tap import TapError
from spatial_forcing.teachers import load_teacher

KINDS = tuple(PICTURE)
# test_policy_prompts.py has more of those that take their images in a prompt.
UNPROMPTED = tuple(kind for kind in KINDS if kind not in PROMPTED)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4, size=(40, 60))


# ---- the host does not notice ------------------------------------------------------------------------------


def step(policy, batch: dict) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(loss, gradients of the host, state of the random numbers after it)."""
    torch.manual_seed(11)
    loss, _ = policy(batch)
    loss.backward()
    named = {name: p.grad for name, p in policy.named_parameters() if not name.startswith("forcing.")}
    return loss.detach(), named, torch.get_rng_state()


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_the_plain_policy_bit_for_bit(folder, kind):
    plain = small_policy(kind, folder)
    forced = small_policy(kind, folder, forcing={"loss_weight": 0.0})
    loss, gradients, after = step(plain, small_batch(plain))
    same_loss, same_gradients, same_after = step(forced, small_batch(forced))
    assert torch.equal(loss, same_loss)
    assert torch.equal(after, same_after), "forcing drew random numbers of the host"
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        same = same_gradients[name]
        # A zero where the host has none is what multiplying by the weight leaves.
        assert (same is None or not same.any()) if gradient is None else torch.equal(gradient, same), name


@pytest.mark.parametrize("kind", KINDS)
def test_forcing_changes_neither_the_action_loss_nor_what_the_policy_does(folder, kind):
    plain, forced = small_policy(kind, folder), small_policy(kind, folder, forcing={"loss_weight": 3.0})
    batch = small_batch(plain)
    losses = []
    for policy in (plain, forced):
        torch.manual_seed(5)
        losses.append(policy(batch))
    assert losses[0][0].item() == losses[1][1]["action_loss"]
    outputs = []
    for policy in (plain.eval(), forced.eval()):
        torch.manual_seed(5)
        with torch.no_grad():
            loss, logs = policy(dict(batch))
        assert "align_loss" not in logs
        # pi0-FAST decodes words with its tokenizer, of which the small one knows nothing.
        actions = loss if kind == "pi0_fast" else policy.predict_action_chunk(dict(batch))
        outputs.append((loss, actions))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


# ---- bad input ---------------------------------------------------------------------------------------------


@functools.cache
def deepest_tap(kind: str, folder: Path) -> int:
    """Four blocks, the last of which can be read where a norm follows it (X-VLA's reads the actions only)."""
    host = host_of(small_policy(kind, folder))
    return len(host.blocks) - (host.final_norm is None)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_beyond_the_hosts_layers(folder, kind):
    deepest = deepest_tap(kind, folder)
    with pytest.raises(TapError, match=rf"has no site .* It has blocks.0 to blocks.{deepest}"):
        small_policy(kind, folder, forcing={"site": f"blocks.{deepest + 1}"})


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_depth_can_be_tapped(folder, kind, layer):
    layer = min(layer, deepest_tap(kind, folder))
    policy = small_policy(kind, folder, forcing={"site": f"blocks.{layer}"})
    _, valid_BVhw, gradient_BVhw = aligned(policy, small_batch(policy))
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)


def test_unknown_types_are_answered_with_the_known_ones():
    from lerobot.policies.factory import get_policy_class

    with pytest.raises(ValueError, match=r"sf_nothing.*sf_smolvla"):
        get_policy_class("sf_nothing")


@pytest.mark.parametrize("kind", UNPROMPTED)
def test_batches_without_any_camera(folder, kind):
    policy = small_policy(kind, folder, forcing={})
    with pytest.raises(SpatialForcingError, match=rf"none of the cameras.*{LEFT}.*It has: action"):
        policy(small_batch(policy, without=CAMERAS))


def test_caches_of_something_else_are_refused(folder, dataset, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    teacher = load_teacher("untrained-tiny")
    how = Extraction(cameras=[RIGHT, LEFT])
    turned = extract(dataset, teacher, "untrained-tiny", tmp_path / "turned", how)
    other = make_dataset(tmp_path / "other", episodes=1, frames=3, size=(40, 60), seed=5)
    elsewhere = extract(other, teacher, "untrained-tiny", tmp_path / "elsewhere")
    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    for cache, name, says in (
        (turned, "untrained-tiny", "cameras"),
        (elsewhere, "untrained-tiny", "of another data set"),
        (elsewhere, "pixels", "is of teacher"),
    ):
        config = small_config("smolvla", folder, forcing={"cache": str(cache), "teacher": name})
        with pytest.raises(CacheError, match=says):
            make_policy(config, ds_meta=meta)


def test_stored_features_need_to_know_their_frames(folder, dataset, tmp_path):
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = small_policy("smolvla", folder, forcing={"cache": str(cache)})
    batch = small_batch(policy)
    with pytest.raises(SpatialForcingError, match="frame `index`"):
        policy(batch)
    loss, logs = policy(batch | {"index": torch.tensor([0, 3, 7])})
    assert torch.isfinite(loss)
    assert logs["valid_fraction"] == 0.75
