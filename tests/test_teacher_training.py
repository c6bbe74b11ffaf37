"""Training a small teacher: the targets made from simulated scenes, and the recipe, whole and resumed."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.teachers import load_teacher
from spatial_forcing.teachers.scene_batches import Scenes, encode_pose, make_batch, read_scenes
from spatial_forcing.teachers.vggt import VGGTConfig

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "vggt_tiny_sim.py"
NANO = VGGTConfig(
    img_size=112,
    embed_dim=16,
    depth=2,
    vit_depth=1,
    num_heads=2,
    camera_depth=1,
    dpt_layers=(0, 0, 1, 1),
    dpt_features=8,
    dpt_channels=(4, 4, 8, 8),
    dpt_hidden=4,
)


def plane_scenes(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Two cameras above the plane z = 0, whose depth is known in closed form; the colour tells the place."""
    rng = np.random.default_rng(seed)
    size = 112
    K = np.array([[100, 0, size / 2], [0, 100, size / 2], [0, 0, 1]], dtype=np.float32)
    v, u = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    rays_HW3 = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    rgb, depth, extrinsics = [], [], []
    for _ in range(2 * count):
        heading, height = rng.uniform(-0.5, 0.5), rng.uniform(0.6, 1.4)
        c, s = np.cos(heading), np.sin(heading)
        R = np.array([[c, s, 0], [s, -c, 0], [0, 0, -1]]) @ np.eye(3)  # looks straight down, turned
        tilt = rng.uniform(-0.3, 0.3)
        R = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]) @ R
        centre = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), height])
        world_rays = rays_HW3 @ R
        z = -height / world_rays[..., 2]
        points = centre + world_rays * z[..., None]
        rgb.append(((np.sin(3 * points) + 1) * 127).astype(np.uint8))
        depth.append(z.astype(np.float16))
        extrinsics.append(np.concatenate([R, (-R @ centre)[:, None]], axis=1).astype(np.float32))

    def pairs(x: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(x)).unflatten(0, (count, 2)).contiguous()

    return {
        "rgb_NVHW3": pairs(rgb),
        "depth_NVHW": pairs(depth),
        "extrinsics_NV34": pairs(extrinsics),
        "intrinsics_NV33": torch.from_numpy(K).expand(count, 2, 3, 3).contiguous(),
        "task_N": torch.zeros(count, dtype=torch.int64),
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    shards = []
    for seed, split in enumerate(("train", "seen-val", "unseen-val")):
        file = f"{split}-00000.safetensors"
        save_file(plane_scenes(8 if split == "train" else 2, seed), folder / file)
        shards.append({"file": file, "split": split})
    spec = {"train": 8, "seed": 0}
    (folder / "scenes.json").write_text(json.dumps({"shards": shards, "tasks": ["plane"], "spec": spec}))
    return folder


@pytest.mark.parametrize("frame", ["robot", "first-camera"])
def test_points_and_poses_agree(scenes, frame):
    read = read_scenes(scenes, "train", 112)
    batch = make_batch(read, torch.arange(4), frame)
    if frame == "robot":
        assert batch.points_BVHW3[..., 2].abs().max() < 2e-3  # the plane z = 0; depth is float16
    else:
        assert_close(batch.points_BVHW3[:, 0, ..., 2], batch.depth_BVHW[:, 0])
        identity = torch.tensor([0, 0, 0, 0, 0, 0, 1.0]).expand(4, 7)
        assert_close(batch.pose_BV9[:, 0, :7], identity, rtol=0, atol=1e-5)
    # Points that a view's own pose brings back into its camera must lie at its depth.
    from scipy.spatial.transform import Rotation

    R = torch.from_numpy(Rotation.from_quat(batch.pose_BV9[..., 3:7].flatten(0, 1)).as_matrix()).float()
    back = batch.points_BVHW3 @ R.unflatten(0, (4, 2))[:, :, None].mT + batch.pose_BV9[..., None, None, :3]
    assert_close(back[..., 2], batch.depth_BVHW, rtol=0, atol=1e-4)
    assert_close(batch.pose_BV9[..., 7:], torch.full((4, 2, 2), 2 * np.arctan(0.56)).float())


def test_swapped_views_swap_their_targets(scenes):
    read = read_scenes(scenes, "train", 112)
    index = torch.arange(3)
    views = torch.tensor([[1, 0]]).expand(3, 2)
    swapped, plain = make_batch(read, index, "robot", views), make_batch(read, index, "robot")
    for a, b in zip(swapped, plain, strict=True):
        assert torch.equal(a.flip(1), b)


def test_far_pixels_are_invalid(scenes):
    tensors = plane_scenes(1, 0)
    tensors["depth_NVHW"][..., :10] = 5.0
    batch = make_batch(Scenes(**{k: tensors[k] for k in Scenes._fields}), torch.arange(1), "robot")
    assert not batch.valid_BVHW[..., :10].any()
    assert batch.valid_BVHW[..., 10:].all()


def test_pose_encoding_has_a_positive_real_part():
    from scipy.spatial.transform import Rotation

    R = torch.from_numpy(Rotation.random(50, random_state=0).as_matrix()).float().view(25, 2, 3, 3)
    pose = encode_pose(R, torch.zeros(25, 2, 3), torch.eye(3).expand(25, 2, 3, 3), (112, 112))
    assert (pose[..., 6] >= 0).all()


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("vggt_tiny_sim", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vggt_tiny_sim"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["vggt_tiny_sim"]


@pytest.fixture
def small(recipe, monkeypatch):
    """The recipe with a model that takes milliseconds."""
    monkeypatch.setattr(recipe, "TINY", NANO)
    monkeypatch.setattr(sys, "argv", ["vggt_tiny_sim.py", "--scenes", "scenes"])
    return recipe


@pytest.mark.parametrize("objective", ["geometry", "masked"])
def test_a_resumed_run_equals_a_straight_one(small, scenes, tmp_path, objective):
    def run(out: str, *, stopped: bool) -> tuple[dict[str, torch.Tensor], dict]:
        args = small.Args(scenes, tmp_path / out, steps=4, batch=3, warmup=1, threads=1, objective=objective)
        model = small.build(args)
        if not stopped:
            curve = small.train(args, model)
            return model.state_dict(), curve
        original = small.save_checkpoint

        def save_and_stop(args, model, optimizer, step, curve):
            original(args, model, optimizer, step, curve)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(small, "SAVE_EVERY", 0.0)
            patch.setattr(small, "save_checkpoint", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                small.train(args, model)
        return run(out, stopped=False)

    straight, curve = run("straight", stopped=False)
    resumed, resumed_curve = run("resumed", stopped=True)
    assert list(curve) == [1, 2, 3, 4]
    assert resumed_curve == curve
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("objective", ["geometry", "masked"])
def test_training_lowers_the_loss_and_leaves_a_teacher(small, scenes, tmp_path, objective):
    args = small.Args(
        scenes, tmp_path, steps=30, batch=4, warmup=2, lr=3e-3, threads=1, objective=objective, loss="plain"
    )
    model = small.build(args)
    before = small.evaluate(model, args)["seen-val"]
    small.main(args)
    report = json.loads((tmp_path / f"{args.file}.json").read_text())
    after = report["results"]["seen-val"]
    key = "abs_rel" if objective == "geometry" else "masked_mse"
    assert after[key] < 0.9 * before[key]
    teacher = load_teacher(tmp_path / f"{args.file}.safetensors")
    assert teacher.fingerprint == report["fingerprint"]
    assert teacher.multi_view == (objective == "geometry")
    assert teacher.licence == "Apache-2.0"
    assert report["fingerprint"] in (tmp_path / f"{args.file}.md").read_text()


def test_the_numbers_of_a_file_can_be_computed_again(small, scenes, tmp_path, capsys):
    args = small.Args(scenes, tmp_path, steps=2, batch=2, warmup=1, threads=1)
    small.main(args)
    report = json.loads((tmp_path / f"{args.file}.json").read_text())
    capsys.readouterr()
    small.main(small.Args(scenes, tmp_path, threads=1, evaluate=tmp_path / f"{args.file}.safetensors"))
    assert json.loads(capsys.readouterr().out) == report["results"]


def test_a_checkpoint_of_another_run_is_refused(small, scenes, tmp_path):
    args = small.Args(scenes, tmp_path, steps=1, batch=2, threads=1)
    small.train(args, small.build(args))
    other = small.Args(scenes, tmp_path, steps=1, batch=2, threads=1, seed=1)
    with pytest.raises(SpatialForcingError, match=r"seed \(was 0, now 1\)"):
        small.train(other, small.build(other))


def test_missing_scenes_are_named(tmp_path, scenes):
    with pytest.raises(SpatialForcingError, match=r"spatial_forcing\.sim\.scenes"):
        read_scenes(tmp_path, "train", 112)
    (tmp_path / "scenes.json").write_text((scenes / "scenes.json").read_text())
    with pytest.raises(SpatialForcingError, match="lacks 1 of 1 shards"):
        read_scenes(tmp_path, "train", 112)
    with pytest.raises(SpatialForcingError, match="128 px"):
        read_scenes(scenes, "train", 128)
