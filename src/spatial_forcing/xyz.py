"""The sinusoidal embedding of 3D points: the position embedding of a target whose tokens know where they are.

The counterpart of ``uv.py``: the place of a token in the image is replaced by the place of what it shows.
"""

import math

import torch
from torch import Tensor

# Cycles per metre of the slowest and the fastest wave: wavelengths of 4 m, a room, and 12.5 cm, a hand.
SLOWEST, FASTEST = 0.25, 8.0
# Channels of an embedding that stands by itself.
CHANNELS = 96


def xyz_embedding(points_N3: Tensor, channels: int = CHANNELS) -> Tensor:
    """Sinusoidal embedding of points.

    With n = C // 6 frequencies `w_i`, evenly spread on a logarithmic scale from :data:`SLOWEST` to
    :data:`FASTEST` cycles per metre, a point's channels are

        sin(x w), cos(x w), sin(y w), cos(y w), sin(z w), cos(z w).

    Args:
        points_N3: (..., 3), metres. A point with a coordinate that is not finite has the embedding zero.
        channels: C, at least 6. Those beyond the last multiple of 6 are zero.

    Returns:
        (..., C), in the dtype of the points, values in [-1, 1].

    Raises:
        ValueError: fewer channels.
    """
    if channels < 6:
        raise ValueError(
            f"A point is embedded in at least 6 channels (sine and cosine of x, y and z), got {channels}."
        )
    n = channels // 6
    cycles_n = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), n, dtype=torch.float64)
    w_n = (2 * math.pi * cycles_n).to(points_N3)
    known_N1 = points_N3.isfinite().all(-1, keepdim=True)
    phase_N3n = torch.where(known_N1, points_N3, 0.0)[..., None] * w_n
    waves_NC = torch.stack([phase_N3n.sin(), phase_N3n.cos()], dim=-2).flatten(-3)
    waves_NC = torch.where(known_N1, waves_NC, 0.0)
    return torch.nn.functional.pad(waves_NC, (0, channels - 6 * n))
