"""Depth in metres: recorded, of a model that knows metres, or of one that does not, brought to metres.

A model without metres (VGGT, Depth Anything 3) estimates depth up to a factor s per scene, which calibration
gives:

    cameras        s = mean distance between the calibrated cameras / mean distance between the estimated ones
    end effector   s = depth of the end effector, by its recorded position / estimated depth where it is seen

The first needs two cameras and a model that estimates them; else the second serves, a view at a time. It is a
few centimetres off, as what is seen is the surface. The depth's name says which.

Shapes: B batch, V views, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.geometry.cameras import CameraSource
from spatial_forcing.geometry.pinhole import centres_of, turns_between
from spatial_forcing.probe.depths import Depths, recorded
from spatial_forcing.probe.pseudo import TeacherDepth, estimates_cameras, pseudo

# A hand seen in fewer pixels than this share of the image's height has no depth of its own.
PATCH = 0.06


def metric_depths(
    source: str, dataset: Any, keys: Sequence[str], cameras: CameraSource, device: str = "cpu"
) -> Depths:
    """A source of depth in metres.

    Args:
        source: ``recorded`` or ``pseudo:<model>``.
        dataset: a LeRobotDataset.
        keys: its cameras.
        cameras: where they are.
        device: where a model runs.

    Raises:
        ProbeError: no depth is recorded, or the model estimates none.
        UnknownNameError: no such model.
    """
    kind, _, model = source.partition(":")
    if kind == "recorded":
        return recorded(dataset, keys)
    if estimates_cameras(model) and len(keys) > 1:
        return Depths(
            f"pseudo: {model}, metres by the cameras", "pseudo", False, ByCameras(model, cameras, device)
        )
    depths = pseudo(model, device)
    if not depths.relative:
        return depths
    name = f"{depths.name}, metres by the end effector"
    return replace(depths, name=name, relative=False, of=_ByEndEffector(depths, cameras))


class ByCameras:
    """Depth of a teacher that estimates cameras, too, at the scale at which they are as far apart as here."""

    def __init__(self, model: str, cameras: CameraSource, device: str):
        self.depth, self.cameras = TeacherDepth(model, device, scene=True), cameras

    @property
    def fingerprint(self) -> str:
        """Changes with the model's weights."""
        return self.depth.fingerprint

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        maps, extrinsics_BV34 = self.depth.scene(batch, cameras)
        true_BV3 = self.cameras.pinholes(batch, cameras).centres_BV3
        scale_B = spread(true_BV3) / spread(centres_of(extrinsics_BV34)).clamp(min=1e-6)
        return [depth_BHW * scale_B[:, None, None] for depth_BHW in maps]

    def turned(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> Tensor:
        """By how many degrees, degrees_BVV, the teacher sees each pair of cameras turned against each other
        otherwise than they are calibrated."""
        _, extrinsics_BV34 = self.depth.scene(batch, cameras)
        return turns_between(extrinsics_BV34, self.cameras.pinholes(batch, cameras).extrinsics_BV34)


def spread(centres_BV3: Tensor) -> Tensor:
    """Mean distance (B,) between points."""
    V = centres_BV3.shape[1]
    return torch.cdist(centres_BV3, centres_BV3).sum((1, 2)) / (V * (V - 1))


class _ByEndEffector:
    """Depth up to a factor, at the scale at which the end effector is as far away as here, view by view."""

    def __init__(self, depths: Depths, cameras: CameraSource):
        self.depths, self.cameras = depths, cameras

    @property
    def fingerprint(self) -> str:
        """Changes with the model's weights."""
        return self.depths.fingerprint

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        hand_B113 = self.cameras.end_effector(batch)[:, None, None]
        pinholes = self.cameras.pinholes(batch, cameras)
        V = len(cameras)
        place_BV12, true_BV1 = pinholes.project(hand_B113.expand(-1, V, -1, -1))
        found = []
        for v, depth_BHW in enumerate(self.depths.of(batch, cameras)):
            seen_B = at_place(depth_BHW, place_BV12[:, v, 0])
            scale_B = torch.where(
                (seen_B > 0) & (true_BV1[:, v, 0] > 0), true_BV1[:, v, 0] / seen_B, torch.nan
            )
            found.append(depth_BHW * scale_B[:, None, None])
        return found


def at_place(depth_BHW: Tensor, place_B2: Tensor) -> Tensor:
    """Nearest depth (B,) in a small square around a place in each map; not a number outside the image."""
    H, W = depth_BHW.shape[-2:]
    reach = max(1, round(PATCH * H / 2))
    near_BHW = -F.max_pool2d(-depth_BHW[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]
    inside_B = ((place_B2 >= 0) & (place_B2 < 1)).all(-1)
    col_B, row_B = (place_B2.clamp(0, 1 - 1e-6) * place_B2.new_tensor([W, H])).long().unbind(-1)
    found_B = near_BHW[torch.arange(len(near_BHW)), row_B, col_B]
    return torch.where(inside_B, found_B, torch.nan)
