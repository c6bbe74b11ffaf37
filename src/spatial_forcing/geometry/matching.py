"""Matches between images of a camera that moves, and whether its calibration allows them.

Points that look the same in two of its images lie, if calibrated, on each other's epipolar lines; on those of
the reversed motion they lie by chance. How far they are off, and how the camera would have to be turned for
them to be less so, tells of rotations, axes and mirrored images; little of focal lengths, and hardly anything
of where on the end effector the camera is.

Shapes: F frames, M matches, n points on an epipolar line, H W pixels, h w places of a patch, k pixels of it.
"""

from dataclasses import dataclass, replace
from itertools import product
from math import hypot
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.geometry.matrices import of_axis_angle
from spatial_forcing.geometry.motion import View
from spatial_forcing.geometry.pinhole import Pinholes

# Patches per row, their half width in pixels, and how much better the best match is than any other.
PATCHES, HALF, BETTER = 12, 3, 0.8
MOST_TURNED = 400  # matches by which the camera's turn is measured
AXIS_TURNS = (-20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)  # degrees
TEXTURE, MOVED, LEAST_MATCHES = 0.003, 2.0, 40
NEAREST, DEPTHS = 0.08, 64  # metres of the nearest thing that a match may show; points on an epipolar line


class Matched(NamedTuple):
    """Matches between images of a moving camera.

    Attributes:
        matches: their number.
        error: median distance from where the calibration allows the match, as a share of the image's height.
        chance: the same for the reversed motion.
        turn: of the camera, degrees, with which the error is least.
        gain: the share of the error that is gone then.
    """

    matches: int
    error: float
    chance: float
    turn: float
    gain: float


@dataclass(frozen=True)
class Matches:
    """Places of the same thing in two frames of a camera: indices i_M, j_M, and unit coordinates."""

    i_M: Tensor
    j_M: Tensor
    place_i_M2: Tensor
    place_j_M2: Tensor

    def reversed(self) -> "Matches":
        """The same places, as if the camera had moved from j to i."""
        return Matches(self.j_M, self.i_M, self.place_i_M2, self.place_j_M2)


def matched(view: View, matches: Matches) -> Matched | None:
    """Compares matches with where the calibration allows them.

    Returns:
        None if fewer than forty were found.
    """
    if len(matches.i_M) < LEAST_MATCHES:
        return None
    error, chance = (float(_distance(view, which).median()) for which in (matches, matches.reversed()))
    turn, gain = _best_turn(view, matches)
    return Matched(len(matches.i_M), error, chance, turn, gain)


def _best_turn(view: View, matches: Matches) -> tuple[float, float]:
    """By how much the camera must be turned, about its own axes, for the least error: degrees, and gain."""
    few = torch.linspace(0, len(matches.i_M) - 1, min(MOST_TURNED, len(matches.i_M))).round().long()
    matches = Matches(*(of[few] for of in (matches.i_M, matches.j_M, matches.place_i_M2, matches.place_j_M2)))
    best_3, least = [0.0] * 3, float(_distance(view, matches).median())
    untouched = max(least, 1e-9)
    for again in (False, True):
        if again and not any(best_3):
            break
        for axis, angle in product(range(3), AXIS_TURNS):
            turn_3 = [*best_3[:axis], angle, *best_3[axis + 1 :]]
            R_33 = of_axis_angle(torch.tensor([turn_3]).deg2rad())[0]
            turned = replace(view, cameras=Pinholes(view.cameras[0], R_33 @ view.cameras[1]))
            found = float(_distance(turned, matches).median())
            if found < least:
                best_3, least = turn_3, found
    return hypot(*best_3), 1 - least / untouched


def matches_of(view: View, most: int = 60) -> Matches:
    """Matches of patches between the frames of pairs between which the camera moves, at most ``most`` pairs.

    Only those that no other place matches nearly as well, and that are not where they were.
    """
    pairs_P2 = view.pairs_P2[view.moves_P]
    pairs_P2 = pairs_P2[torch.linspace(0, len(pairs_P2) - 1, min(most, len(pairs_P2))).round().long()]
    images = view.images_F3HW
    around = F.avg_pool2d(images, 2 * HALF + 1, 1, HALF, count_include_pad=False)
    found = [_matches(images - around, i, j) for i, j in pairs_P2.tolist()]
    empty = [torch.zeros(0, dtype=torch.long)] * 2 + [torch.zeros(0, 2)] * 2
    return Matches(*(torch.cat(parts) for parts in zip(empty, *found, strict=True)))


