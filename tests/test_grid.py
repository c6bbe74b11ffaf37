"""Laws of resampling token grids: what it keeps, where it interpolates, where it averages."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_grids import affines, features, sizes, small_sizes
from torch import Tensor

from spatial_forcing.grid import Layout, identity, resample


def centres(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def ramp(H: int, W: int, slope: tuple[float, float, float]) -> Tensor:
    """tokens_HW1 of the plane ax + by + c at the tokens' centres."""
    a, b, c = slope
    return (a * centres(W)[None, :] + b * centres(H)[:, None] + c)[..., None].float()


def points(h: int, w: int, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Where the centres of h x w cells land under an affine: x_hw, y_hw."""
    y_hw, x_hw = torch.meshgrid(centres(h), centres(w), indexing="ij")
    at_hw3 = torch.stack([x_hw, y_hw, torch.ones_like(x_hw)], -1)
    x_hw, y_hw = (at_hw3 @ affine.double().T).unbind(-1)
    return x_hw, y_hw


def within_centres(H: int, W: int, h: int, w: int, affine: Tensor) -> Tensor:
    """Cells (h, w) that lie whole between the outer token centres of an H x W grid."""
    x_hw, y_hw = points(h, w, affine)
    half_x = (affine[0, :2].abs() / 2 / torch.tensor([w, h])).sum()
    half_y = (affine[1, :2].abs() / 2 / torch.tensor([w, h])).sum()
    inside_x = (x_hw - half_x >= 0.5 / W - 1e-6) & (x_hw + half_x <= 1 - 0.5 / W + 1e-6)
    inside_y = (y_hw - half_y >= 0.5 / H - 1e-6) & (y_hw + half_y <= 1 - 0.5 / H + 1e-6)
    return inside_x & inside_y


def checkerboard(H: int, W: int) -> Tensor:
    """tokens_HW1 of +1 and -1."""
    return (1.0 - 2 * ((torch.arange(H)[:, None] + torch.arange(W)) % 2))[..., None]


@pytest.mark.parametrize("published", [False, True])
@given(H=sizes, W=sizes, h=sizes, w=sizes)
def test_every_pair_of_sizes_gives_exactly_the_tokens_asked_for(published, H, W, h, w):
    out = resample(features(torch.randn(1, 2, H, W, 3)), h, w, published=published)
    assert out.tokens_BVHWC.shape == (1, 2, h, w, 3)
    assert out.valid_BVHW.all()
    assert out.valid_BVHW.shape == (1, 2, h, w)
    assert out.tokens_BVHWC.isfinite().all()


@given(H=sizes, W=sizes, h=sizes, w=sizes, affine=affines())
def test_constants_stay_constant(H, W, h, w, affine):
    out = resample(features(torch.full((H, W, 2), 3.5)), h, w, affine)
    assert out.tokens_BVHWC[out.valid_BVHW] == pytest.approx(3.5, abs=1e-5)
    assert (out.tokens_BVHWC[~out.valid_BVHW] == 0).all()


@given(H=sizes, W=sizes, h=sizes, w=sizes, affine=affines(), slope=st.tuples(*[st.floats(-2, 2)] * 3))
def test_linear_ramps_are_exact_between_the_outer_token_centres(H, W, h, w, affine, slope):
    out = resample(features(ramp(H, W, slope)), h, w, affine).tokens_BVHWC[0, 0, ..., 0]
    x_hw, y_hw = points(h, w, affine)
    expected = (slope[0] * x_hw + slope[1] * y_hw + slope[2]).float()
    inside = within_centres(H, W, h, w, affine)
    torch.testing.assert_close(out[inside], expected[inside], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("H", "W", "h", "w"), [(37, 37, 16, 16), (28, 37, 16, 16), (16, 16, 8, 8), (9, 14, 3, 4)]
)
def test_downsampled_ramps_are_exact_on_every_inner_cell(H, W, h, w):
    # The premise of the law above holds for all cells but those at the border: it is no empty claim.
    inside = within_centres(H, W, h, w, identity())
    assert inside[1:-1, 1:-1].all()
    out = resample(features(ramp(H, W, (1.0, 2.0, 0.5))), h, w).tokens_BVHWC[0, 0, ..., 0]
    torch.testing.assert_close(out[inside], ramp(h, w, (1.0, 2.0, 0.5))[..., 0][inside], atol=1e-5, rtol=0)


@given(H=sizes, W=sizes)
def test_equal_size_is_the_identity_bit_by_bit(H, W):
    tokens = torch.randn(2, 1, H, W, 3)
    assert torch.equal(resample(features(tokens), H, W).tokens_BVHWC, tokens)
    assert torch.equal(resample(features(tokens), H, W, published=True).tokens_BVHWC, tokens)


@given(H=sizes, W=sizes, h=sizes, w=sizes)
def test_published_is_bilinear_with_aligned_corners(H, W, h, w):
    tokens = torch.randn(2, 1, H, W, 3, dtype=torch.float64)
    expected = F.interpolate(tokens[:, 0].permute(0, 3, 1, 2), (h, w), mode="bilinear", align_corners=True)
    out = resample(features(tokens), h, w, published=True).tokens_BVHWC[:, 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(out, expected, atol=5e-5, rtol=0)  # positions are float32


@given(h=small_sizes, w=small_sizes, factor=st.integers(2, 5))
def test_upsampling_is_bilinear_with_half_pixel_centres(h, w, factor):
    tokens = torch.randn(1, 1, h, w, 2)
    expected = F.interpolate(tokens[:, 0].permute(0, 3, 1, 2), scale_factor=factor, mode="bilinear")
    out = resample(features(tokens), h * factor, w * factor).tokens_BVHWC[:, 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@given(h=st.integers(1, 10), w=st.integers(1, 10), half=st.integers(1, 3))
def test_an_even_number_of_tokens_a_cell_averages_a_checkerboard_away(h, w, half):
    out = resample(features(checkerboard(2 * half * h, 2 * half * w)), h, w)
    assert out.tokens_BVHWC.abs().max() < 1e-6


@given(h=st.integers(2, 16), w=st.integers(2, 16), ratio=st.floats(2, 4))
def test_downsampling_by_two_or_more_is_antialiased(h, w, ratio):
    # An odd cell of a checkerboard has one token more of one colour: 1 / 9 at 3 x 3 is the most that can be
    # left.
    out = resample(features(checkerboard(math.ceil(h * ratio), math.ceil(w * ratio))), h, w)
    assert out.tokens_BVHWC.abs().max() <= 1 / 9 + 1e-5


def test_the_published_resampling_lets_a_checkerboard_alias():
    out = resample(features(checkerboard(37, 37)), 16, 16, published=True)
    assert out.tokens_BVHWC.abs().max() == pytest.approx(1.0)


@given(H=st.integers(4, 20), W=st.integers(4, 20), h=st.integers(1, 4), w=st.integers(1, 4))
def test_no_teacher_token_is_skipped(H, W, h, w):
    tokens = torch.zeros(1, 1, H, W, H * W)
    tokens.view(H * W, H * W).fill_diagonal_(1.0)  # one channel a token: the output holds the weights
    weight_M = resample(features(tokens), h, w).tokens_BVHWC.sum((0, 1, 2, 3))
    assert (weight_M > 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float64, 1e-5)])
def test_dtypes_are_kept(dtype, tolerance):
    tokens = torch.rand(1, 2, 9, 7, 4)
    for published in (False, True):
        out = resample(features(tokens.to(dtype)), 4, 5, published=published).tokens_BVHWC
        assert out.dtype == dtype
        expected = resample(features(tokens), 4, 5, published=published).tokens_BVHWC
        torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=0)


def test_a_layout_draws_itself():
    lines = Layout(2, 3, 4).draw().splitlines()
    assert lines[0] == "2 views x 3 rows x 4 columns = 24 visual tokens, stretch"
    assert sum(line.count("o") for line in lines[1:]) == 24
