"""Laws of targets with 3D points: the embedding of a point, and how it enters a target."""

import copy
import math
import pickle

import pytest
import torch
from small_alignment import CHANNELS, SIDE, VIEWS, WIDTH, ConvTeacher, Setting
from torch.testing import assert_close

from spatial_forcing import SpatialForcing
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.features import AnnotatedFeatures, Features
from spatial_forcing.grid import flip
from spatial_forcing.uv import uv_position_embedding
from spatial_forcing.xyz import CHANNELS as OF_POINTS
from spatial_forcing.xyz import FASTEST, SLOWEST, xyz_embedding

GRID = (3, VIEWS, SIDE, SIDE)  # of the host, and here of the target


def with_points(setting: Setting, seed: int = 0) -> Features:
    """Some of the teacher's features, with random points within a metre."""
    points_BVHW3 = torch.rand(*GRID, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    tokens_BVHWC = setting.features().tokens_BVHWC[:, :, ::2, ::2]
    return AnnotatedFeatures(tokens_BVHWC, torch.ones(GRID, dtype=torch.bool), points_BVHW3)


def target_of(setting: Setting, features: Features, **options):
    target_BNC, valid_BN = setting.sf.target(features, **options)
    return target_BNC.view(*GRID, -1), valid_BN.view(GRID)


# ---- the embedding -----------------------------------------------------------------------------------------


def test_the_embedding_is_its_formula():
    x, y, z = 0.3, -0.7, 1.2
    found = xyz_embedding(torch.tensor([x, y, z], dtype=torch.float64), 14)
    expected = []
    for at in (x, y, z):
        w = [2 * math.pi * SLOWEST, 2 * math.pi * FASTEST]
        expected += [math.sin(at * w[0]), math.sin(at * w[1]), math.cos(at * w[0]), math.cos(at * w[1])]
    assert_close(found, torch.tensor([*expected, 0.0, 0.0], dtype=torch.float64))


def test_the_embedding_knows_differences_alone():
    a, b, shift = torch.randn(3, 20, 3, dtype=torch.float64)
    before = (xyz_embedding(a) * xyz_embedding(b)).sum(-1)
    after = (xyz_embedding(a + shift) * xyz_embedding(b + shift)).sum(-1)
    assert_close(before, after)
    assert_close(xyz_embedding(a).square().mean(-1), torch.full((20,), 0.5, dtype=torch.float64))


def test_points_within_a_room_are_told_apart_to_the_centimetre():
    points_N3 = torch.rand(300, 3, dtype=torch.float64) * 2
    near_N3 = points_N3 + 0.01 * torch.nn.functional.normalize(
        torch.randn(300, 3, dtype=torch.float64), dim=-1
    )
    cosine_N = torch.nn.functional.cosine_similarity(xyz_embedding(points_N3), xyz_embedding(near_N3))
    assert cosine_N.max() < 0.9999
    far_NN = torch.nn.functional.cosine_similarity(
        xyz_embedding(points_N3)[:, None], xyz_embedding(points_N3)[None], dim=-1
    )
    apart_NN = torch.cdist(points_N3, points_N3) > 0.2
    assert far_NN[apart_NN].max() < cosine_N.min()


def test_points_that_are_not_known_have_no_embedding():
    points = torch.tensor([[0.1, math.nan, 0.2], [math.inf, 0.0, 0.0], [0.1, 0.2, 0.3]])
    found = xyz_embedding(points)
    assert not found[:2].any()
    assert found[2].abs().sum() > 1
    with pytest.raises(ValueError, match="at least 6 channels"):
        xyz_embedding(points, 5)


# ---- in a target -------------------------------------------------------------------------------------------


def test_added_is_the_formula_with_xyz_for_uv():
    setting = Setting(points="added", position_embedding=0.5)
    features = with_points(setting)
    target, _ = target_of(setting, features)
    rms_B = features.tokens_BVHWC.square().mean((1, 2, 3, 4)).sqrt().view(-1, 1, 1, 1, 1)
    expected = features.tokens_BVHWC + 0.5 * rms_B * xyz_embedding(features.points_BVHW3, CHANNELS)
    assert_close(target, expected)


def test_concatenated_is_the_published_target_and_the_points_at_equal_length():
    setting = Setting(points="concatenated")
    features = with_points(setting)
    target, _ = target_of(setting, features)
    assert_close(target[..., :CHANNELS], target_of(Setting(), features)[0])
    points = target[..., CHANNELS:]
    assert_close(points / points.norm(dim=-1, keepdim=True), unit(xyz_embedding(features.points_BVHW3)))
    lengths = (part.square().sum(-1).mean((1, 2, 3)) for part in (points, target[..., :CHANNELS]))
    assert_close(*lengths)
    assert setting.sf.projector.fc2.out_features == CHANNELS + OF_POINTS


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_points_alone_are_neither_the_teachers_features_nor_places_in_the_image():
    setting = Setting(points="alone")
    features = with_points(setting)
    target, _ = target_of(setting, features)
    assert_close(target, xyz_embedding(features.points_BVHW3))
    other = target_of(setting, features._replace(tokens_BVHWC=torch.randn_like(features.tokens_BVHWC)))[0]
    assert torch.equal(target, other)
    # Tokens change places, and their targets go with them; with the embedding of places they do not.
    turned = AnnotatedFeatures(
        features.tokens_BVHWC.flip(3), features.valid_BVHW.flip(3), features.points_BVHW3.flip(3)
    )
    assert_close(target_of(setting, turned)[0], target.flip(3))
    places = uv_position_embedding(SIDE, SIDE, CHANNELS)
    assert not torch.allclose(places, places.flip(1), atol=0.1)


@pytest.mark.parametrize("points", ["added", "concatenated", "alone"])
def test_targets_move_with_the_hosts_own_crop(points):
    setting = Setting(points=points, position_embedding=0.0 if points == "concatenated" else 0.3)
    features = with_points(setting)
    straight, _ = target_of(setting, features)
    mirrored, _ = target_of(setting, features, affine_BV23=flip())
    assert_close(mirrored, straight.flip(3))


@pytest.mark.parametrize("points", ["added", "concatenated", "alone"])
def test_where_a_point_is_missing_there_is_no_target_and_no_gradient(points):
    setting = Setting(points=points)
    features = with_points(setting)
    features.points_BVHW3[1, 0, 1, 0, 0] = math.nan
    target, valid = target_of(setting, features)
    assert not valid[1, 0, 1, 0]
    assert valid.sum() == valid.numel() - 1
    assert target.isfinite().all()
    sf, leaf = setting.sf, torch.randn(3, 14, WIDTH, requires_grad=True)
    with sf.watch():
        sf.host.reader(sf.tap.layer)(leaf)
    sf(features).backward()
    gradient = leaf.grad[:, 3:11].view(*GRID, -1)
    assert not gradient[1, 0, 1, 0].any()
    assert gradient[1, 0, 1, 1].any()


@pytest.mark.parametrize("points", ["added", "concatenated", "alone"])
def test_the_shuffled_control_counts_the_tokens_whose_points_are_known_in_both_frames(points):
    """Else it would count other tokens than the arm that it controls."""
    setting = Setting(points=points, control="shuffled")
    features = with_points(setting)
    features.points_BVHW3[1, 0, 1, 0, 0] = math.nan
    _, valid = target_of(setting, features)
    assert not valid[1, 0, 1, 0]
    assert not valid[2, 0, 1, 0], "the frame that gets the points of frame 1"
    assert valid.sum() == valid.numel() - 2


@pytest.mark.parametrize("points", ["added", "concatenated", "alone"])
def test_the_controls_know_nothing_of_the_frames_points(points):
    for control in ("shuffled", "place"):
        setting = Setting(points=points, control=control)
        features = with_points(setting)
        before, _ = target_of(setting, features)
        other = features.points_BVHW3.clone()
        other[1] += 0.2
        after, _ = target_of(setting, features.with_points(other))
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2]) == (control == "place")


