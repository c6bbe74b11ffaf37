"""Laws of the control targets: they know nothing of the frame, and differ from forcing in nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_alignment import CHANNELS, SIDE, VIEWS, Setting

from spatial_forcing.align import SpatialForcing
from spatial_forcing.control import of_another_frame, place_embedding
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.features import Features
from spatial_forcing.grid import Layout, crop, flip


def a_target(setting: Setting, images_BV3HW: torch.Tensor, **options) -> torch.Tensor:
    """target_BVhwC of some images."""
    target_BNC, _ = setting.sf.target(images_BV3HW, **options)
    return target_BNC.view(len(images_BV3HW), VIEWS, SIDE, SIDE, CHANNELS)


@pytest.mark.parametrize("published", [False, True])
def test_the_place_is_the_same_for_every_frame_teacher_and_augmentation(published):
    setting = Setting(control="place", published=published)
    one = a_target(setting, torch.rand(3, VIEWS, 3, 28, 28))
    setting.teacher.scale = -7.0
    assert torch.equal(one, a_target(setting, torch.rand(3, VIEWS, 3, 28, 28)))
    assert torch.equal(one[0], one[2])
    if not published:
        moved = setting.sf.target(torch.rand(3, VIEWS, 3, 28, 28), affine_BV23=flip())[0]
        assert torch.equal(one, moved.view_as(one))


@given(V=st.integers(1, 4), h=st.integers(1, 16), w=st.integers(1, 16), C=st.sampled_from([4, 8, 64]))
def test_no_two_places_are_parallel(V, h, w, C):
    places_NC = place_embedding(1, V, h, w, C).flatten(0, 3).double()
    cosine_NN = torch.nn.functional.cosine_similarity(places_NC[:, None], places_NC[None], dim=-1)
    assert cosine_NN.fill_diagonal_(-1).max() < 1 - 1e-7


def test_a_shuffled_target_is_what_the_frame_before_would_get():
    plain, shuffled = Setting(), Setting(control="shuffled")
    images_BV3HW = torch.rand(4, VIEWS, 3, 28, 28)
    expected = a_target(plain, images_BV3HW).roll(1, 0)
    torch.testing.assert_close(a_target(shuffled, images_BV3HW), expected)


def test_a_shuffled_target_does_not_change_with_the_frames_own_image():
    setting = Setting(control="shuffled")
    images_BV3HW = torch.rand(4, VIEWS, 3, 28, 28)
    before = a_target(setting, images_BV3HW)
    for frame in range(4):
        other = images_BV3HW.clone()
        other[frame] = torch.rand(VIEWS, 3, 28, 28)
        after = a_target(setting, other)
        assert torch.equal(before[frame], after[frame])
        assert not torch.equal(before[(frame + 1) % 4], after[(frame + 1) % 4])


def test_nobody_gets_their_own_frame_and_every_frame_is_used_once():
    for batch in range(2, 9):
        numbered = torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1, 1)
        given_to = of_another_frame(Features(numbered, torch.ones(batch, 1, 1, 1).bool())).tokens_BVHWC
        found = given_to.flatten().int().tolist()
        assert sorted(found) == list(range(batch))
        assert all(i != j for i, j in enumerate(found))


def test_a_shuffled_target_moves_with_the_frames_own_crop():
    plain, shuffled = Setting(position_embedding=0.0), Setting(position_embedding=0.0, control="shuffled")
    images_BV3HW = torch.rand(2, VIEWS, 3, 28, 28)
    own_BV23 = torch.eye(2, 3).repeat(2, VIEWS, 1, 1)
    own_BV23[0] = crop(0.5, 0.0, 1.0, 1.0)
    expected = a_target(plain, images_BV3HW.roll(1, 0), affine_BV23=own_BV23)
    torch.testing.assert_close(a_target(shuffled, images_BV3HW, affine_BV23=own_BV23), expected)


def test_missing_views_of_either_frame_are_left_out():
    setting = Setting(control="shuffled")
    present_BV = torch.tensor([[True, False], [True, True], [True, True]])
    valid_BN = setting.sf.target(setting.images_BV3HW, present_BV=present_BV)[1]
    valid_BV = valid_BN.view(3, VIEWS, -1).all(-1)
    assert valid_BV.tolist() == [[True, False], [True, False], [True, True]]


@pytest.mark.parametrize("control", ["shuffled", "place"])
def test_a_control_trains_what_forcing_trains(control):
    plain, setting = Setting(), Setting(control=control)
    trained = {
        name
        for name, gradient in setting.gradients(setting.loss()).items()
        if gradient is not None and gradient.abs().sum() > 0
    }
    assert trained == {
        name
        for name, gradient in plain.gradients(plain.loss()).items()
        if gradient is not None and gradient.abs().sum() > 0
    }
    assert sum(p.numel() for p in setting.sf.parameters()) == sum(p.numel() for p in plain.sf.parameters())


def test_padding_stays_without_a_place():
    setting = Setting()
    host = replace(setting.sf.host, layout=Layout(VIEWS, 4, 4, fit="pad"))
    sf = SpatialForcing(host, setting.teacher, control="place")
    valid_BN = sf.target(torch.rand(1, VIEWS, 3, 28, 56))[1]
    assert valid_BN.view(VIEWS, 4, 4)[0].any(1).tolist() == [False, True, True, False]


def test_one_frame_has_no_other():
    setting = Setting(control="shuffled")
    one = torch.rand(1, VIEWS, 3, 28, 28)
    with pytest.raises(SpatialForcingError, match="batch size of at least 2"):
        setting.sf.target(one)
    # After whole batches, the rest of a data set is no reason to stop: it has no loss.
    setting.sf.target(torch.rand(2, VIEWS, 3, 28, 28))
    assert not setting.sf.target(one)[1].any()


def test_unknown_controls_and_places_that_do_not_fit():
    with pytest.raises(UnknownNameError, match=r"'shufled'. Did you mean 'shuffled'"):
        Setting(control="shufled")
    narrow = type("Width", (), {"width": 6})
    with pytest.raises(SpatialForcingError, match="multiple of 4"):
        SpatialForcing(Setting().sf.host, narrow, position_embedding=0, control="place")


def test_the_control_is_said():
    assert "control: place" in Setting(control="place").sf.describe()
    assert "control" not in Setting().sf.describe()
