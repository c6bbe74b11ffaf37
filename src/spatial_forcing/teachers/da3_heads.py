"""Heads of Depth Anything 3 (arXiv 2511.10647): depth and rays, and cameras both ways.

B: batch, V: views, N: tokens of a view, C: channels, E: width of the backbone, H, W: pixels, h, w: rays.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.teachers.vggt_heads import DPTHead, Fusion, FusionBlock, add_uv
from spatial_forcing.teachers.vggt_layers import Block, Mlp

HIDDEN = 32
RAY = 6  # direction and origin
FINEST = "3"


class DualDPTHead(DPTHead):
    """DPT head with two branches over the same maps: depth at full resolution, and camera rays.

    The released models have a ray output at each of four scales; only the finest is used, and built.
    """

    def __init__(self, width: int, *, patch: int, features: int, channels: Sequence[int]):
        sizes = {"features": features, "channels": channels, "hidden": HIDDEN}
        super().__init__(width, patch=patch, outputs=2, activation="exp", skip_relu=False, **sizes)
        self.scratch: _DualFusion = _DualFusion(channels, features, HIDDEN)

    def both(
        self, layers_BVNC: Sequence[Tensor], size: torch.Size | tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Depth (B, V, H, W) and rays (B, V, h, w, 6), each with its confidence, above one."""
        (height, width), views = size, layers_BVNC[0].shape[:2]
        maps = self.pyramid(layers_BVNC, (height, width))
        value, confidence = self.read(maps, (height, width), views)
        rays = self.scratch.rays(maps, width / height).unflatten(0, views)
        return value.squeeze(-1), confidence, rays[..., :RAY], 1 + rays[..., RAY].exp()


class _DualFusion(Fusion):
    """DPT's fusion with a second branch, which gives the rays."""

    def __init__(self, channels: Sequence[int], features: int, hidden: int):
        c1, c2, c3, c4 = channels
        super().__init__((c1, c2, c3, c4), features, hidden, outputs=2, skip_relu=False)
        for i in range(1, 5):
            self.add_module(f"refinenet{i}_aux", FusionBlock(features, False, merges=i < 4))
        widths = [features, features // 2] * 3
        convs = (nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.output_conv1_aux = nn.ModuleDict({FINEST: nn.Sequential(*convs)})
        # One norm is shared by the outputs at all scales, and stored with the first.
        self.output_conv2_aux = nn.ModuleDict(
            {
                "0": nn.ModuleDict({"2": nn.LayerNorm(hidden)}),
                FINEST: nn.ModuleDict(
                    {
                        "0": nn.Conv2d(features // 2, hidden, 3, padding=1),
                        "5": nn.Conv2d(hidden, RAY + 1, 1),
                    }
                ),
            }
        )

    def rays(self, maps: list[Tensor], aspect: float) -> Tensor:
        """Rays and the logarithm of their confidence, channels last."""
        x = add_uv(self.output_conv1_aux[FINEST](self.merged(maps, "_aux")), aspect)
        x = self.get_submodule(f"output_conv2_aux.{FINEST}.0")(x).movedim(1, -1)
        x = self.get_submodule("output_conv2_aux.0.2")(x).relu().movedim(-1, 1)
        return self.get_submodule(f"output_conv2_aux.{FINEST}.5")(x).movedim(1, -1)


# ---- cameras -----------------------------------------------------------------------------------------------


class Cameras(NamedTuple):
    """Cameras of the views of a scene.

    pose_BV9 encodes camera to world: translation, quaternion xyzw, vertical and horizontal field of view in
    radians. extrinsics_BV34 are world to camera, intrinsics_BV33 in pixels.
    """

    pose_BV9: Tensor
    extrinsics_BV34: Tensor
    intrinsics_BV33: Tensor


class CameraDecoder(nn.Module):
    """From the camera token of the last layer to the camera."""

    def __init__(self, width: int):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 3)
        self.fc_qvec = nn.Linear(width, 4)
        self.fc_fov = nn.Sequential(nn.Linear(width, 2), nn.ReLU())

    def forward(self, camera_BVC: Tensor, size: torch.Size | tuple[int, int]) -> Cameras:
        x = self.backbone(camera_BVC)
        pose_BV9 = torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], dim=-1)
        return Cameras(pose_BV9, inverse(pose_BV9), intrinsics(pose_BV9[..., 7:], size))


