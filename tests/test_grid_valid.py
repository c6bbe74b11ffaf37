"""Which tokens are valid after resampling: padding, missing views, what is outside the image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_grids import affines, features, small_sizes

from spatial_forcing.grid import Layout, compose, crop, resample, rotation


@given(
    height=st.integers(50, 400),
    width=st.integers(50, 400),
    rows=st.integers(4, 16),
    cols=st.integers(4, 16),
    anchor=st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
)
def test_padding_is_invalid_and_the_image_valid(height, width, rows, cols, anchor):
    layout = Layout(1, rows, cols, fit="pad", anchor=anchor)
    out = resample(features(torch.ones(8, 8, 1)), rows, cols, layout.affine_23(height, width))

    # The image's edges in cells: as large as fits, the free space split by the anchor.
    scale = min(cols / width, rows / height)
    left, top = (cols - width * scale) * anchor[0], (rows - height * scale) * anchor[1]
    column, row = torch.arange(cols), torch.arange(rows)[:, None]
    within_x = (column + 1).clamp(max=left + width * scale) - column.clamp(min=left)
    within_y = (row + 1).clamp(max=top + height * scale) - row.clamp(min=top)
    part = within_x.clamp(min=0) * within_y.clamp(min=0)  # of each cell that the image covers
    valid = out.valid_BVHW[0, 0]
    for valid_hw in (valid, layout.valid_mask(height, width)):
        assert not valid_hw[part < 1e-3].any()
        assert valid_hw[part > 1 - 1e-3].all()
    assert out.tokens_BVHWC[0, 0, ..., 0][valid] == pytest.approx(1.0)


def test_padding_follows_the_anchor():
    def valid_rows(y: float) -> list[bool]:
        layout = Layout(1, 8, 8, fit="pad", anchor=(0.5, y))
        return (
            resample(features(torch.ones(4, 4, 1)), 8, 8, layout.affine_23(100, 200))
            .valid_BVHW[0, 0, :, 0]
            .tolist()
        )

    assert valid_rows(0.0) == [True] * 4 + [False] * 4
    assert valid_rows(0.5) == [False] * 2 + [True] * 4 + [False] * 2
    assert valid_rows(1.0) == [False] * 4 + [True] * 4


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@given(H=small_sizes, W=small_sizes, h=small_sizes, w=small_sizes, affine=affines(), seed=st.integers(0, 99))
def test_invalid_teacher_tokens_never_leak(poison, H, W, h, w, affine, seed):
    valid = torch.rand(1, 2, H, W, generator=torch.Generator().manual_seed(seed)) < 0.6
    clean = torch.randn(1, 2, H, W, 3)
    dirty = torch.where(valid[..., None], clean, poison)
    for options in ({"affine_BV23": affine}, {"published": True}):
        a, b = (resample(features(tokens, valid), h, w, **options) for tokens in (clean, dirty))
        assert torch.equal(a.tokens_BVHWC, b.tokens_BVHWC)
        assert torch.equal(a.valid_BVHW, b.valid_BVHW)


@given(H=small_sizes, W=small_sizes, h=small_sizes, w=small_sizes, seed=st.integers(0, 99))
def test_partly_valid_cells_are_means_of_what_is_valid(H, W, h, w, seed):
    valid = torch.rand(1, 1, H, W, generator=torch.Generator().manual_seed(seed)) < 0.6
    out = resample(features(torch.full((1, 1, H, W, 1), 2.0), valid), h, w)
    assert out.tokens_BVHWC[out.valid_BVHW] == pytest.approx(2.0, abs=1e-5)
    # Weights of the valid tokens, as the share of a cell that they cover.
    share = resample(features(valid[..., None].float()), h, w).tokens_BVHWC[..., 0]
    clear = (share - 0.5).abs() > 1e-4
    assert torch.equal(out.valid_BVHW[clear], (share > 0.5)[clear])


def test_outside_the_image_is_invalid():
    out = resample(features(torch.ones(6, 6, 1)), 4, 4, crop(-0.5, 0.0, 0.5, 1.0))
    assert out.valid_BVHW[0, 0].tolist() == [[False, False, True, True]] * 4
    assert not resample(features(torch.ones(6, 6, 1)), 4, 4, crop(2.0, 2.0, 3.0, 3.0)).valid_BVHW.any()


def test_a_missing_view_stays_missing_and_spares_the_others():
    valid = torch.ones(2, 3, 5, 5, dtype=torch.bool)
    valid[0, 1] = False
    out = resample(features(torch.randn(2, 3, 5, 5, 2), valid), 3, 3)
    assert not out.valid_BVHW[0, 1].any()
    assert (out.tokens_BVHWC[0, 1] == 0).all()
    assert out.valid_BVHW.sum() == 5 * 9


def test_gradient_reaches_valid_tokens_only():
    tokens = torch.randn(1, 1, 6, 6, 2, requires_grad=True)
    valid = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    valid[..., :2] = False
    resample(features(tokens, valid), 3, 3).tokens_BVHWC.square().sum().backward()
    assert (tokens.grad[~valid] == 0).all()
    assert (tokens.grad[valid] != 0).all()
    assert not resample(features(tokens.detach()), 3, 3).tokens_BVHWC.requires_grad


def test_geometry_keeps_its_precision_under_autocast():
    tokens, affine = torch.randn(1, 1, 5, 5, 2), rotation(10)
    expected = resample(features(tokens), 2, 2, compose(crop(0.1, 0.2, 0.9, 1.0), affine)).tokens_BVHWC
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = resample(features(tokens), 2, 2, compose(crop(0.1, 0.2, 0.9, 1.0), affine)).tokens_BVHWC
    assert torch.equal(out, expected)
