"""Aligning some of a policy's cameras, online and from a cache, in any order, under other names.

Shapes: B batch, V views, h w rows and columns of the host's grid.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_dataset import make_dataset
from small_policies import LEFT, RIGHT, SMALL, WRIST, small_batch, small_config, small_policy
from small_prompted import prompted
from small_teachers import SMALL_TEACHERS
from torch import Tensor
from torch.testing import assert_close

from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from spatial_forcing import patches
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.cache.store import CacheError
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.grid import flip
from spatial_forcing.hosts.prompted import PACKED_KEY
from spatial_forcing.patches.transforms import AFFINE_KEY
from spatial_forcing.teachers import RECORDS, load_teacher
from spatial_forcing.train import checkpoints
from spatial_forcing.train_command import TrainCommand

THREE = (LEFT, RIGHT, WRIST)
TEACHER = "untrained-tiny"  # attends across views: what it says of one depends on the others
CHOICES = [[WRIST, LEFT], [LEFT, WRIST], [RIGHT], [RIGHT, WRIST, LEFT]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "small"
    return make_dataset(root, episodes=2, frames=2, size=SMALL, cameras=THREE)


def stored(dataset: Path, root: Path, cameras: list[str], teacher: str = TEACHER) -> str:
    how = Extraction(cameras=cameras, codec=CodecOptions("raw"))
    return str(extract(dataset, load_teacher(teacher), teacher, root, how))


def policy_of(folder: Path, kind: str = "smolvla", **forcing: Any) -> Any:
    return small_policy(kind, folder, forcing=forcing, sizes=dict.fromkeys(THREE, SMALL))


def frames_of(dataset: Path, policy: Any, indices: list[int]) -> dict[str, Any]:
    """A batch with the images of these frames; the rest of it is random."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    frames = [LeRobotDataset("local/small", root=dataset)[index] for index in indices]
    shown = {key: torch.stack([frame[key] for frame in frames]) for key in THREE}
    return small_batch(policy, len(indices)) | shown | {"index": torch.tensor(indices)}


def seen_by_the_teacher(policy: Any, batch: dict[str, Any]) -> tuple[list[Tensor], dict[str, float]]:
    """(images_BV3HW of each look, logs) of one training forward with the teacher online."""
    looks: list[Tensor] = []
    teacher = policy.forcing.teacher
    handle = teacher.register_forward_pre_hook(lambda module, args: looks.append(args[0]))
    torch.manual_seed(0)
    _, logs = policy(batch)
    handle.remove()
    return looks, logs


def reached_views(policy: Any, batch: dict[str, Any]) -> list[int]:
    """The host's views to whose tokens the alignment has a gradient; checks it is those that are valid."""
    shown = policy.feature_source.shown(policy, batch, None)
    seen, affine_BV23 = (
        policy.feature_source(batch, shown),
        policy.feature_source.affine_BV23(batch, shown),
    )
    how = {"image_hw": shown.sizes, "views": shown.view_indices}
    policy(batch)
    align, tap = policy.forcing(seen, affine_BV23, **how), policy.forcing.tap
    (gradient,) = torch.autograd.grad(align, tap.hidden_BLD)
    shape = (tap.layout.views, tap.layout.rows, tap.layout.cols)
    gradient_BVhw = tap.visual_of(gradient).norm(dim=-1).unflatten(1, shape)
    valid_BVhw = policy.forcing.target(seen, affine_BV23, **how)[1].unflatten(1, shape)
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)
    return valid_BVhw.any(-1).any(-1).all(0).nonzero().flatten().tolist()


@pytest.mark.parametrize("cameras", CHOICES)
def test_online_the_teacher_sees_the_chosen_cameras_and_their_tokens_alone_are_aligned(
    folder, dataset, cameras
):
    policy = policy_of(folder, cameras=cameras)
    batch = frames_of(dataset, policy, [0, 3])
    (look_BV3HW,), _ = seen_by_the_teacher(policy, batch)
    assert torch.equal(look_BV3HW, torch.stack([batch[key] for key in cameras], dim=1))
    assert reached_views(policy, batch) == sorted(THREE.index(key) for key in cameras)