def _matches(images_F3HW: Tensor, i: int, j: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    side = 2 * HALF + 1
    height, width = images_F3HW.shape[-2:]
    y_M, x_M = (
        of.flatten()
        for of in torch.meshgrid(
            torch.linspace(0, height - side, PATCHES).round().long(),
            torch.linspace(0, width - side, PATCHES).round().long(),
            indexing="ij",
        )
    )
    patches_M3kk = images_F3HW[i].unfold(1, side, 1).unfold(2, side, 1)[:, y_M, x_M].movedim(1, 0)
    other_13HW = images_F3HW[j][None]
    energy_M = patches_M3kk.square().sum((1, 2, 3))
    energy_11hw = F.conv2d(other_13HW.square(), torch.ones(1, 3, side, side))
    off_Mhw = energy_M[:, None, None] + energy_11hw[0] - 2 * F.conv2d(other_13HW, patches_M3kk)[0]
    best_M, at_M = off_Mhw.flatten(1).min(1)
    v_M, u_M = at_M // off_Mhw.shape[-1], at_M % off_Mhw.shape[-1]
    rows_h, cols_w = torch.arange(off_Mhw.shape[1])[:, None], torch.arange(off_Mhw.shape[2])
    elsewhere_Mhw = ((rows_h - v_M[:, None, None]).abs() > HALF) | (
        (cols_w - u_M[:, None, None]).abs() > HALF
    )
    second_M = torch.where(elsewhere_Mhw, off_Mhw, torch.inf).flatten(1).min(1).values
    moved_M = torch.hypot((u_M - x_M).float(), (v_M - y_M).float()) > MOVED
    sure_M = (best_M < BETTER * second_M) & (energy_M > TEXTURE * 3 * side**2) & moved_M
    size_2 = torch.tensor([width, height])
    place_i_M2, place_j_M2 = (
        (torch.stack([x, y], dim=-1) + side / 2)[sure_M] / size_2 for x, y in ((x_M, y_M), (u_M, v_M))
    )
    count = int(sure_M.sum())
    return torch.full((count,), i), torch.full((count,), j), place_i_M2, place_j_M2


def _distance(view: View, matches: Matches) -> Tensor:
    """Distance of each match from the line on which the calibration allows it, as a share of the height."""
    height, width = view.images_F3HW.shape[-2:]
    K_F33, E_F34 = (of[:, 0].double() for of in view.cameras)
    i_M, j_M, aspect_2 = matches.i_M, matches.j_M, torch.tensor([width / height, 1.0])
    place_M3 = F.pad(matches.place_i_M2.double(), (0, 1), value=1.0)
    ray_M3 = (K_F33[i_M].inverse() @ place_M3[..., None])[..., 0]
    turn_M33 = E_F34[j_M][..., :3] @ E_F34[i_M][..., :3].mT
    shift_M3 = E_F34[j_M][..., 3] - (turn_M33 @ E_F34[i_M][..., 3:])[..., 0]
    nearness_n = torch.linspace(0, 1 / NEAREST, DEPTHS, dtype=torch.double)
    point_Mn3 = (turn_M33 @ ray_M3[..., None])[..., 0][:, None] + nearness_n[:, None] * shift_M3[:, None]
    image_Mn3 = point_Mn3 @ K_F33[j_M].mT
    depth_Mn = image_Mn3[..., 2]
    line_Mn2 = image_Mn3[..., :2] / depth_Mn[..., None].abs().clamp(min=1e-9) * aspect_2
    match_M12 = (matches.place_j_M2.double() * aspect_2)[:, None]
    start_Mn2, along_Mn2 = line_Mn2[:, :-1], line_Mn2.diff(dim=1)
    way_Mn = ((match_M12 - start_Mn2) * along_Mn2).sum(-1) / along_Mn2.square().sum(-1).clamp(min=1e-18)
    distance_Mn = (start_Mn2 + way_Mn.clamp(0, 1)[..., None] * along_Mn2 - match_M12).norm(dim=-1)
    ahead_Mn = (depth_Mn[:, :-1] > 0) & (depth_Mn[:, 1:] > 0)
    # Behind the camera there is nothing to match: as far as an image is high.
    return torch.where(ahead_Mn, distance_Mn, 1.0).min(-1).values
