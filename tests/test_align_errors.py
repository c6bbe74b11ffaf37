"""What an alignment refuses: shapes, options and features that cannot be, hosts that nobody watched."""

import math

import pytest
import torch
from small_alignment import CHANNELS, VIEWS, Setting

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import flip
from spatial_forcing.tap import TapError


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, VIEWS + 1, 4, 4, CHANNELS), "Got 3 views, but TinyVLA has tokens for 2"),
        ((2, VIEWS, 4, 4, CHANNELS), "batch of 2, but the watched forward had a batch of 3"),
        ((3, VIEWS, 4, 4, CHANNELS + 4), "12 wide, the teacher of this SpatialForcing is 8 wide"),
        ((3, 16, CHANNELS), r"tokens \(B, V, H, W, C\)"),
        ((3, CHANNELS), r"tokens \(B, V, H, W, C\)"),
    ],
)
def test_features_that_do_not_fit(shape, says):
    setting = Setting()
    with pytest.raises(SpatialForcingError, match=says):
        setting.loss(Features(torch.randn(shape), torch.ones(shape[:-1], dtype=torch.bool)))


def test_images_of_too_many_views_or_another_batch():
    setting = Setting()
    with pytest.raises(SpatialForcingError, match="Got 3 views"):
        setting.loss(torch.rand(3, 3, 3, 28, 28))
    with pytest.raises(SpatialForcingError, match="batch of 1"):
        setting.loss(torch.rand(1, VIEWS, 3, 28, 28))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -1}, "0 or more, got -1"),
        ({"weight": math.nan}, "finite number, 0 or more, got nan"),
        ({"weight": math.inf}, "finite number, 0 or more, got inf"),
        ({"position_embedding": 5}, r"0 \(none\) to 1.*got 5"),
        ({"position_embedding": -0.1}, r"0 \(none\) to 1.*got -0.1"),
        ({"position_embedding": math.nan}, r"0 \(none\) to 1.*got nan"),
        ({"standardize": (torch.zeros(4), torch.ones(8))}, r"8 channels, got shapes \(4,\) and \(8,\)"),
        ({"standardize": (torch.zeros(8), torch.full((8,), math.nan))}, "not finite.*in 8 of 8 channels"),
        ({"standardize": (torch.full((8,), math.inf), torch.ones(8))}, "not finite.*in 8 of 8 channels"),
        ({"standardize": (torch.zeros(8), -torch.eye(8)[0])}, "negative deviation, in 1 of 8"),
    ],
)
def test_numbers_that_cannot_be(options, says):
    with pytest.raises(SpatialForcingError, match=says):
        Setting(**options)


@pytest.mark.parametrize("options", [{}, {"published": True}, {"weight": 0.0}, {"position_embedding": 0.0}])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_valid_features_that_are_no_numbers_stop_the_step_that_sees_them(options, poison):
    setting = Setting(**options)
    assert setting.loss().isfinite()
    features = setting.features()
    features.tokens_BVHWC[1, 1, 2, 3, 4] = poison
    with pytest.raises(SpatialForcingError, match=r"1 of 96 valid.*sample 1, view 1, row 2, column 3"):
        setting.loss(features)
    features.valid_BVHW[1, 1, 2, 3] = False
    assert setting.loss(features).isfinite()


def test_a_teacher_that_gives_no_numbers_stops_the_step():
    setting = Setting()
    setting.teacher.scale = math.nan
    with pytest.raises(SpatialForcingError, match="96 of 96 valid tokens"):
        setting.loss()


def test_the_loss_that_is_logged_tells_where_a_step_did_not_wait_to_look():
    setting = Setting()
    features = setting.features()
    setting.sf.check_loss(0.5, features)
    setting.sf.check_loss(math.nan, features)  # something else is wrong
    features.tokens_BVHWC[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(SpatialForcingError, match="1 of 96 valid tokens"):
        setting.sf.check_loss(math.nan, features)


def test_a_host_that_has_diverged_is_not_blamed_on_the_features():
    setting = Setting()
    setting.vla.patches.weight.data.fill_(math.nan)
    assert setting.loss().isnan()


def test_affines_that_are_no_numbers():
    with pytest.raises(SpatialForcingError, match="numbers that are not finite"):
        Setting().loss(affine_BV23=torch.full((3, VIEWS, 2, 3), math.nan))


def test_nothing_watched_or_nothing_trained():
    setting = Setting()
    with pytest.raises(TapError, match="never fired"):
        setting.sf(setting.images_BV3HW)
    setting.vla.requires_grad_(False)
    with pytest.raises(TapError, match="carry no gradient"):
        setting.loss()
    with torch.no_grad():  # evaluating a frozen host is fine
        assert setting.loss() > 0


def test_the_published_options_take_no_affine():
    setting = Setting(published=True)
    with pytest.raises(SpatialForcingError, match="published"):
        setting.loss(affine_BV23=flip())