class CameraEncoder(nn.Module):
    """From known cameras to the tokens that take the place of the learned camera token."""

    def __init__(self, width: int, heads: int, depth: int, mlp_ratio: float):
        super().__init__()
        self.pose_branch = Mlp(9, width // 2, width)
        self.token_norm = nn.LayerNorm(width)
        self.trunk = nn.Sequential(*(Block(width, heads, mlp_ratio=mlp_ratio) for _ in range(depth)))
        self.trunk_norm = nn.LayerNorm(width)

    def forward(
        self, extrinsics_BV44: Tensor, intrinsics_BV33: Tensor, size: torch.Size | tuple[int, int]
    ) -> Tensor:
        """Tokens of cameras, (B, V, E).

        Args:
            extrinsics_BV44: world to camera.
            intrinsics_BV33: in pixels.
            size: H, W of the images.
        """
        pose_BV9 = encoded(extrinsics_BV44, intrinsics_BV33, size)
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(pose_BV9))))


def encoded(extrinsics_BV44: Tensor, intrinsics_BV33: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Pose encoding of cameras: see `Cameras`."""
    rotation_BV33 = extrinsics_BV44[..., :3, :3].mT  # camera to world
    translation_BV3 = -(rotation_BV33 @ extrinsics_BV44[..., :3, 3:]).squeeze(-1)
    focal_BV2 = torch.stack([intrinsics_BV33[..., 1, 1], intrinsics_BV33[..., 0, 0]], dim=-1)
    sides_2 = focal_BV2.new_tensor(tuple(size))
    return torch.cat(
        [translation_BV3, quaternion(rotation_BV33), 2 * torch.atan(sides_2 / 2 / focal_BV2)], dim=-1
    )


def inverse(pose_BV9: Tensor) -> Tensor:
    """World to camera, (B, V, 3, 4), of an encoded camera to world."""
    rotation_BV33 = rotation(pose_BV9[..., 3:7]).mT
    return torch.cat([rotation_BV33, -rotation_BV33 @ pose_BV9[..., :3, None]], dim=-1)


def intrinsics(fov_BV2: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Intrinsics in pixels from vertical and horizontal field of view; the principal point is the centre."""
    height, width = size
    found_BV33 = fov_BV2.new_zeros(*fov_BV2.shape[:-1], 3, 3)
    found_BV33[..., 0, 0] = width / 2 / torch.tan(fov_BV2[..., 1] / 2)
    found_BV33[..., 1, 1] = height / 2 / torch.tan(fov_BV2[..., 0] / 2)
    found_BV33[..., 0, 2], found_BV33[..., 1, 2], found_BV33[..., 2, 2] = width / 2, height / 2, 1
    return found_BV33


def rotation(quaternion_4: Tensor) -> Tensor:
    """Rotation matrices of quaternions xyzw of any length."""
    x, y, z, w = F.normalize(quaternion_4, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion(rotation_33: Tensor) -> Tensor:
    """Quaternions xyzw, w not negative, of rotation matrices: the largest component is computed first."""
    m = rotation_33
    xx, yy, zz = (m[..., i, i] for i in range(3))
    four = torch.stack([1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz], dim=-1)
    sums = {(i, j): m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2))}
    differences = [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]]
    xy, xz, yz = sums.values()
    wx, wy, wz = differences
    # Row i is 4 q_i q: any of them is the quaternion up to its length, the one of the largest component best.
    rows = torch.stack(
        [
            torch.stack([four[..., 0], xy, xz, wx], dim=-1),
            torch.stack([xy, four[..., 1], yz, wy], dim=-1),
            torch.stack([xz, yz, four[..., 2], wz], dim=-1),
            torch.stack([wx, wy, wz, four[..., 3]], dim=-1),
        ],
        dim=-2,
    )
    best = rows.take_along_dim(four.argmax(-1)[..., None, None], dim=-2).squeeze(-2)
    unit = F.normalize(best, dim=-1)
    return torch.where(unit[..., 3:] < 0, -unit, unit)
