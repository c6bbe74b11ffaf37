"""Small grids of tokens, and the sizes and affines that laws of grids are tried on."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from spatial_forcing.features import Features
from spatial_forcing.grid import compose, crop, flip, rotation

sizes = st.integers(1, 40)
small_sizes = st.integers(2, 12)


def features(tokens: Tensor, valid: Tensor | None = None) -> Features:
    """Features of tokens_HWC or tokens_BVHWC, everywhere valid unless told."""
    tokens = tokens if tokens.ndim == 5 else tokens[None, None]
    return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool) if valid is None else valid)


@st.composite
def affines(draw: st.DrawFn, turns: bool = True) -> Tensor:
    """A crop of at least a quarter of each side, perhaps mirrored, perhaps turned by up to 30 degrees."""
    size_x, size_y = draw(st.floats(0.25, 1)), draw(st.floats(0.25, 1))
    x0, y0 = draw(st.floats(0, 1)) * (1 - size_x), draw(st.floats(0, 1)) * (1 - size_y)
    affine = crop(x0, y0, x0 + size_x, y0 + size_y)
    if draw(st.booleans()):
        affine = compose(affine, flip())
    return compose(affine, rotation(draw(st.floats(-30, 30)))) if turns else affine
