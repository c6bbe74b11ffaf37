"""Laws of affines: how they compose, and that resampling under one is resampling its image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_grids import affines, features, small_sizes
from torch import Tensor

from spatial_forcing.grid import compose, crop, flip, identity, resample, rotation


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
