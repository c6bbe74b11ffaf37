"""Heads of VGGT (arXiv 2503.11651, section 3.3): camera, and DPT (arXiv 2103.13413) for depth and points.

B: batch, V: views, N: tokens of a view, C: channels, H, W: pixels, h, w: patches, I: refinement iterations.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.teachers.vggt_layers import Block, Mlp
from spatial_forcing.uv import uv_position_embedding

UV_RATIO = 0.1  # weight of the UV position embedding in the dense heads


class CameraHead(nn.Module):
    """Camera head: from the camera token to translation (3), quaternion xyzw (4) and fields of view (2).

    Refined over a few iterations: the previous estimate modulates the token through an adaptive layer norm.
    """

    def __init__(self, width: int, heads: int, *, depth: int, mlp_ratio: float = 4.0, iterations: int = 4):
        super().__init__()
        self.iterations = iterations
        self.token_norm = nn.LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.trunk = nn.Sequential(*(Block(width, heads, mlp_ratio=mlp_ratio) for _ in range(depth)))
        self.trunk_norm = nn.LayerNorm(width)
        self.pose_branch = Mlp(width, width // 2, 9)

    def forward(self, tokens_BVNC: Tensor) -> Tensor:
        """Pose encodings after each iteration, pose_IBV9; fields of view in radians, never negative."""
        camera_BVC = self.token_norm(tokens_BVNC[:, :, 0])
        normed_BVC = F.layer_norm(camera_BVC, camera_BVC.shape[-1:], eps=1e-6)
        known_BV9 = self.empty_pose_tokens.expand(*camera_BVC.shape[:2], -1)
        poses = []
        for i in range(self.iterations):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(known_BV9)).chunk(3, dim=-1)
            x_BVC = camera_BVC + gate * (normed_BVC * (1 + scale) + shift)
            delta_BV9 = self.pose_branch(self.trunk_norm(self.trunk(x_BVC)))
            raw_BV9 = known_BV9 + delta_BV9 if i else delta_BV9  # the empty pose is an input, not an estimate
            poses.append(torch.cat([raw_BV9[..., :7], raw_BV9[..., 7:].relu()], dim=-1))
            known_BV9 = raw_BV9.detach()
        return torch.stack(poses)


class DPTHead(nn.Module):
    """DPT head: from the tokens of four layers to a value and a confidence for each pixel."""

    def __init__(
        self,
        width: int,
        *,
        patch: int,
        outputs: int,
        activation: Literal["exp", "inv_log"],
        features: int = 256,
        channels: Sequence[int] = (256, 512, 1024, 1024),
        hidden: int = 32,
        skip_relu: bool = True,
    ):
        super().__init__()
        self.patch = patch
        self.activation = activation
        c1, c2, c3, c4 = channels
        self.norm = nn.LayerNorm(width)
        self.projects = nn.ModuleList(nn.Conv2d(width, c, kernel_size=1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c1, c1, kernel_size=4, stride=4),
                nn.ConvTranspose2d(c2, c2, kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(c4, c4, kernel_size=3, stride=2, padding=1),
            ]
        )
        self.scratch: Fusion = Fusion((c1, c2, c3, c4), features, hidden, outputs, skip_relu)

    def forward(self, layers_BVNC: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Value (B, V, H, W, outputs - 1) and confidence (B, V, H, W), above one.

        Args:
            layers_BVNC: aggregator tokens of the four layers the head reads, special tokens first.
            size: H, W of the images.
        """
        return self.read(self.pyramid(layers_BVNC, size), size, layers_BVNC[0].shape[:2])

    def read(self, maps: list[Tensor], size: tuple[int, int], views: torch.Size) -> tuple[Tensor, Tensor]:
        """Value and confidence from the maps of `pyramid`."""
        height, width = size
        x = F.interpolate(self.scratch.fuse(maps), size=size, mode="bilinear", align_corners=True)
        x = self.scratch.output_conv2(add_uv(x, width / height)).unflatten(0, views).movedim(2, -1)
        value, confidence = x[..., :-1], 1 + x[..., -1].exp()
        return (value.exp() if self.activation == "exp" else inverse_log(value)), confidence

    def pyramid(self, layers_BVNC: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Maps at four scales from the tokens of the four layers, all views as one batch."""
        (height, width), maps = size, []
        rows, cols = height // self.patch, width // self.patch
        for tokens_BVNC, project, resize in zip(layers_BVNC, self.projects, self.resize_layers, strict=True):
            x = self.norm(tokens_BVNC[:, :, -rows * cols :]).flatten(0, 1)
            x = project(x.transpose(1, 2).unflatten(-1, (rows, cols)))
            maps.append(resize(add_uv(x, width / height)))
        return maps


def inverse_log(x: Tensor) -> Tensor:
    """`sign(x) (exp(|x|) - 1)`: linear near zero, exponential far from it."""
    return x.sign() * x.abs().expm1()


def add_uv(x_BChw: Tensor, aspect: float) -> Tensor:
    """Adds the UV position embedding, with its small weight, to a map of an image of this aspect ratio."""
    channels, rows, cols = x_BChw.shape[1:]
    uv_hwC = uv_position_embedding(
        rows, cols, channels, aspect=aspect, device=x_BChw.device, dtype=x_BChw.dtype
    )
    return x_BChw + UV_RATIO * uv_hwC.permute(2, 0, 1)


class Fusion(nn.Module):
    """Fusion decoder of DPT: maps at strides 1/4, 1/2, 1 and 2 patches, merged from coarse to fine."""

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        features: int,
        hidden: int,
        outputs: int,
        skip_relu: bool,
    ):
        super().__init__()
        for i, c in enumerate(channels, start=1):
            self.add_module(f"layer{i}_rn", nn.Conv2d(c, features, kernel_size=3, padding=1, bias=False))
            self.add_module(f"refinenet{i}", FusionBlock(features, skip_relu, merges=i < 4))
        self.output_conv1 = nn.Conv2d(features, features // 2, kernel_size=3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, hidden, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 1),
        )

    def fuse(self, maps: list[Tensor]) -> Tensor:
        return self.output_conv1(self.merged(maps))

    def merged(self, maps: list[Tensor], branch: str = "") -> Tensor:
        """The maps merged, at twice the resolution of the finest; a second branch has blocks of its own."""
        laterals = [self.get_submodule(f"layer{i}_rn")(x) for i, x in enumerate(maps, start=1)]
        finest = [2 * s for s in laterals[0].shape[-2:]]
        sizes = [finest, *(x.shape[-2:] for x in laterals[:-1])]
        x = None
        for i in (4, 3, 2, 1):
            x = self.get_submodule(f"refinenet{i}{branch}")(laterals[i - 1], x, sizes[i - 1])
        assert x is not None
        return x


class FusionBlock(nn.Module):
    """Merges the coarser map with a lateral one, and resizes the sum."""

    def __init__(self, features: int, skip_relu: bool, *, merges: bool):
        super().__init__()
        self.resConfUnit1 = _ResidualConv(features, skip_relu) if merges else None
        self.resConfUnit2 = _ResidualConv(features, skip_relu)
        self.out_conv = nn.Conv2d(features, features, kernel_size=1)

    def forward(self, lateral: Tensor, coarser: Tensor | None, size: Sequence[int]) -> Tensor:
        x = lateral if self.resConfUnit1 is None else coarser + self.resConfUnit1(lateral)
        x = F.interpolate(self.resConfUnit2(x), size=tuple(size), mode="bilinear", align_corners=True)
        return self.out_conv(x)


class _ResidualConv(nn.Module):
    def __init__(self, features: int, skip_relu: bool):
        super().__init__()
        self.skip_relu = skip_relu
        self.conv1 = nn.Conv2d(features, features, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(features, features, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # VGGT's weights were trained with an in-place ReLU, so that its skip carries relu(x), not x.
        skip = x.relu() if self.skip_relu else x
        return skip + self.conv2(self.conv1(x.relu()).relu())
