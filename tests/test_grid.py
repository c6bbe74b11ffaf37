"""Laws of token grids: what resampling keeps, what it commutes with, what is valid, what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Features, Layout, compose, crop, flip, identity, resample, rotation

sizes = st.integers(1, 40)
small_sizes = st.integers(2, 12)


def features(tokens: Tensor, valid: Tensor | None = None) -> Features:
    """Features of tokens_HWC or tokens_BVHWC, everywhere valid unless told."""
    tokens = tokens if tokens.ndim == 5 else tokens[None, None]
    return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool) if valid is None else valid)


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


@st.composite
def affines(draw: st.DrawFn, turns: bool = True) -> Tensor:
    """A crop of at least a quarter of each side, perhaps mirrored, perhaps turned by up to 30 degrees."""
    size_x, size_y = draw(st.floats(0.25, 1)), draw(st.floats(0.25, 1))
    x0, y0 = draw(st.floats(0, 1)) * (1 - size_x), draw(st.floats(0, 1)) * (1 - size_y)
    affine = crop(x0, y0, x0 + size_x, y0 + size_y)
    if draw(st.booleans()):
        affine = compose(affine, flip())
    return compose(affine, rotation(draw(st.floats(-30, 30)))) if turns else affine


# ---- sizes and values --------------------------------------------------------------------------------------


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


# ---- affines -----------------------------------------------------------------------------------------------


@given(outer=affines(), inner=affines(), x=st.floats(-1, 2), y=st.floats(-1, 2))
def test_composing_affines_composes_the_maps(outer, inner, x, y):
    def act(affine: Tensor, point_2: Tensor) -> Tensor:
        return affine[:, :2].double() @ point_2 + affine[:, 2].double()

    point = torch.tensor([x, y], dtype=torch.float64)
    torch.testing.assert_close(
        act(compose(outer, inner), point), act(outer, act(inner, point)), atol=1e-5, rtol=0
    )


@given(a=affines(), b=affines(), c=affines())
def test_composition_is_associative_and_has_a_unit(a, b, c):
    torch.testing.assert_close(compose(compose(a, b), c), compose(a, compose(b, c)), atol=1e-5, rtol=0)
    assert torch.equal(compose(a, identity()), a)
    assert torch.equal(compose(identity(), a), a)
    assert torch.equal(compose(flip(), flip()), identity())


def test_composition_broadcasts_over_samples_and_views():
    per_view = torch.stack([crop(0.0, 0.0, 0.5, 0.5), flip()])
    both = compose(per_view.expand(3, 2, 2, 3), rotation(20))
    assert both.shape == (3, 2, 2, 3)
    torch.testing.assert_close(both[1, 1], compose(flip(), rotation(20)))


@given(n=st.integers(1, 16), quarters=st.integers(0, 4))
def test_quarter_turns_of_a_square_are_rot90(n, quarters):
    # torch.rot90 turns counter-clockwise, and so does `rotation`.
    tokens = torch.randn(1, 1, n, n, 2)
    out = resample(features(tokens), n, n, rotation(90 * quarters))
    assert out.valid_BVHW.all()
    torch.testing.assert_close(out.tokens_BVHWC, torch.rot90(tokens, quarters, (2, 3)), atol=1e-5, rtol=0)


@given(aspect=st.floats(0.3, 3))
def test_four_quarter_turns_are_the_identity(aspect):
    turned = identity()
    for _ in range(4):
        turned = compose(turned, rotation(90, aspect))
    torch.testing.assert_close(turned, identity(), atol=1e-5, rtol=0)


@given(aspect=st.floats(0.3, 3), degrees=st.floats(-180, 180), x=st.floats(0, 1), y=st.floats(0, 1))
def test_turning_keeps_pixel_distances_and_the_centre(aspect, degrees, x, y):
    turn = rotation(degrees, aspect).double()
    pixels = torch.tensor([aspect, 1.0], dtype=torch.float64)
    from_centre = torch.tensor([x - 0.5, y - 0.5], dtype=torch.float64)
    turned = turn[:, :2] @ (from_centre + 0.5) + turn[:, 2] - 0.5
    assert (turned * pixels).norm().item() == pytest.approx((from_centre * pixels).norm().item(), abs=1e-5)


def test_a_quarter_turn_of_a_wide_image_turns_its_middle_square_and_loses_the_rest():
    tokens = torch.randn(1, 1, 4, 8, 2)
    out = resample(features(tokens), 4, 8, rotation(90, aspect=2.0))
    middle = slice(2, 6)
    torch.testing.assert_close(
        out.tokens_BVHWC[:, :, :, middle], torch.rot90(tokens[:, :, :, middle], 1, (2, 3)), atol=1e-5, rtol=0
    )
    assert out.valid_BVHW.sum((0, 1, 2)).tolist() == [0, 0, 4, 4, 4, 4, 0, 0]


@given(H=st.integers(1, 37), W=st.integers(1, 37), h=small_sizes, w=small_sizes, data=st.data())
def test_grid_of_a_crop_is_the_crop_of_the_grid(H, W, h, w, data):
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    bottom, right = data.draw(st.integers(top + 1, h)), data.draw(st.integers(left + 1, w))
    tokens = torch.randn(1, 1, H, W, 2)
    window = crop(left / w, top / h, right / w, bottom / h)
    grid_of_crop = resample(features(tokens), bottom - top, right - left, window).tokens_BVHWC
    crop_of_grid = resample(features(tokens), h, w).tokens_BVHWC[:, :, top:bottom, left:right]
    torch.testing.assert_close(grid_of_crop, crop_of_grid, atol=5e-5, rtol=0)


@given(H=st.integers(1, 37), W=st.integers(1, 37), h=small_sizes, w=small_sizes, affine=affines(turns=False))
def test_grid_of_a_flip_is_the_flip_of_the_grid(H, W, h, w, affine):
    tokens = torch.randn(1, 1, H, W, 2)
    grid_of_flip = resample(features(tokens), h, w, compose(affine, flip())).tokens_BVHWC
    flip_of_grid = resample(features(tokens), h, w, affine).tokens_BVHWC.flip(3)
    torch.testing.assert_close(grid_of_flip, flip_of_grid, atol=5e-5, rtol=0)


@given(H=st.integers(1, 20), W=st.integers(1, 20), h=small_sizes, w=small_sizes, affine=affines())
def test_flipping_the_image_or_the_affine_is_the_same(H, W, h, w, affine):
    tokens = torch.randn(1, 1, H, W, 2)
    by_affine = resample(features(tokens), h, w, compose(flip(), affine)).tokens_BVHWC
    by_image = resample(features(tokens.flip(3)), h, w, affine).tokens_BVHWC
    torch.testing.assert_close(by_affine, by_image, atol=1e-4, rtol=0)


@given(first=affines(), second=affines())
def test_a_sample_does_not_depend_on_its_batch(first, second):
    tokens = torch.randn(2, 2, 11, 13, 3)
    affine = torch.stack([torch.stack([first, second]), torch.stack([second, identity()])])
    together = resample(features(tokens), 6, 5, affine)
    for b in range(2):
        for v in range(2):
            alone = resample(features(tokens[b : b + 1, v : v + 1]), 6, 5, affine[b, v])
            torch.testing.assert_close(
                together.tokens_BVHWC[b, v], alone.tokens_BVHWC[0, 0], atol=1e-6, rtol=0
            )
            assert torch.equal(together.valid_BVHW[b, v], alone.valid_BVHW[0, 0])


# ---- validity ----------------------------------------------------------------------------------------------


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


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "valid", "says"),
    [
        (torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 5, dtype=torch.bool), r"tokens \(B, V, H, W, C\)"),
        (
            torch.ones(1, 2, 3, 4, 5),
            torch.ones(1, 2, 3, 5, dtype=torch.bool),
            r"mask of shape \(1, 2, 3, 4\)",
        ),
        (torch.ones(1, 2, 3, 4, 5), torch.ones(1, 2, 3, 4), "bool mask"),
        (torch.ones(1, 2, 3, 4, 5, dtype=torch.int64), torch.ones(1, 2, 3, 4, dtype=torch.bool), "floating"),
    ],
)
def test_features_that_do_not_fit_together(tokens, valid, says):
    with pytest.raises(SpatialForcingError, match=says):
        resample(Features(tokens, valid), 2, 2)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (3, 2), (4, 2, 3), (2, 2, 2, 3), (1, 1, 1, 2, 3)])
def test_affines_of_the_wrong_shape(shape):
    with pytest.raises(
        SpatialForcingError, match=r"Expected an affine of shape \(2, 3\), \(2, 2, 3\) or \(3, 2, 2, 3\)"
    ):
        resample(features(torch.ones(3, 2, 4, 4, 1)), 2, 2, torch.zeros(shape))


def test_affines_in_pixels():
    with pytest.raises(SpatialForcingError, match="unit coordinates"):
        resample(features(torch.ones(37, 37, 1)), 16, 16, crop(0, 0, 224, 224))


def test_the_published_resampling_takes_no_affine():
    with pytest.raises(SpatialForcingError, match="published=False"):
        resample(features(torch.ones(4, 4, 1)), 2, 2, identity(), published=True)


@pytest.mark.parametrize("corners", [(0.5, 0.0, 0.5, 1.0), (0.0, 0.8, 1.0, 0.2), (0.0, math.nan, 1.0, 1.0)])
def test_empty_crops(corners):
    with pytest.raises(SpatialForcingError, match="x1 > x0"):
        crop(*corners)


@pytest.mark.parametrize("options", [{"views": 0}, {"rows": 0}, {"cols": -1}, {"fit": "stretched"}])
def test_layouts_that_cannot_be(options):
    with pytest.raises(SpatialForcingError, match="layout"):
        Layout(**{"views": 1, "rows": 2, "cols": 2} | options)


def test_a_layout_draws_itself():
    lines = Layout(2, 3, 4).draw().splitlines()
    assert lines[0] == "2 views x 3 rows x 4 columns = 24 visual tokens, stretch"
    assert sum(line.count("o") for line in lines[1:]) == 24
