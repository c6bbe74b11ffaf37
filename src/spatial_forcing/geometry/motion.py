"""What moves along with the end effector in images of a camera that stands still.

What lies at u from the end effector's projection p, u in metres at its depth (f of the image a metre there),
either moves with it from frame i to frame j, or stays where it is:

    moves(u) = |I_j(p_j + f_j u) - I_i(p_i + f_i u)|^2
    stays(u) = |I_j(q) - I_i(q)|^2, mean of q = p_i + f_i u and q = p_j + f_j u
    share(u) = sum(stays - moves) / sum(stays + moves - 2 noise)

sums over pairs of frames and a few centimetres; noise is what changes where nothing moves. The share is near
1 on the hand, and -1 on what stands behind it. A right calibration puts the end effector onto what follows,
and no motion of another size or direction, p_j - p_i scaled and turned, is followed better. The difference
|I_j - I_i| alone has its peak where the arm has the most contrast, 25 cm from the hand in LIBERO.

Shapes: F frames, P pairs of them, G cells of a grid in metres around the end effector, H W pixels.
"""

from dataclasses import dataclass
from functools import cached_property
from math import cos, radians, sin
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.geometry.pinhole import Pinholes

CELL, REACH, SMOOTH = 0.02, 18, 3  # metres a cell, cells to each side of the end effector, cells averaged
FOLLOWS, LEAST_CELLS = 0.3, 10  # share from which content follows; so many cells are a hand
LEAST_SIGNAL = 0.25  # of what changes is taken for more than noise
FAINT = 0.03  # of the strongest change in the grid: less tells nothing
NEAR = 0.08  # metres around the nearest cell that follows, whose motion is measured
SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0)
TURNS = tuple(range(-60, 61, 5))
MOST_CELLS = 25  # whose motion is measured
LEAST_PAIRS = 3
LEAST_SHIFT = 1.5  # pixels that the projection moves between the frames of a pair


class Following(NamedTuple):
    """What follows the projected end effector.

    Attributes:
        pairs: of frames, with the end effector in both.
        offset: from the projection to the nearest that follows, metres at the end effector's depth; None if
            nothing does.
        offset_rows: the same as a share of the image's height.
        beyond: how far what follows reaches along its longer axis, metres: on the side where it reaches less.
            Of a point at the tip of an arm that is little.
        share: of it, from -1 to 1.
        scale: by which the motion in the image is larger than that of the projection.
        turn: by which it is turned, degrees, clockwise in the image.
    """

    pairs: int
    offset: float | None
    offset_rows: float
    beyond: float
    share: float
    scale: float
    turn: float


@dataclass(frozen=True)
class View:
    """Frames of one camera.

    Attributes:
        images_F3HW: in [0, 1], about a hundred pixels high.
        cameras: of them; one view.
        position_F3: of the end effector, metres.
        pairs_P2: frames of an episode between which it moves, indices.
    """

    images_F3HW: Tensor
    cameras: Pinholes
    position_F3: Tensor
    pairs_P2: Tensor

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """place_F2 of the end effector in unit coordinates, and depth_F."""
        place_F112, depth_F11 = self.cameras.project(self.position_F3[:, None, None].float())
        return place_F112[:, 0, 0], depth_F11[:, 0, 0]

    @property
    def visible_F(self) -> Tensor:
        """In which frames it is in front of the camera and inside the image."""
        place_F2, depth_F = self.places
        return (depth_F > 0.01) & inside(place_F2)

    @property
    def rows_per_metre_F(self) -> Tensor:
        """Pixels that a metre at the end effector is high, below zero behind the camera."""
        height = self.images_F3HW.shape[-2]
        return height * self.cameras.intrinsics_BV33[:, 0, 1, 1].abs() / self.places[1]

    @property
    def moves_P(self) -> Tensor:
        """Between which frames the camera moves."""
        i_P, j_P = self.pairs_P2.T
        E_F34 = self.cameras.extrinsics_BV34[:, 0]
        return (E_F34[i_P] - E_F34[j_P]).abs().amax((-2, -1)) > 1e-4

    @property
    def moving(self) -> bool:
        """Whether the camera moves between the frames of most pairs."""
        return bool(len(self.pairs_P2)) and float(self.moves_P.float().mean()) > 0.5

    @property
    def followed_P2(self) -> Tensor:
        """The pairs between which the camera stands still, and the end effector is seen to move."""
        i_P, j_P = self.pairs_P2.T
        height, width = self.images_F3HW.shape[-2:]
        shift_P2 = (self.places[0][j_P] - self.places[0][i_P]) * torch.tensor([width, height])
        seen_P = self.visible_F[i_P] & self.visible_F[j_P] & (shift_P2.norm(dim=-1) >= LEAST_SHIFT)
        return self.pairs_P2[seen_P & ~self.moves_P]


