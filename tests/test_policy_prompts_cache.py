"""Policies with images in their prompt: stored features move with GR00T's crops and with the cameras.

Shapes: B batch, V views, H W pixels.
"""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_batches import GROOT_CROP, HOW, PLAIN, raw_batch, transformed
from small_dataset import make_dataset
from small_policies import CAMERAS, LEFT, PROMPTED, RIGHT, SMALL, small_config, small_parts, small_policy
from small_prompted import prompted
from torch import Tensor

from spatial_forcing import patches
from spatial_forcing.cache.extract import extract
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import compose
from spatial_forcing.hosts.prompted import PACKED_KEY
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.patches.crops import crop_affine
from spatial_forcing.teachers import load_teacher


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4, size=SMALL)


def ramp(height: int, width: int, axis: int) -> Tensor:
    """An image (3, H, W): how far along an axis a pixel is, 0.25 to 0.75, and 1 to tell it from padding."""
    at = (torch.arange((width, height)[axis]) + 0.5) / (width, height)[axis]
    at = at[None, :].expand(height, width) if axis == 0 else at[:, None].expand(height, width)
    return torch.stack([0.25 + 0.5 * at, torch.ones_like(at), torch.ones_like(at)])


@pytest.mark.parametrize("size", [(120, 180), (180, 120), (150, 150)])
@pytest.mark.parametrize("how", HOW)
def test_the_affine_of_a_crop_is_what_it_does_to_a_ramp(how, size):
    position = (0.1, 0.8) if how.get("training") else None
    options = {key: value for key, value in how.items() if key not in ("use_albumentations", "training")}
    affine_23 = crop_affine(
        size,
        keeps_aspect=how["use_albumentations"],
        crop_position=position,
        **GROOT_CROP | PLAIN | options,
    )
    for axis in (0, 1):
        moved_HW, full_HW, _ = transformed(ramp(*size, axis), how, position)
        H, W = moved_HW.shape
        y_H, x_W = (torch.arange(H) + 0.5) / H, (torch.arange(W) + 0.5) / W
        scale_x, scale_y, shift = affine_23[axis]
        says_HW = scale_x * x_W + scale_y * y_H[:, None] + shift
        inside = full_HW > 0.999  # neither padding nor mixed with it
        assert inside.float().mean() > 0.4
        torch.testing.assert_close((moved_HW[inside] - 0.25) * 2, says_HW[inside], atol=0.02, rtol=0)


@pytest.mark.usefixtures("tracked")
def test_tracking_changes_nothing_and_says_what_was_cropped(folder):
    policy = small_policy("groot", folder)
    raw = raw_batch(3, image=(120, 180))
    how = {"use_albumentations": True, "training": True}
    random.seed(5)
    batch = prompted(policy.config, raw, **how)
    packed = batch.pop(PACKED_KEY)
    patches.undo_all()
    random.seed(5)
    plain = prompted(policy.config, raw, **how)
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[key], value) for key, value in plain.items() if isinstance(value, Tensor))
    assert packed.cameras == list(CAMERAS)
    random.seed(5)
    for sample in range(3):
        position = random.random(), random.random()
        expected = crop_affine((120, 180), keeps_aspect=True, crop_position=position, **GROOT_CROP, **PLAIN)
        assert torch.equal(packed.affine_BV23[sample], expected.expand(2, 2, 3))


def cached_policy(folder: Path, cache: Path, **options: Any) -> Any:
    return small_policy("groot", folder, forcing={"cache": str(cache)}, **options)


def test_stored_features_of_groot_move_with_the_crop_and_the_cameras(folder, dataset, tmp_path, tracked):
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = cached_policy(folder, cache)
    raw = raw_batch(2) | {"index": torch.tensor([1, 6])}
    batch = prompted(policy.config, raw)
    loss, logs = policy(batch)
    assert torch.isfinite(loss)
    assert logs["valid_fraction"] == 1
    source = policy.feature_source

    def packed(*cameras: str) -> dict[str, Any]:
        return batch | {PACKED_KEY: batch[PACKED_KEY]._replace(cameras=list(cameras))}

    shown = source.shown(policy, batch, None)
    crop_23 = crop_affine(SMALL, keeps_aspect=False, **GROOT_CROP, **PLAIN)
    assert torch.equal(source.affine_BV23(batch, shown), crop_23.expand(2, 2, 2, 3))
    stored = source.store.read(raw["index"])
    assert torch.equal(source(batch, shown).tokens_BVHWC, stored.tokens_BVHWC)
    # The same batch, its cameras packed in the other order.
    turned = packed(RIGHT, LEFT)
    shown = source.shown(policy, turned, None)
    assert torch.equal(source(turned, shown).tokens_BVHWC, stored.tokens_BVHWC.flip(1))
    another = packed(LEFT, "front")
    with pytest.raises(SpatialForcingError, match=r"shows front, of which nothing is stored.*left"):
        source(another, source.shown(policy, another, None))


