"""Variants of the objective: iREPA's projector and normalisation, ROCKET's shared projector, later frames."""

import pytest
import torch
import torch.nn.functional as F
from small_alignment import CHANNELS, SIDE, VIEWS, WIDTH, ConvTeacher, Setting, Several
from torch.testing import assert_close

from lerobot_policy_spatial_forcing.feature_source import FeatureSource, sources_of
from lerobot_policy_spatial_forcing.forcing_config import AlignmentConfig, future_of
from spatial_forcing import Alignment
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.features import Features
from spatial_forcing.grid import Layout
from spatial_forcing.projector import ConvProjector, Projector

LAYOUT = Layout(2, 4, 5)


def some_tokens(width: int = 3) -> torch.Tensor:
    return torch.randn(2, LAYOUT.tokens, width, dtype=torch.float64)


# ---- the convolutional projector ---------------------------------------------------------------------------


def test_a_token_is_projected_from_its_neighbours_in_its_view_alone():
    projector, visual_BND = ConvProjector(3, 4).double(), some_tokens()
    valid_BN = torch.ones(2, LAYOUT.tokens, dtype=torch.bool)
    before = projector(visual_BND, valid_BN, LAYOUT).view(2, 2, 4, 5, 4)
    moved = visual_BND.clone().view(2, 2, 4, 5, 3)
    moved[0, 1, 2, 2] += 1.0
    after = projector(moved.flatten(1, 3), valid_BN, LAYOUT).view(2, 2, 4, 5, 4)
    changed = (before != after).any(-1)
    expected = torch.zeros_like(changed)
    expected[0, 1, 1:4, 1:4] = True
    assert torch.equal(changed, expected)


def test_one_matrix_serves_every_place():
    projector, visual_BND = ConvProjector(3, 4).double(), some_tokens()
    valid_BN = torch.ones(2, LAYOUT.tokens, dtype=torch.bool)
    grid = visual_BND.view(2, 2, 4, 5, 3)
    shifted = F.pad(grid[:, :, :, :-1], (0, 0, 1, 0))
    before = projector(grid.flatten(1, 3), valid_BN, LAYOUT).view(2, 2, 4, 5, 4)
    after = projector(shifted.flatten(1, 3), valid_BN, LAYOUT).view(2, 2, 4, 5, 4)
    assert_close(after[:, :, :, 1:-1], before[:, :, :, :-2])


@pytest.mark.parametrize("poison", [torch.nan, 1e30])
def test_tokens_that_are_not_valid_are_zero_to_their_neighbours(poison):
    projector, visual_BND = ConvProjector(3, 4).double(), some_tokens()
    valid_BN = torch.rand(2, LAYOUT.tokens) < 0.5
    clean = torch.where(valid_BN[..., None], visual_BND, 0.0)
    dirty = torch.where(valid_BN[..., None], visual_BND, poison).requires_grad_()
    projected = projector(dirty, valid_BN, LAYOUT)
    assert torch.equal(projected, projector(clean, torch.ones_like(valid_BN), LAYOUT))
    projected[valid_BN].square().sum().backward()
    assert not dirty.grad[~valid_BN].any()
    assert dirty.grad[valid_BN].abs().sum(-1).all()


def test_it_takes_the_place_of_the_mlp_in_the_objective():
    setting = Setting(projector="conv")
    assert setting.sf.projector.conv.weight.shape == (CHANNELS, WIDTH, 3, 3)
    loss = setting.loss()
    loss.backward()
    assert setting.sf.projector.conv.weight.grad.abs().sum() > 0
    with pytest.raises(UnknownNameError, match="projector 'linear'"):
        Setting(projector="linear")


# ---- one projector for several alignments ------------------------------------------------------------------


def rocket(**second) -> Several:
    """Two alignments at two sites, the second with the projector of the first."""
    torch.manual_seed(7)
    teacher = ConvTeacher()
    options = {"name": "deep", "shares": "shallow", **second}
    return Several(
        Alignment("blocks.1", teacher, name="shallow", hidden_share=0.25),
        Alignment("blocks.3", teacher, **options),
    )