def test_what_cannot_be_is_said():
    with pytest.raises(UnknownNameError, match="use of points 'beside'"):
        Setting(points="beside")
    setting = Setting(points="alone")
    setting.act()
    with pytest.raises(SpatialForcingError, match=r"these features have none\. Store them beside"):
        setting.sf(setting.features())
    features = with_points(setting)
    with pytest.raises(SpatialForcingError, match=r"points of shape \(3, 2, 2, 2, 3\)"):
        setting.sf(features.with_points(features.points_BVHW3[..., :2]))


def test_features_with_points_unpack_and_travel_as_features():
    features = with_points(Setting())
    tokens, valid = features
    assert tokens is features.tokens_BVHWC
    assert valid is features.valid_BVHW
    moved = pickle.loads(pickle.dumps(features))
    for other in (copy.deepcopy(features), moved, features._replace(valid_BVHW=~valid)):
        assert torch.equal(other.points_BVHW3, features.points_BVHW3)
    assert Features(*features).points_BVHW3 is None
    assert features.with_points(None).points_BVHW3 is None
    assert torch.equal(features.of_views([1]).points_BVHW3, features.points_BVHW3[:, 1:])


def test_a_target_too_narrow_for_points_is_refused_before_a_step():
    narrow = ConvTeacher()
    narrow.width = 4
    with pytest.raises(SpatialForcingError, match=r"in 6 channels at least, and these features are 4 wide"):
        SpatialForcing(Setting().vla.spatial_forcing_host(), narrow, points="added")