@pytest.mark.parametrize("cached_first", [True, False])
def test_a_teacher_online_and_a_cache_may_stand_in_any_order(
    folder, dataset, tmp_path, tracked, cached_first
):
    """Only the cache needs to know which cameras the prompt shows."""
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    entries = [{"site": "blocks.2", "cache": str(cache)}, {"site": "blocks.3", "teacher": "untrained-tiny"}]
    listed = entries if cached_first else entries[::-1]
    policy = small_policy("groot", folder, forcing={"alignments": listed, "teacher": None})
    loss, _ = policy(prompted(policy.config, raw_batch(2) | {"index": torch.tensor([1, 6])}))
    assert torch.isfinite(loss)


def test_image_transforms_come_before_the_crop(folder, dataset, tmp_path, tracked):
    from spatial_forcing.patches.transforms import AFFINE_KEY

    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = cached_policy(folder, cache)
    moved = torch.tensor([[0.5, 0.0, 0.1], [0.0, 0.7, 0.2]]).expand(2, 2, 3)
    raw = raw_batch(2) | {"index": torch.tensor([1, 6]), AFFINE_KEY + RIGHT: moved}
    batch, source = prompted(policy.config, raw), policy.feature_source
    affine_BV23 = source.affine_BV23(batch, source.shown(policy, batch, None))
    crop_23 = crop_affine(SMALL, keeps_aspect=False, **GROOT_CROP, **PLAIN)
    torch.testing.assert_close(affine_BV23[:, 0], crop_23.expand(2, 2, 3))
    torch.testing.assert_close(affine_BV23[:, 1], compose(moved, crop_23))


def test_stored_features_without_the_crop_are_refused(folder, dataset, tmp_path, tracked):
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = cached_policy(folder, cache)
    batch = prompted(policy.config, raw_batch(2) | {"index": torch.tensor([1, 6])})
    del batch[PACKED_KEY]
    with pytest.raises(SpatialForcingError, match=r"images the policy's preprocessor packed.*teacher online"):
        policy(batch)


@pytest.mark.usefixtures("tracked")
def test_the_second_step_alone_does_what_it_does_without_the_patch(folder):
    from lerobot.lerobot_types import TransitionKey
    from lerobot.processor.converters import batch_to_transition

    pack, encode = RECORDS["groot"].small.steps(small_policy("groot", folder).config)
    packed = pack(batch_to_transition(raw_batch(2) | {"task": ["move", "move"]}))
    del packed[TransitionKey.COMPLEMENTARY_DATA][PACKED_KEY]
    tracked_alone = encode(copy.deepcopy(packed))[TransitionKey.COMPLEMENTARY_DATA]
    patches.undo_all()
    plain = encode(packed)[TransitionKey.COMPLEMENTARY_DATA]
    assert tracked_alone.keys() == plain.keys()
    assert all(torch.equal(tracked_alone[key], plain[key]) for key in ("input_ids", "pixel_values"))


@pytest.mark.parametrize("kind", PROMPTED)
def test_training_with_stored_features(folder, dataset, tmp_path, kind, request):
    from training_configs import train_config

    from spatial_forcing.train import read_metrics, train_or_continue

    if kind == "groot":
        request.getfixturevalue("tracked")
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    with small_parts(kind):
        config = small_config(kind, folder, forcing={"cache": str(cache)})
        run = train_config(
            config, dataset, tmp_path / "run", steps=2, batch_size=2, seed=3, save_every=2, log_every=1
        )
        rows = read_metrics(train_or_continue(run))
    assert [0 < row["align_loss"] < 2 for row in rows] == [True, True]
    assert [row["valid_fraction"] for row in rows] == [1, 1]
