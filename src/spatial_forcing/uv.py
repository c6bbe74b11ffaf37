"""The sinusoidal UV position embedding of VGGT's dense heads (arXiv 2503.11651, code of its DPT head).

H, W: rows and columns of a token grid; C: channels.
"""

import torch
from torch import Tensor


def uv_position_embedding(
    height: int,
    width: int,
    channels: int,
    *,
    aspect: float | None = None,
    base: float = 100.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sinusoidal embedding of the position of each grid cell in the image.

    Cell centres have coordinates `u` (rightwards) and `v` (downwards), scaled so that the image's corners
    lie on the unit circle: `|u| <= a / sqrt(1 + a^2)`, `|v| <= 1 / sqrt(1 + a^2)` with aspect ratio `a`.
    With `w_i = base^(-i / (C/4))`, `i = 0 .. C/4 - 1`, a cell's C channels are

        sin(u w), cos(u w), sin(v w), cos(v w).

    Args:
        height, width: size of the grid.
        channels: C, a multiple of four.
        aspect: width over height of the image under the grid; the grid's own when None.
        base: largest wavelength over the smallest.
        device, dtype: of the result; the maths is done in float64.

    Returns:
        embedding_HWC, values in [-1, 1]. VGGT and Spatial Forcing add 0.1 times this.

    Raises:
        ValueError: if `channels` is not a multiple of four, or a size is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"The grid needs at least one row and column, got {height} x {width}.")
    if channels < 4 or channels % 4:
        raise ValueError(
            f"channels must be a positive multiple of 4 (sine and cosine of u and v), got {channels}."
        )
    aspect = width / height if aspect is None else aspect
    diagonal = (1 + aspect**2) ** 0.5
    u_W = _centres(width, aspect / diagonal, device)
    v_H = _centres(height, 1 / diagonal, device)
    i = torch.arange(channels // 4, dtype=torch.float64, device=device)
    omega = base ** (-i / (channels / 4))
    u_WC, v_HC = torch.outer(u_W, omega), torch.outer(v_H, omega)
    u_WC = torch.cat([u_WC.sin(), u_WC.cos()], dim=-1)
    v_HC = torch.cat([v_HC.sin(), v_HC.cos()], dim=-1)
    embedding_HWC = torch.cat(
        [u_WC[None].expand(height, -1, -1), v_HC[:, None].expand(-1, width, -1)], dim=-1
    )
    return embedding_HWC.to(dtype)


def _centres(count: int, span: float, device: torch.device | str | None) -> Tensor:
    """Centres of `count` equal cells that cover [-span, span]."""
    index = torch.arange(count, dtype=torch.float64, device=device)
    return span * ((2 * index + 1) / count - 1)