def following(view: View) -> Following | None:
    """Measures what follows the end effector in the images of a camera that stands still.

    Returns:
        None if it is seen to move between the frames of fewer than three pairs.
    """
    i_P, j_P = view.followed_P2.T
    if len(i_P) < LEAST_PAIRS:
        return None
    pairs = _Pairs(view, i_P, j_P)
    steps = torch.arange(-REACH, REACH + 1) * CELL
    at_G2 = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
    share_G = pairs.share(at_G2, len(steps))
    follows_G = share_G > FOLLOWS
    if follows_G.sum() < LEAST_CELLS:
        return Following(len(i_P), None, 0.0, 0.0, float(share_G.max()), 1.0, 0.0)
    distance_G = torch.where(follows_G, at_G2.norm(dim=-1), torch.inf)
    nearest = int(distance_G.argmin())
    near_G = follows_G & ((at_G2 - at_G2[nearest]).norm(dim=-1) <= NEAR)
    cells = near_G.nonzero()[:, 0]
    few = torch.linspace(0, len(cells) - 1, min(MOST_CELLS, len(cells))).round().long()
    scale, turn = pairs.motion(at_G2[cells[few]])
    offset = float(distance_G[nearest])
    rows = offset * float(pairs.per_metre_i_P2[:, 1].median())
    beyond = _beyond(at_G2[follows_G])
    return Following(len(i_P), offset, rows, beyond, float(share_G[near_G].max()), scale, turn)


def _beyond(at_N2: Tensor) -> float:
    """How far places reach along their longer axis from the origin: on the side where they reach less."""
    axis_2 = torch.linalg.eigh((at_N2 - at_N2.mean(0)).T.cov(correction=0)).eigenvectors[:, -1]
    along_N = at_N2 @ axis_2
    return max(0.0, min(float(along_N.max()), float(-along_N.min())))


