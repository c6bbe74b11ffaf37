"""Control targets: alignment targets without the teacher's content, to compare with.

A loss on visual tokens can help a policy without telling it anything about the image: it may bring a
position signal that the policy lacked, or act as a regulariser. Whatever a control gains over no forcing, the
teacher's content did not. Two controls, run as arms beside the forced one:

* ``shuffled``: every frame gets the features of another frame. The target keeps the teacher's statistics at
  every place, and of the frame it says nothing, or of one in about as many as there are episodes what
  frames of one episode have in common.
* ``place``: the sinusoidal position embedding of each token's place, the same for every frame and teacher.

Shapes: B batch, V views, H W teacher rows and columns, h w host rows and columns, C channels.
"""

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.uv import uv_position_embedding

CONTROLS = ("shuffled", "place")


def of_another_frame(features: Features, *, allow_single: bool = False) -> Features:
    """Shuffled control: gives every frame the features of the one before it in the batch, cyclically.

    No random numbers are drawn: neighbours in a batch that was drawn at random, as trainers do, have nothing
    to do with each other. A token is valid where it is valid in both frames.

    Args:
        features: of a batch, as the teacher or a cache gives them.
        allow_single: a batch of one frame, which has no other, comes back with no token valid (the rest of a
            data set after the last whole batch) and is not an error.

    Raises:
        SpatialForcingError: a batch of one frame.
    """
    if len(features.tokens_BVHWC) == 1:
        if not allow_single:
            raise SpatialForcingError(
                "control='shuffled' gives every frame the features of another frame of its batch, and this "
                "batch has one frame. Use a batch size of at least 2 per process, or control='place'."
            )
        return features._replace(valid_BVHW=features.valid_BVHW & False)
    moved = features.mapped(lambda part: part.roll(1, 0))
    return moved._replace(valid_BVHW=moved.valid_BVHW & features.valid_BVHW)


def place_embedding(B: int, V: int, h: int, w: int, C: int) -> Tensor:
    """Place control: target_BVhwC (float32, on the CPU) of token positions alone, views side by side."""
    embedding_hWC = uv_position_embedding(h, V * w, C)
    return embedding_hWC.unflatten(1, (V, w)).transpose(0, 1).expand(B, V, h, w, C)
