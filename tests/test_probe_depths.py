"""Where depth comes from: geometry, LeRobot's depth features, VGGT's depth head, models of transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_dataset import CAMERAS
from small_depth import painted_dataset

from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import Depths, at_least, kept_on_disk, recorded
from spatial_forcing.probe.pseudo import FARTHEST, in_medians, pseudo
from spatial_forcing.sim.collect import load_geometry

CAMERA, DEPTH = "observation.images.front", "observation.images.front_depth"


def batch_of(frames, *indices: int):
    return torch.utils.data.default_collate([frames[i] for i in indices])


def test_geometry_is_that_of_the_frame_and_of_the_camera(tmp_path):
    root = painted_dataset(tmp_path / "set", episodes=3, frames=4)
    frames = open_dataset(root)
    depths = recorded(frames, CAMERAS)
    assert (depths.kind, depths.unit) == ("recorded", "m")
    left, right = depths.maps(batch_of(frames, 1, 6), CAMERAS, 28)
    for row, (episode, frame) in enumerate([(0, 1), (1, 2)]):
        true = load_geometry(root, episode)["depth_TVHW"][frame].float()
        assert torch.equal(left[row], true[0])
        assert torch.equal(right[row], true[1])
    swapped = depths.maps(batch_of(frames, 1, 6), CAMERAS[::-1], 28)
    assert torch.equal(swapped[0], right)


@pytest.mark.parametrize("unit", ["mm", "m"])
def test_depth_features_of_lerobot_come_in_metres(tmp_path, unit):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind = np.uint16 if unit == "mm" else np.float32
    depth = np.linspace(0.5, 2.0, 28 * 28).reshape(28, 28, 1)
    stored = (1000 * depth).round().astype(kind) if unit == "mm" else depth.astype(kind)
    names = {"names": ["height", "width", "channels"]}
    features = {
        CAMERA: {"dtype": "image", "shape": (28, 28, 3), **names},
        DEPTH: {
            "dtype": "image",
            "shape": (28, 28, 1),
            **names,
            "info": {"is_depth_map": True, "depth_unit": unit},
        },
        "action": {"dtype": "float32", "shape": (2,), "names": None},
    }
    dataset = LeRobotDataset.create(
        "local/d", fps=10, features=features, root=tmp_path / "set", use_videos=False
    )
    for _ in range(2):
        image = np.zeros((28, 28, 3), np.uint8)
        dataset.add_frame({CAMERA: image, DEPTH: stored, "action": np.zeros(2, np.float32), "task": "go"})
    dataset.save_episode()
    dataset.finalize()
    frames = open_dataset(tmp_path / "set")
    (found,) = recorded(frames, [CAMERA]).maps(batch_of(frames, 0, 1), [CAMERA], 28)
    torch.testing.assert_close(found[1], torch.from_numpy(depth[..., 0]).float(), atol=1e-3, rtol=0)


# ---- pseudo ------------------------------------------------------------------------------------------------


def depth_model(kind: str, folder: Path) -> str:
    """A small depth-estimation model of transformers with random weights."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        GLPNConfig,
        GLPNForDepthEstimation,
    )

    torch.manual_seed(0)
    if kind == "glpn":
        sizes = {
            "num_encoder_blocks": 4,
            "depths": [1] * 4,
            "hidden_sizes": [8] * 4,
            "decoder_hidden_size": 8,
        }
        GLPNForDepthEstimation(GLPNConfig(**sizes, num_attention_heads=[1] * 4)).save_pretrained(folder)
        return str(folder)
    backbone = Dinov2Config(
        image_size=28,
        patch_size=14,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
        depth_estimation_type="metric" if kind == "metric" else "relative",
        max_depth=5,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("kind", "relative"), [("relative", True), ("metric", False), ("glpn", False)])
def test_models_of_transformers_give_depth_of_the_size_of_the_image(tmp_path, kind, relative):
    depths = pseudo(depth_model(kind, tmp_path / kind))
    assert (depths.kind, depths.relative) == ("pseudo", relative)
    assert depths.name.startswith("pseudo: ")
    batch = {CAMERA: torch.rand(2, 3, 40, 60), "index": torch.arange(2)}
    (found,) = depths.maps(batch, [CAMERA], 28)
    assert found.shape == (2, 40, 60)
    assert (found > 0).all()
    if relative:
        torch.testing.assert_close(found.flatten(1).median(1).values, torch.ones(2))
        assert depths.unit == "median depth of the image"


def test_the_depth_head_of_vggt_orders_a_real_scene():
    """The packaged one on a rendered frame: far things are further than near ones."""
    from spatial_forcing.sim.collect import render_frames

    images_BV3HW, _, _ = render_frames("reach-v3", 1)
    depths = pseudo("vggt-tiny-sim")
    assert depths.relative
    batch = {key: images_BV3HW[:, v] for v, key in enumerate(CAMERAS)}
    left, _ = depths.maps(batch, CAMERAS, 28)
    assert left.shape == (1, 112, 112)
    assert left[0, :20].mean() > 1.2 * left[0, -20:].mean()  # the table's far edge against its near one


def test_medians_are_one_and_nothing_is_further_than_far():
    depth = torch.rand(3, 5, 5) + 0.1
    depth[0, 0, 0] = 1e9
    found = in_medians(depth)
    torch.testing.assert_close(found.flatten(1).median(1).values, torch.ones(3))
    assert found.max() == FARTHEST


def test_a_folder_without_a_depth_model_is_said(tmp_path):
    from transformers import Dinov2Config

    Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ProbeError, match="cannot be loaded as a depth-estimation model"):
        pseudo(str(tmp_path))
    with pytest.raises(SpatialForcingError, match=r"Available: da3-base, .*vggt-1b, vggt-tiny-sim"):
        pseudo("midas")


def test_pseudo_depth_is_computed_once_and_kept(tmp_path):
    calls = []

    def estimate(batch, cameras):
        calls.append(batch["index"].tolist())
        return [batch["index"][:, None, None].float().expand(-1, 200, 100) + 0.5 for _ in cameras]

    depths = kept_on_disk(Depths("pseudo (it)", "pseudo", False, estimate), 10, tmp_path)
    batch = {"index": torch.tensor([3, 7]), CAMERA: torch.zeros(2, 3, 200, 100)}
    first, second = (depths.maps(batch, [CAMERA], 28)[0] for _ in range(2))
    assert calls == [[3, 7]]
    assert torch.equal(first, second)
    assert first.shape == (2, 128, 64)
    assert first[:, 0, 0].tolist() == [3.5, 7.5]


def test_a_map_that_is_too_coarse_is_filled_with_its_nearest_pixels():
    found = at_least(torch.arange(6.0).view(1, 2, 3), 5)
    assert found.shape == (1, 6, 6)
    assert found[0, :, 0].tolist() == [0, 0, 0, 3, 3, 3]
