"""Training objectives and metrics of the small VGGTs: geometry, or masked modelling as its 2D control.

B: batch, V: views, H, W: pixels, P: patches, C: channels, I: refinements of the camera.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.teachers.scene_batches import Batch
from spatial_forcing.teachers.vggt import MODULES, VGGT, VGGTConfig

Loss = Literal["confidence", "plain"]

CONFIDENCE = 0.2  # weight of the confidence's logarithm (VGGT's alpha)
CAMERA_DECAY = 0.6  # weight of one refinement of the camera over that of the next


def dense_loss(
    x_BVHWC: Tensor, confidence_BVHW: Tensor, target_BVHWC: Tensor, batch: Batch, loss: Loss
) -> Tensor:
    """Dense loss: mean of `c e - alpha log c` over valid pixels, plus the error of differences of neighbours.

    e is the distance to the target over the depth; c the confidence (one if the loss is plain).
    """
    error_BVHWC = (x_BVHWC - target_BVHWC) / batch.depth_BVHW[..., None]
    e = error_BVHWC.norm(dim=-1)
    if loss == "confidence":
        e = confidence_BVHW * e - CONFIDENCE * confidence_BVHW.log()
    total = masked_mean(e, batch.valid_BVHW)
    for dim in (2, 3):
        length = x_BVHWC.shape[dim] - 1
        step = error_BVHWC.diff(dim=dim).abs().sum(dim=-1)
        both = batch.valid_BVHW.narrow(dim, 1, length) & batch.valid_BVHW.narrow(dim, 0, length)
        total = total + masked_mean(step, both)
    return total


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of finite values under a mask; multiplies, since gathering them takes a fifth of a step's time."""
    return (x * mask).sum() / mask.sum()


def camera_loss(pose_IBV9: Tensor, pose_BV9: Tensor) -> Tensor:
    """Camera loss: robust error of the pose encodings, later refinements weighing more."""
    e_I = F.smooth_l1_loss(pose_IBV9, pose_BV9.expand_as(pose_IBV9), beta=0.05, reduction="none").mean(
        (1, 2, 3)
    )
    weight_I = CAMERA_DECAY ** torch.arange(len(e_I) - 1, -1, -1)
    return (weight_I * e_I).sum() / weight_I.sum()


class GeometryVGGT(VGGT):
    """VGGT with its training losses (arXiv 2503.11651, section 3.4): depth, point maps and cameras."""

    def __init__(self, config: VGGTConfig):
        super().__init__(config, MODULES)

    def losses(self, batch: Batch, loss: Loss) -> dict[str, Tensor]:
        """Training losses by name; their sum is minimised."""
        p = self(batch.images_BV3HW)
        depth_BVHW1, target_BVHW1 = p.depth_BVHW[..., None], batch.depth_BVHW[..., None]
        return {
            "depth": dense_loss(depth_BVHW1, p.depth_confidence_BVHW, target_BVHW1, batch, loss),
            "points": dense_loss(p.points_BVHW3, p.points_confidence_BVHW, batch.points_BVHW3, batch, loss),
            "camera": camera_loss(p.pose_IBV9, batch.pose_BV9),
        }

    @torch.no_grad()
    def numbers(self, batch: Batch) -> dict[str, Tensor]:
        """Evaluation metrics, without fitting scale or shift.

        Depth AbsRel and delta1 (the fraction within a ratio of 1.25), mean distance of the points in metres,
        and the mean error of the cameras in metres and degrees.
        """
        p = self(batch.images_BV3HW)
        depth, target = p.depth_BVHW[batch.valid_BVHW], batch.depth_BVHW[batch.valid_BVHW]
        distance = (p.points_BVHW3 - batch.points_BVHW3).norm(dim=-1)[batch.valid_BVHW]
        pose_BV9 = p.pose_IBV9[-1]
        q, true_q = F.normalize(pose_BV9[..., 3:7], dim=-1), batch.pose_BV9[..., 3:7]
        angle = 2 * (q * true_q).sum(-1).abs().clamp(max=1).acos()
        return {
            "abs_rel": ((depth - target).abs() / target).mean(),
            "delta1": (torch.maximum(depth / target, target / depth) < 1.25).float().mean(),
            "point_error_m": distance.mean(),
            "camera_error_m": (pose_BV9[..., :3] - batch.pose_BV9[..., :3]).norm(dim=-1).mean(),
            "camera_error_deg": angle.rad2deg().mean(),
        }


class MaskedVGGT(VGGT):
    """Masked modelling: the aggregator with a linear head that predicts masked patches (arXiv 2111.06377).

    Views are masked and predicted one by one.

    Targets are the pixels of a patch less their mean, over their standard deviation.
    """

    def __init__(self, config: VGGTConfig):
        super().__init__(config, ("aggregator",))
        self.pixel_head = nn.Linear(2 * config.embed_dim, 3 * config.patch**2)

    def losses(self, batch: Batch, fraction: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the masked patches, a random `fraction` of all; 1 for predicting zeros."""
        images_B13HW = batch.images_BV3HW.flatten(0, 1)[:, None]
        pixels_B1PC = F.pixel_unshuffle(images_B13HW, self.config.patch).flatten(-2).mT
        mean, std = pixels_B1PC.mean(-1, keepdim=True), pixels_B1PC.std(-1, keepdim=True)
        target_B1PC = (pixels_B1PC - mean) / (std + 1e-2)
        rank_B1P = torch.rand(target_B1PC.shape[:3], generator=rng).argsort(dim=-1).argsort(dim=-1)
        mask_B1P = rank_B1P < fraction * target_B1PC.shape[2]
        (tokens_B1NC,) = self.aggregator(images_B13HW, (-1,), mask_B1P)
        guess_B1PC = self.pixel_head(tokens_B1NC[:, :, self.aggregator.special :])
        return {"pixels": F.mse_loss(guess_B1PC[mask_B1P], target_B1PC[mask_B1P])}