@pytest.mark.parametrize("cameras", CHOICES)
def test_a_cache_of_the_chosen_cameras_gives_what_the_teacher_online_does(folder, dataset, tmp_path, cameras):
    online, cached = (
        policy_of(folder, cameras=cameras, **more)
        for more in ({}, {"cache": stored(dataset, tmp_path / "features", cameras), "standardize": False})
    )
    batch = frames_of(dataset, online, [0, 3])
    losses = []
    for policy in (online, cached):
        torch.manual_seed(0)
        losses.append(policy(batch)[1]["align_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert reached_views(cached, batch) == sorted(THREE.index(key) for key in cameras)


@pytest.mark.parametrize("kind", ["vggt-tiny-sim-2d", "da3"])
def test_where_their_order_does_not_matter_cameras_may_be_stored_in_any(folder, dataset, tmp_path, kind):
    """To a teacher of single views, and to Depth Anything 3 with three views or more."""
    teacher = kind if kind in RECORDS else str(SMALL_TEACHERS[kind](tmp_path))
    cache = stored(dataset, tmp_path / "features", [WRIST, LEFT, RIGHT], teacher)
    online, cached = (
        policy_of(folder, cameras=[RIGHT, WRIST, LEFT], teacher=teacher, **more)
        for more in ({}, {"cache": cache})
    )
    batch = frames_of(dataset, online, [0, 3])
    seen = [
        policy.feature_source(batch, policy.feature_source.shown(policy, batch, None))
        for policy in (online, cached)
    ]
    assert_close(seen[1].tokens_BVHWC, online.forcing.teacher(seen[0]).tokens_BVHWC, rtol=0, atol=1e-4)
    with pytest.raises(CacheError, match=r"those to align are .*right, .*left\. They must be the same\."):
        policy_of(folder, cache=cache, cameras=[RIGHT, LEFT], teacher=teacher)


def test_depth_anything_3_knows_when_the_order_of_views_matters(tmp_path):
    teacher = load_teacher(SMALL_TEACHERS["da3"](tmp_path))
    assert [teacher.ordered(views) for views in (1, 2, 3, 4)] == [False, True, False, False]


def test_naming_all_cameras_in_the_policys_order_is_naming_none(folder, dataset):
    losses = []
    for cameras in (None, list(THREE)):
        policy = policy_of(folder, cameras=cameras)
        torch.manual_seed(0)
        losses.append(policy(frames_of(dataset, policy, [1, 2]))[0])
    assert torch.equal(*losses)


def test_padding_masks_and_moved_images_go_with_their_cameras(folder, dataset, tmp_path):
    cameras = [WRIST, LEFT]
    cache = stored(dataset, tmp_path / "features", cameras)
    policy = policy_of(folder, cache=cache, cameras=cameras)
    moved_B23 = flip().expand(2, 2, 3)
    batch = frames_of(dataset, policy, [0, 3]) | {f"{LEFT}_padding_mask": torch.tensor([True, False])}
    batch |= {AFFINE_KEY + WRIST: moved_B23, AFFINE_KEY + RIGHT: torch.full((2, 2, 3), float("nan"))}
    shown = policy.feature_source.shown(policy, batch, None)
    assert shown.names == cameras
    assert shown.view_indices == [2, 0]
    assert shown.present_BV.tolist() == [[True, True], [True, False]]
    affine_BV23 = policy.feature_source.affine_BV23(batch, shown)
    assert torch.equal(affine_BV23, torch.stack([moved_B23, torch.eye(2, 3).expand(2, 2, 3)], dim=1))


# ---- a prompt --------------------------------------------------------------------------------------------


@pytest.fixture
def untracked(folder):
    """GR00T's preprocessor is itself before and after the test."""
    small_config("groot", folder)  # skips where GR00T cannot be built
    patches.undo_all()
    yield
    patches.undo_all()


@pytest.mark.usefixtures("untracked")
def test_of_the_images_in_a_prompt_the_chosen_are_aligned(folder, dataset, tmp_path):
    cameras = [WRIST, LEFT]
    cache = stored(dataset, tmp_path / "features", cameras)
    online, cached = (policy_of(folder, "groot", cameras=cameras, **more) for more in ({}, {"cache": cache}))
    raw = frames_of(dataset, policy_of(folder), [0, 3])
    raw = {key: raw[key] for key in (*THREE, "observation.state", "action", "action_is_pad", "index")}
    batch = prompted(online.config, raw)
    assert batch[PACKED_KEY].cameras == list(THREE)
    whole = policy_of(folder, "groot").feature_source.shown(online, batch, None).images
    (look_BV3HW,), logs = seen_by_the_teacher(online, batch)
    assert torch.equal(look_BV3HW, torch.stack([whole[2], whole[0]], dim=1))
    assert logs["valid_fraction"] == pytest.approx(2 / 3)
    for policy in (online, cached):
        assert reached_views(policy, batch) == [0, 2]
    del batch[PACKED_KEY]
    with pytest.raises(SpatialForcingError, match=r"forcing\.cameras.*this batch does not say"):
        online(batch)


@pytest.mark.usefixtures("untracked")
def test_of_a_camera_shown_repeatedly_all_images_are_aligned(folder):
    policy = policy_of(folder, "groot", cameras=[RIGHT, LEFT])
    batch = prompted(policy.config, {key: torch.rand(1, 3, *SMALL) for key in THREE[:2]} | small_raw())
    packed = batch[PACKED_KEY]
    twice = packed._replace(cameras=[LEFT, RIGHT] * 2, affine_BV23=packed.affine_BV23.repeat(1, 2, 1, 1))
    batch["image_grid_thw"] = batch["image_grid_thw"].repeat(2, 1)
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1)
    shown = policy.feature_source.shown(policy, batch | {PACKED_KEY: twice}, None)
    assert shown.view_indices == [1, 0, 3, 2]
    assert shown.names == [RIGHT, LEFT] * 2


def small_raw() -> dict[str, Any]:
    batch = {"observation.state": torch.randn(1, 4), "action": torch.randn(1, 4, 4)}
    return batch | {"action_is_pad": torch.zeros(1, 4, dtype=torch.bool)}


# ---- other names -----------------------------------------------------------------------------------------

FRONT, SIDE = "observation.images.camera1", "observation.images.camera2"


def test_from_a_plain_checkpoint_with_other_names(tmp_path, monkeypatch):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from small_policies import features_of

    from spatial_forcing.hosts.tiny_policy import TinyConfig

    dataset = make_dataset(tmp_path / "small", episodes=1, frames=4, cameras=THREE)
    small = {"image_size": 28, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}
    config = TinyConfig(**small)
    config.input_features, config.output_features = features_of({FRONT: (28, 28), SIDE: (28, 28)})
    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    start = tmp_path / "start"
    make_policy(config, ds_meta=meta, rename_map={WRIST: FRONT}).save_pretrained(start)
    for processor in make_pre_post_processors(config, dataset_stats=meta.stats):
        processor.save_pretrained(start)
    cache, out = stored(dataset, tmp_path / "features", [RIGHT]), tmp_path / "run"
    flags = [
        f"--policy.path={start}", f"--policy.forcing.cache={cache}", "--policy.push_to_hub=false",
        f"--rename_map={json.dumps({WRIST: FRONT, RIGHT: SIDE})}",
        f"--policy.forcing.cameras={json.dumps({RIGHT: SIDE})}", "--dataset.repo_id=local/small",
        f"--dataset.root={dataset}", f"--output_dir={out}", "--steps=2", "--batch_size=2", "--num_workers=0",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", sys.argv)
    TrainCommand().run(flags)
    side = json.loads((checkpoints(out)[2] / "spatial_forcing" / "forcing.json").read_text())
    assert side["cameras"] == {RIGHT: SIDE}


def named(folder: Path, dataset: Path, cameras: Any, cache: str | None = None) -> Any:
    """A policy made as LeRobot makes it, with a data set whose cameras are THREE."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies.factory import get_policy_class

    forcing = {"cameras": cameras, "cache": cache}
    config = small_config("smolvla", folder, forcing=forcing, sizes={FRONT: SMALL, SIDE: SMALL, LEFT: SMALL})
    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    return get_policy_class("sf_smolvla")(config, dataset_meta=meta).train()


def test_a_mapping_leads_from_the_names_of_data_and_cache_to_the_policys(folder, dataset, tmp_path):
    cache = stored(dataset, tmp_path / "features", [WRIST, LEFT])
    policy = named(folder, dataset, {WRIST: FRONT, LEFT: LEFT}, cache)
    batch = small_batch(policy, 2) | {
        "index": torch.tensor([0, 3]),
        AFFINE_KEY + WRIST: flip().expand(2, 2, 3),
    }
    shown = policy.feature_source.shown(policy, batch, policy._image_stats)
    assert shown.names == [FRONT, LEFT]
    assert shown.view_indices == [0, 2]
    assert torch.equal(
        policy.feature_source.affine_BV23(batch, shown)[0], torch.stack([flip(), torch.eye(2, 3)])
    )
    assert reached_views(policy, batch) == [0, 2]


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cameras", "says"),
    [
        ([], "names no camera"),
        ({}, "names no camera"),
        ([LEFT, RIGHT, LEFT], f"names {LEFT} more than once"),
        ({LEFT: FRONT, WRIST: FRONT}, f"names {FRONT} more than once"),
    ],
)
def test_cameras_that_cannot_be(cameras, says):
    with pytest.raises(SpatialForcingError, match=says):
        ForcingConfig(cameras=cameras)


@pytest.mark.parametrize(
    ("cameras", "says"),
    [
        (["observation.images.camera3"], rf"camera of the policy.*Did you mean.*Available: .*{FRONT}"),
        ([WRIST], rf"a camera of the data set; the policy's are: {FRONT}.*rename_map.*\"{WRIST}\": "),
        ({WRIST: "observation.images.camera3"}, "camera of the policy"),
        ({"observation.images.front": FRONT}, rf"camera of the data set.*Available: .*{WRIST}"),
    ],
)
def test_cameras_that_are_not_there(folder, dataset, cameras, says):
    error = SpatialForcingError if cameras == [WRIST] else UnknownNameError
    with pytest.raises(error, match=says):
        named(folder, dataset, cameras)


def test_chosen_cameras_that_a_batch_does_not_show(folder):
    policy = policy_of(folder, cameras=[WRIST, LEFT])
    with pytest.raises(SpatialForcingError, match=rf"no images of {WRIST}.*It has those of: {LEFT}, {RIGHT}"):
        policy(small_batch(policy, without=(WRIST,)))


@pytest.mark.parametrize("cameras", [None, [LEFT, WRIST], [WRIST], list(THREE)])
def test_a_cache_of_other_cameras_says_how_to_align_its_own(folder, dataset, tmp_path, cameras):
    cache = stored(dataset, tmp_path / "features", [WRIST, LEFT])
    says = rf"has the cameras {WRIST}, {LEFT}; those.*cameras='\[\"{WRIST}\", \"{LEFT}\"\]'"
    with pytest.raises(CacheError, match=says):
        policy_of(folder, cache=cache, cameras=cameras)
