"""Laws of masked tokens and of views that are not given: no loss, no gradient, nothing else changed."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_alignment import VIEWS, WIDTH, Setting, assert_same, small_store

from spatial_forcing import SpatialForcing
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import flip

seeds = st.integers(0, 10_000)


def masked(features: Features, seed: int) -> Features:
    """About a third of the views missing, and a few tokens more."""
    generator = torch.Generator().manual_seed(seed)
    view_BV11 = torch.rand(*features.valid_BVHW.shape[:2], 1, 1, generator=generator) < 0.67
    token_BVHW = torch.rand(features.valid_BVHW.shape, generator=generator) < 0.9
    return Features(features.tokens_BVHWC, view_BV11 & token_BVHW)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@settings(max_examples=8)
@given(seed=seeds)
def test_masked_tokens_change_nothing_and_get_no_gradient(norm, poison, seed):
    # Through the whole objective, for a leaf that stands in for the residual stream.
    sf = Setting(norm=norm).sf
    setting = Setting()
    features = masked(setting.features(), seed)
    dirty_teacher = Features(
        torch.where(features.valid_BVHW[..., None], features.tokens_BVHWC, poison), features.valid_BVHW
    )
    valid_BN = sf.target(features)[1]
    hidden_BLD = torch.randn(3, 14, WIDTH)
    dirty_hidden = hidden_BLD.clone()
    dirty_hidden[:, 3:11][~valid_BN] = poison
    state = copy.deepcopy(sf.state_dict())

    results = []
    for hidden, target in ((hidden_BLD, features), (dirty_hidden, dirty_teacher)):
        sf.load_state_dict(state)
        leaf = hidden.clone().requires_grad_()
        with sf.watch():
            sf.host.reader(sf.tap.layer)(leaf)
        sf.zero_grad()
        loss = sf(target)
        loss.backward()
        of_sf = {name: parameter.grad.clone() for name, parameter in sf.named_parameters()}
        results.append((loss.detach(), leaf.grad, of_sf, copy.deepcopy(sf.state_dict())))
    (clean_loss, clean_grad, *clean), (loss, grad, *rest) = results
    assert torch.equal(loss, clean_loss)
    assert torch.equal(grad, clean_grad)
    for a, b in zip(rest, clean, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert grad.isfinite().all()
    assert (grad[:, 3:11][~valid_BN] == 0).all()
    assert (grad[:, :3] == 0).all()
    assert (grad[:, 11:] == 0).all()
    if valid_BN.sum() > 1:
        assert (grad[:, 3:11][valid_BN].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("poison", [0.0, math.nan])
def test_all_views_masked_gives_zero_loss_and_zero_gradient_everywhere(norm, poison):
    setting = Setting(norm=norm)
    tokens = torch.full_like(setting.features().tokens_BVHWC, poison)
    loss = setting.loss(Features(tokens, torch.zeros(tokens.shape[:4], dtype=torch.bool)))
    assert loss == 0
    gradients = setting.gradients(loss)
    # Zero, not absent: under DistributedDataParallel the other processes wait for every parameter of the
    # projector.
    assert all((gradients[name] == 0).all() for name in gradients if name.startswith("sf."))
    reached = {name for name, g in gradients.items() if g is not None}
    assert "vla.patches.weight" in reached
    assert all((gradients[name] == 0).all() for name in reached)
    assert setting.sf.logs["valid_fraction"] == 0
    assert setting.sf.logs["cosine"].isnan(), "nothing was compared"


def test_a_batch_without_valid_tokens_leaves_lerobots_metrics_in_order():
    """LeRobot averages over processes by position: each must log the same names in the same order."""
    tracker = pytest.importorskip("lerobot.utils.logging_utils").MetricsTracker
    setting, trackers = Setting(), [tracker(4, 100, 10, {}) for _ in range(2)]
    features = setting.features()
    nothing = Features(features.tokens_BVHWC, torch.zeros_like(features.valid_BVHW))
    for metrics, batches in zip(trackers, [(nothing, features), (features, features)], strict=True):
        for batch in batches:
            setting.loss(batch)
            metrics.update_metrics({name: value.item() for name, value in setting.sf.logs.items()})
    assert list(trackers[0].metrics) == list(trackers[1].metrics) == list(setting.sf.logs)
    assert math.isnan(trackers[0].to_dict()["cosine"])
    assert trackers[0].to_dict()["valid_fraction"] == 0.5
    assert trackers[1].to_dict()["cosine"] == pytest.approx(setting.sf.logs["cosine"].item())
    assert "cosine:nan" in str(trackers[0])


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_fewer_views_than_the_host_has_is_masking_the_last(norm):
    one, other = Setting(norm=norm), Setting(norm=norm)
    features = one.features()
    valid = features.valid_BVHW.clone()
    valid[:, 1] = False
    fewer = one.loss(Features(features.tokens_BVHWC[:, :1], features.valid_BVHW[:, :1]))
    last_masked = other.loss(Features(features.tokens_BVHWC, valid))
    torch.testing.assert_close(fewer, last_masked, atol=1e-6, rtol=0)
    assert one.sf.logs["valid_fraction"] == 0.5
    assert_same(one.gradients(fewer), other.gradients(last_masked), atol=1e-6)


@pytest.mark.parametrize("views", [[1], [1, 0], [0, 1]])
def test_the_views_given_are_aligned_in_their_places_and_the_others_are_not(views):
    # Against the views in the host's order, the others masked. Position embeddings weigh by the views given.
    setting, other = Setting(position_embedding=0.0), Setting(position_embedding=0.0)
    turned_BV23 = torch.stack([flip(), torch.eye(2, 3)]).expand(3, VIEWS, 2, 3)
    present_BV = torch.tensor([[True, True], [True, False], [False, True]])
    features = masked(other.features(), 5)
    some = features.of_views(views)
    loss = setting.loss(some, affine_BV23=turned_BV23[:, views], present_BV=present_BV[:, views], views=views)
    valid_BVHW = features.valid_BVHW.clone()
    valid_BVHW[:, [view for view in range(VIEWS) if view not in views]] = False
    whole = other.loss(
        features._replace(valid_BVHW=valid_BVHW), affine_BV23=turned_BV23, present_BV=present_BV
    )
    assert loss > 0
    torch.testing.assert_close(loss, whole, atol=1e-6, rtol=0)
    assert_same(setting.gradients(loss), other.gradients(whole), atol=1e-6)


def test_the_teacher_sees_the_views_given_and_no_others():
    setting = Setting()
    seen = []
    setting.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    setting.loss(setting.images_BV3HW[:, 1:], views=[1])
    assert [tuple(images.shape[:2]) for images in seen] == [(3, 1)]
    assert setting.sf.logs["valid_fraction"] == 0.5


@pytest.mark.parametrize("views", [[0, 0], [0, 2], [-1, 0], [0], [0, 1, 1]])
def test_views_that_the_host_does_not_have(views):
    with pytest.raises(SpatialForcingError, match=r"which of the 2 views of TinyVLA, 0 to 1, the 2 given"):
        Setting().loss(views=views)


def test_some_views_of_a_store_are_aligned_without_saying_their_sizes(tmp_path):
    """The store remembers the sizes of all of its views; a host that stretches its images needs none."""
    store, vla = small_store(tmp_path / "features"), Setting().vla
    features = store.read(torch.tensor([0, 3]))
    whole, some = features, features.of_views([1])
    sf = SpatialForcing(vla.spatial_forcing_host(), store)
    valid_BVN = sf.target(some, views=[1])[1].unflatten(1, (VIEWS, -1))
    assert valid_BVN.flatten(2).any(2).tolist() == [[False, True]] * 2
    padding = vla.spatial_forcing_host()
    padding = replace(padding, layout=replace(padding.layout, fit="pad"))
    sf = SpatialForcing(padding, store, position_embedding=0.0)  # of the size of all that is given
    with pytest.raises(
        SpatialForcingError, match=r"the cache has the image sizes of 2 views, of which 1 are"
    ):
        sf.target(some, views=[1])
    one = sf.target(some, views=[1], image_hw=[store.image_sizes[1]])
    both = sf.target(whole)
    for found, expected in zip(one, both, strict=True):
        torch.testing.assert_close(
            found.unflatten(1, (VIEWS, -1))[:, 1], expected.unflatten(1, (VIEWS, -1))[:, 1]
        )