class _Pairs:
    """Pairs of frames of a camera that stands still."""

    def __init__(self, view: View, i_P: Tensor, j_P: Tensor):
        place_F2, depth_F = view.places
        K_F33 = view.cameras.intrinsics_BV33[:, 0]
        per_metre_F2 = K_F33[:, (0, 1), (0, 1)].abs() / depth_F[:, None].abs().clamp(min=0.01)
        self.place_i_P2, self.place_j_P2 = place_F2[i_P], place_F2[j_P]
        self.per_metre_i_P2, self.per_metre_j_P2 = per_metre_F2[i_P], per_metre_F2[j_P]
        self.images_i, self.images_j = view.images_F3HW[i_P], view.images_F3HW[j_P]

    def share(self, at_G2: Tensor, side: int) -> Tensor:
        """Share that follows, of a square grid around the end effector, row by row; -1 if unknown."""
        from_PG2 = self.place_i_P2[:, None] + self.per_metre_i_P2[:, None] * at_G2
        to_PG2 = self.place_j_P2[:, None] + self.per_metre_j_P2[:, None] * at_G2
        moves_PG, stays_PG, seen_PG = self._changes(from_PG2, to_PG2)
        seen_G = seen_PG.sum(0)
        moves_G, stays_G = ((of * seen_PG).sum(0) for of in (moves_PG, stays_PG))
        known_G = seen_G >= max(LEAST_PAIRS, 0.2 * len(seen_PG))
        noise_G = _noise(stays_G[known_G] / seen_G[known_G]) * seen_G
        changes_G = stays_G + moves_G
        # Where there is hardly more than noise, its share is not blown up.
        denominator_G = torch.maximum(changes_G - 2 * noise_G, LEAST_SIGNAL * changes_G)
        numerator_G, denominator_G = _smooth(stays_G - moves_G, side), _smooth(denominator_G, side)
        strong_G = denominator_G > FAINT * denominator_G.max()
        share_G = (numerator_G / denominator_G.clamp(min=1e-9)).clamp(-1, 1)
        return torch.where(known_G & strong_G, share_G, -1.0)

    def motion(self, at_G2: Tensor) -> tuple[float, float]:
        """Scale and turn of the motion in the image against that of the projection, by the best share."""
        height, width = self.images_i.shape[-2:]
        pixels_2 = torch.tensor([width, height])
        grown_PG2 = (self.per_metre_j_P2 - self.per_metre_i_P2)[:, None] * at_G2
        from_PG2 = self.place_i_P2[:, None] + self.per_metre_i_P2[:, None] * at_G2
        moved_P2 = (self.place_j_P2 - self.place_i_P2) * pixels_2
        best = -2.0, 1.0, 0.0
        for scale, turn in ((s, t) for s in SCALES for t in TURNS):
            c, s = cos(radians(turn)), sin(radians(turn))
            turned_P2 = scale * moved_P2 @ torch.tensor([[c, s], [-s, c]]) / pixels_2
            moves_PG, stays_PG, seen_PG = self._changes(from_PG2, from_PG2 + turned_P2[:, None] + grown_PG2)
            moves, stays = ((of * seen_PG).sum() for of in (moves_PG, stays_PG))
            best = max(best, (float((stays - moves) / (stays + moves).clamp(min=1e-9)), scale, float(turn)))
        return best[1:]

    def _changes(self, from_PG2: Tensor, to_PG2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """moves_PG, stays_PG, and which places are inside both images."""
        seen_PG = inside(from_PG2) & inside(to_PG2)
        from_i, from_j = sampled(self.images_i, from_PG2), sampled(self.images_j, from_PG2)
        to_i, to_j = sampled(self.images_i, to_PG2), sampled(self.images_j, to_PG2)
        moves_PG = (to_j - from_i).square().mean(1)
        stays_PG = ((from_j - from_i).square() + (to_j - to_i).square()).mean(1) / 2
        return moves_PG, stays_PG, seen_PG


def _noise(stays_G: Tensor) -> Tensor:
    """What changes where nothing moves: in the quietest tenth of the grid."""
    return stays_G.quantile(0.1) if stays_G.numel() else stays_G.new_zeros(())


def _smooth(of_G: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(
        of_G.view(1, 1, side, side), SMOOTH, 1, SMOOTH // 2, count_include_pad=False
    ).flatten()


# ---- images ------------------------------------------------------------------------------------------------


def inside(place_N2: Tensor) -> Tensor:
    """Which places, in unit coordinates, are inside the image."""
    return ((place_N2 > 0) & (place_N2 < 1)).all(-1)


def sampled(images_P3HW: Tensor, place_PG2: Tensor) -> Tensor:
    """Values of images at places in unit coordinates, (P, 3, G)."""
    at_P1G2 = (place_PG2 * 2 - 1)[:, None]
    return F.grid_sample(images_P3HW, at_P1G2, align_corners=False, padding_mode="border")[:, :, 0]