def test_a_shared_projector_is_one_module_and_gets_the_gradient_of_both():
    shared, apart = rocket(), rocket(shares=None)
    assert set(shared.sf.projectors) == {"shallow"}
    assert shared.sf.projector_of("deep") is shared.sf.projector_of("shallow")
    for projector in apart.sf.projectors.values():
        projector.load_state_dict(shared.sf.projectors["shallow"].state_dict())
    losses = [setting.loss() for setting in (shared, apart)]
    assert_close(*losses)
    for loss in losses:
        loss.backward()
    for name, parameter in shared.sf.projectors["shallow"].named_parameters():
        grads = [projector.get_parameter(name).grad for projector in apart.sf.projectors.values()]
        assert_close(parameter.grad, sum(grads))


def test_a_share_of_the_hidden_units_is_a_projector_of_so_many():
    whole, visual_BND = Projector(3, 4, hidden=8), torch.randn(2, 5, 3)
    valid_BN = torch.ones(2, 5, dtype=torch.bool)
    small = Projector(3, 4, hidden=2)
    state = whole.state_dict()
    cut = {"fc1.weight": state["fc1.weight"][:2], "fc1.bias": state["fc1.bias"][:2]}
    small.load_state_dict(state | cut | {"fc2.weight": state["fc2.weight"][:, :2]})
    projected = whole(visual_BND, valid_BN, share=0.25)
    assert_close(projected, small(visual_BND, valid_BN))
    projected.square().sum().backward()
    assert not whole.fc1.weight.grad[2:].any()
    assert whole.fc1.weight.grad[:2].any()


def test_projectors_that_cannot_be_shared():
    with pytest.raises(UnknownNameError, match="share a projector with 'middle'"):
        rocket(shares="middle")
    with pytest.raises(SpatialForcingError, match="shares the projector of 'shallow', which must be its own"):
        rocket(norm="batch")
    with pytest.raises(SpatialForcingError, match="'deep' shares its own projector: leave shares out"):
        rocket(shares="deep")
    for share in (0.0, 1.5):
        with pytest.raises(SpatialForcingError, match="above 0 and up to 1"):
            rocket(hidden_share=share)


# ---- normalisation over places -----------------------------------------------------------------------------


def target_of(setting: Setting, features: Features) -> torch.Tensor:
    return setting.sf.target(features)[0].view(-1, VIEWS, SIDE, SIDE, CHANNELS)


def test_only_how_places_differ_is_left():
    setting = Setting(spatial_norm=True, position_embedding=0.0)
    features = Features(torch.randn(3, VIEWS, SIDE, SIDE, CHANNELS), torch.ones(3, VIEWS, SIDE, SIDE).bool())
    target = target_of(setting, features)
    assert target.mean((2, 3)).abs().max() < 1e-6
    assert_close(target.var((2, 3), unbiased=False), torch.ones(3, VIEWS, CHANNELS), atol=1e-4, rtol=0)
    shift, gain = torch.randn(3, VIEWS, 1, 1, CHANNELS), torch.rand(3, VIEWS, 1, 1, CHANNELS) + 0.5
    other = features._replace(tokens_BVHWC=shift + gain * features.tokens_BVHWC)
    assert_close(target_of(setting, other), target, atol=1e-4, rtol=1e-4)
    plain = target_of(Setting(position_embedding=0.0), other)
    assert not torch.allclose(plain, target, atol=0.1)


def test_places_that_are_not_valid_do_not_count():
    setting = Setting(spatial_norm=True, position_embedding=0.0)
    valid = torch.rand(3, VIEWS, SIDE, SIDE) < 0.7
    valid[:, :, 0] = True
    tokens = torch.randn(3, VIEWS, SIDE, SIDE, CHANNELS)
    clean, dirty = (Features(torch.where(valid[..., None], tokens, x), valid) for x in (0.0, torch.nan))
    assert torch.equal(target_of(setting, clean), target_of(setting, dirty))


