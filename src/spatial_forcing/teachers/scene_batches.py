"""Simulated scenes as training batches of a VGGT: images, depth, point maps and cameras.

B: batch, V: views, H, W: pixels, N: scenes, K: intrinsics in pixels, E = [R | t]: world to camera, OpenCV
axes. Lengths are metres. The folder of scenes is written by `spatial_forcing.sim.scenes`.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError

REACH = 4.99  # metres; scenes hold 5 where there is nothing

Frame = Literal["first-camera", "robot"]


class Scenes(NamedTuple):
    """Scenes of one split in memory, V = 2."""

    rgb_NVHW3: Tensor  # uint8
    depth_NVHW: Tensor  # float16, metres
    intrinsics_NV33: Tensor
    extrinsics_NV34: Tensor
    task_N: Tensor


class Batch(NamedTuple):
    """Training batch of a VGGT: images in [0, 1], and their depth, points and cameras as targets."""

    images_BV3HW: Tensor
    depth_BVHW: Tensor
    valid_BVHW: Tensor  # bool; False where there is nothing within reach
    points_BVHW3: Tensor  # in the frame asked for
    pose_BV9: Tensor


def read_scenes(folder: Path, split: str, size: int) -> Scenes:
    """Reads all shards of a split ("train", "seen-val", "unseen-val"), `size` pixels square.

    Raises:
        SpatialForcingError: the folder holds no scenes, lacks a shard, or its images have another size.
    """
    if not (folder / "scenes.json").is_file():
        raise SpatialForcingError(
            f"No scenes.json in {folder}. Render scenes first: "
            f"python -m spatial_forcing.sim.scenes --out {folder}"
        )
    shards = json.loads((folder / "scenes.json").read_text())["shards"]
    names = [shard["file"] for shard in shards if shard["split"] == split]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise SpatialForcingError(
            f"{folder} lacks {len(missing)} of {len(names)} shards of {split!r} ({', '.join(missing[:3])}). "
            "Start the rendering again with the same command: it fills in what is missing."
        )
    loaded = [load_file(folder / name) for name in names]
    scenes = Scenes(**{key: torch.cat([shard[key] for shard in loaded]) for key in Scenes._fields})
    found = tuple(scenes.rgb_NVHW3.shape[2:4])
    if found != (size, size):
        raise SpatialForcingError(f"The teacher sees {size} px squares, the scenes in {folder} are {found}.")
    return scenes


def make_batch(scenes: Scenes, index_B: Tensor, frame: Frame, views_BV: Tensor | None = None) -> Batch:
    """Makes a training batch of scenes with their targets.

    Args:
        scenes: where from.
        index_B: which scenes.
        frame: of point maps and poses: the first view's camera (as VGGT), or the robot's base.
        views_BV: which views of each scene, in this order; all in their own order by default.
    """
    views_BV = torch.arange(scenes.rgb_NVHW3.shape[1]) if views_BV is None else views_BV
    rgb, depth, K, E, _ = (x[index_B] if x.ndim == 1 else x[index_B[:, None], views_BV] for x in scenes)
    return to_batch(rgb, depth.float(), K, E, frame)


def to_batch(rgb_BVHW3: Tensor, depth_BVHW: Tensor, K_BV33: Tensor, E_BV34: Tensor, frame: Frame) -> Batch:
    """Unprojects z-depth to point maps, and puts points and poses into the wanted frame."""
    R, t = E_BV34[..., :3], E_BV34[..., 3]
    points = unproject(depth_BVHW, K_BV33, E_BV34)
    if frame == "first-camera":
        R1, t1 = R[:, :1], t[:, :1]
        points = points @ R1[:, :, None].mT + t1[:, :, None, None]
        R = R @ R1.mT
        t = t - (R @ t1[..., None])[..., 0]
    H, W = depth_BVHW.shape[-2:]
    pose_BV9 = encode_pose(R, t, K_BV33, (H, W))
    images_BV3HW = rgb_BVHW3.permute(0, 1, 4, 2, 3).float() / 255
    return Batch(images_BV3HW, depth_BVHW, depth_BVHW < REACH, points, pose_BV9)


def unproject(depth_BVHW: Tensor, K_BV33: Tensor, E_BV34: Tensor) -> Tensor:
    """Unprojects z-depth in metres to world points (B, V, H, W, 3); pixel centres are at halves."""
    R, t = E_BV34[..., :3], E_BV34[..., 3]
    H, W = depth_BVHW.shape[-2:]
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], dim=-1) @ K_BV33.inverse().mT[:, :, None]
    return ((rays * depth_BVHW[..., None]) - t[:, :, None, None]) @ R[:, :, None]  # R^T (x - t)


def encode_pose(R_BV33: Tensor, t_BV3: Tensor, K_BV33: Tensor, size: tuple[int, int]) -> Tensor:
    """VGGT's encoding of a camera: translation, quaternion xyzw (w >= 0), vertical, horizontal angle."""
    from scipy.spatial.transform import Rotation

    quaternion = Rotation.from_matrix(R_BV33.flatten(0, 1).double().numpy()).as_quat(canonical=True)
    q_BV4 = torch.from_numpy(quaternion).to(t_BV3.dtype).view(*t_BV3.shape[:2], 4)
    focal_BV2 = torch.stack([K_BV33[..., 1, 1], K_BV33[..., 0, 0]], dim=-1)
    fov_BV2 = 2 * torch.atan(torch.tensor(size) / 2 / focal_BV2)
    return torch.cat([t_BV3, q_BV4, fov_BV2], dim=-1)


def jitter(images_BV3HW: Tensor, rng: torch.Generator) -> Tensor:
    """Photometric augmentation per view: random gamma, colour gains, saturation, contrast and noise."""
    B, V = images_BV3HW.shape[:2]

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(B, V, channels, 1, 1, generator=rng)

    x = (
        images_BV3HW.clamp(min=1e-3) ** draw(-0.3, 0.3).exp()
        * draw(-0.1, 0.1, 3).exp()
        * draw(-0.3, 0.3).exp()
    )
    grey = x.mean(dim=2, keepdim=True)
    x = grey + (x - grey) * draw(0.6, 1.4)
    mean = x.mean(dim=(2, 3, 4), keepdim=True)
    x = mean + (x - mean) * draw(0.7, 1.3)
    return (x + draw(0, 0.03) * torch.randn(x.shape, generator=rng)).clamp(0, 1)
