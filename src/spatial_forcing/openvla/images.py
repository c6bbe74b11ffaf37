"""Resizing and cropping of images as in the public pipeline of OpenVLA: Lanczos, then a crop in the middle.

The pipeline resizes with TensorFlow's `lanczos3`, antialiased, and rounds to 8 bits (arXiv 2502.19645, public
code). Its compression of each image to JPEG and back is left out.

B: batch, C: channels, H, W: pixels, I: pixels along a side before, O: after.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

LOBES = 3  # half width of the kernel, in pixels of the coarser image


@lru_cache(maxsize=16)
def lanczos_weights_OI(before: int, after: int) -> Tensor:
    """Weights (float32) of the pixels of a side in those of the resized one; each row sums to 1."""
    scale = before / after
    middle_O1 = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    x_OI = (torch.arange(before, dtype=torch.float64) + 0.5 - middle_O1) / max(scale, 1.0)
    weights_OI = torch.where(x_OI.abs() < LOBES, torch.sinc(x_OI) * torch.sinc(x_OI / LOBES), 0.0)
    return (weights_OI / weights_OI.sum(1, keepdim=True)).float()


def resized(images_BCHW: Tensor, size: int) -> Tensor:
    """Stretches images in [0, 1] to size x size pixels, as 8-bit values over 255; the dtype stays."""
    height, width = images_BCHW.shape[-2:]
    if (height, width) == (size, size):
        return images_BCHW
    rows_OI, cols_OI = (lanczos_weights_OI(side, size).to(images_BCHW.device) for side in (height, width))
    stretched_BCHW = rows_OI @ images_BCHW.float() @ cols_OI.T
    return (stretched_BCHW.clamp(0, 1).mul(255).round() / 255).to(images_BCHW.dtype)


def centre_crop(images_BCHW: Tensor, area: float) -> Tensor:
    """Crops to the middle that has a fraction `area` of the image, stretched to the image's own size.

    Bilinear, between the outermost pixel centres of the crop, as TensorFlow's `crop_and_resize` does it.

    Raises:
        ValueError: the fraction is not above 0 and at most 1.
    """
    if not 0 < area <= 1:
        raise ValueError(f"The area of a crop is a fraction above 0 and at most 1, got {area}.")
    if area == 1:
        return images_BCHW
    theta_23 = images_BCHW.new_tensor([[area**0.5, 0, 0], [0, area**0.5, 0]])
    grid_BHW2 = F.affine_grid(
        theta_23.expand(len(images_BCHW), 2, 3), list(images_BCHW.shape), align_corners=True
    )
    return F.grid_sample(images_BCHW, grid_BHW2, align_corners=True)