# ---- later frames ------------------------------------------------------------------------------------------


def test_the_target_is_so_many_frames_ahead_and_never_of_the_next_episode(cache):
    store = FeatureStore(cache)
    ends = torch.tensor([4, 9, store.source.frames])
    cameras = {name: name for name in store.source.cameras}
    source = FeatureSource(AlignmentConfig(cache=str(cache), future=3), cameras, "cpu", episode_ends=ends)
    batch = {"index": torch.tensor([0, 2, 3, 4, 8]), "episode_index": torch.tensor([0, 0, 0, 1, 1])}
    shown = type("Shown", (), {"names": list(cameras)})
    found = source(batch, shown)
    assert torch.equal(found.tokens_BVHWC, store.read(torch.tensor([3, 3, 3, 7, 8])).tokens_BVHWC)
    now = FeatureSource(AlignmentConfig(cache=str(cache)), cameras, "cpu", episode_ends=ends)
    assert torch.equal(now(batch, shown).tokens_BVHWC, store.read(batch["index"]).tokens_BVHWC)


def test_the_log_says_what_is_ahead():
    def said(*options: dict) -> str:
        return future_of([AlignmentConfig(teacher="pixels", **one) for one in options])

    place = {"future": 4, "control": "place"}
    assert said({}) == ""
    assert said({"future": 4}, {}, {"future": 2}) == "; targets of 2 and 4 frames ahead"
    unused = "; future is without effect on the control of the place"
    assert said({"future": 1, "control": "shuffled"}, {}) == "; targets of 1 frame ahead"
    assert said(place) == unused
    assert said(place, {"future": 1}) == f"; targets of 1 frame ahead{unused}"


def test_later_frames_of_a_teacher_online_are_refused_in_every_entry():
    """Entries with one teacher share what it gives, and the second must not lose its option silently."""
    entries = [AlignmentConfig(teacher="pixels"), AlignmentConfig(teacher="pixels", future=4)]
    with pytest.raises(SpatialForcingError, match=r"future=4 needs stored features"):
        sources_of(entries, cameras={}, device="cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"projector": "conv", "norm": "batch"}, "has no norm"),
        ({"points": "alone", "spatial_norm": True}, "points='alone' the target has none"),
        ({"norm": "group"}, "norm is 'layer' or 'batch'"),
        ({"points": "added", "position_embedding": 0.0}, "the target would have no points"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(options, says):
    for made in (AlignmentConfig, Setting):
        with pytest.raises(SpatialForcingError, match=says):
            made(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"standardize": True}, r"takes mean and deviation of the features.*got True"),
        ({"token_weights": "confidence:vggt-1b"}, "got 'confidence:vggt-1b'"),
    ],
)
def test_options_of_flags_that_python_has_otherwise(options, says):
    with pytest.raises(SpatialForcingError, match=says):
        Setting(**options)


def test_a_calibration_without_points_is_refused():
    with pytest.raises(SpatialForcingError, match="says which points a target has, and this one has none"):
        AlignmentConfig(calibration="cameras.yaml")


def test_what_later_frames_need(cache):
    with pytest.raises(SpatialForcingError, match=r"needs stored features: give forcing\.cache"):
        FeatureSource(AlignmentConfig(teacher="untrained-tiny", future=1), {}, "cpu")
    store = FeatureStore(cache)
    cameras = {name: name for name in store.source.cameras}
    source = FeatureSource(AlignmentConfig(cache=str(cache), future=1), cameras, "cpu")
    with pytest.raises(SpatialForcingError, match="where episodes end"):
        source({"index": torch.tensor([0])}, None)
    with pytest.raises(SpatialForcingError, match="a number of frames ahead, 0 or more"):
        AlignmentConfig(future=-1)
