"""Weights of tokens: laws of the weighted losses and targets, and their cache."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from small_alignment import SIDE, VIEWS, Setting
from small_depth import painted_dataset
from torch.testing import assert_close
from training_configs import policy_config, train_config

from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.compare.features import Teaching
from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import AnnotatedFeatures, Features
from spatial_forcing.grid import flip
from spatial_forcing.losses import LOSSES
from spatial_forcing.token_weights.sources import weight_source
from spatial_forcing.train import train_or_continue

CAMERAS = ["observation.images.left", "observation.images.right"]
SIZES = {"image_size": 28, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}
losses, seeds = st.sampled_from(sorted(LOSSES)), st.integers(0, 10_000)


def compared(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """projected_BNC with gradient, target_BNC, valid_BN and weight_BN."""
    draw = torch.Generator().manual_seed(seed)
    projected_BNC = torch.randn(2, 5, 4, generator=draw).requires_grad_()
    target_BNC = torch.randn(2, 5, 4, generator=draw)
    valid_BN = torch.rand(2, 5, generator=draw) > 0.2
    valid_BN[:, :2] = True
    return projected_BNC, target_BNC, valid_BN, torch.rand(2, 5, generator=draw)


# ---- losses ------------------------------------------------------------------------------------------------


@given(losses, seeds, st.floats(1e-3, 1e3))
def test_equal_weights_are_none_and_their_scale_does_not_matter(name, seed, scale):
    projected, target, valid, weight = compared(seed)
    loss = LOSSES[name]
    assert_close(
        loss(projected, target, valid, torch.full_like(weight, scale)), loss(projected, target, valid)
    )
    assert_close(loss(projected, target, valid, scale * weight), loss(projected, target, valid, weight))


@given(losses, seeds)
def test_a_token_without_weight_is_one_that_is_not_valid(name, seed):
    projected, target, valid, _ = compared(seed)
    kept = valid & (torch.arange(5) != 1)
    ways = ((valid, kept.float()), (kept,))
    found, expected = (
        torch.autograd.grad(LOSSES[name](projected, target, *how), projected)[0] for how in ways
    )
    assert_close(found, expected)
    assert not found[:, 1].any()


@pytest.mark.parametrize("name", ["cosine", "smooth_l1"])
def test_the_loss_is_the_weighted_mean_of_its_tokens(name):
    projected, target, valid, weight = compared(3)
    tokens = [
        [of[b : b + 1, n : n + 1] for of in (projected, target, valid)] for b in (0, 1) for n in range(5)
    ]
    alone_BN = torch.stack([LOSSES[name](*token) for token in tokens]).view(2, 5)
    counts_BN = weight * valid
    assert_close(
        LOSSES[name](projected, target, valid, weight), (counts_BN * alone_BN).sum() / counts_BN.sum()
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_without_any_weight_there_is_no_loss_and_no_gradient(name):
    projected, target, valid, weight = compared(0)
    loss = LOSSES[name](projected, target, valid, 0 * weight)
    (gradient,) = torch.autograd.grad(loss, projected)
    assert loss == 0
    assert not gradient.any()


def test_a_loss_that_takes_no_weights_is_refused_before_a_step():
    def squared(projected_BNC, target_BNC, valid_BN):
        return (projected_BNC - target_BNC).square().mean()

    with pytest.raises(
        SpatialForcingError, match=r"squared takes no weights .*: cosine, relations, smooth_l1"
    ):
        Setting(loss=squared, token_weights=True)
    Setting(loss=squared)


# ---- targets -----------------------------------------------------------------------------------------------


def weighted(setting: Setting, seed: int = 0) -> Features:
    """Some of the teacher's features with random weights, on the host's own grid."""
    tokens_BVHWC = setting.features().tokens_BVHWC[:, :, ::2, ::2]
    valid_BVHW = torch.ones(tokens_BVHWC.shape[:4], dtype=torch.bool)
    weights_BVHW = torch.rand(valid_BVHW.shape, generator=torch.Generator().manual_seed(seed))
    return AnnotatedFeatures(tokens_BVHWC, valid_BVHW, None, weights_BVHW)


def weight_of(setting: Setting, features: Features, **how) -> torch.Tensor:
    """The weights on the host's grid, (B, V, h, w)."""
    sf = setting.sf
    given = sf._given(
        features, *(how.get(name) for name in ("affine_BV23", "image_hw", "present_BV", "views"))
    )
    found = sf._on_grid(sf.parts[0], {sf.parts[0].name: features}, given).weight_BN
    return found.view(-1, VIEWS, SIDE, SIDE)


def test_the_step_is_the_weighted_loss_of_the_same_target():
    setting, plain = Setting(token_weights=True), Setting()
    features = weighted(setting)
    assert_close(setting.sf.target(features)[0], plain.sf.target(features)[0])
    assert_close(weight_of(setting, features), features.weights_BVHW)
    with_equal = features.with_weights(torch.full_like(features.weights_BVHW, 0.3))
    assert_close(setting.loss(with_equal), plain.loss(features))
    assert (setting.loss(features) - plain.loss(features)).abs() > 1e-4
    assert_close(setting.sf.logs["cosine"], 1 - setting.sf.logs["align_loss"])


def test_what_no_weight_is_on_pulls_nothing():
    setting = Setting(token_weights=True)
    features = weighted(setting)
    features.weights_BVHW[:, 1] = 0
    before = setting.loss(features)
    tokens = features.tokens_BVHWC.clone()
    tokens[:, 1] = torch.randn_like(tokens[:, 1])
    changed = features._replace(tokens_BVHWC=tokens)
    assert torch.equal(changed.weights_BVHW, features.weights_BVHW)
    # The size of the position embedding is that of all tokens: without it the other view does not matter.
    placeless = Setting(token_weights=True, position_embedding=0.0)
    assert_close(placeless.loss(features), placeless.loss(changed))
    assert before > 0


def test_where_no_token_has_a_weight_no_cosine_is_logged():
    """1 would say that all are aligned."""
    setting = Setting(token_weights=True)
    features = weighted(setting)
    assert setting.loss(features.with_weights(torch.zeros_like(features.weights_BVHW))) == 0
    assert setting.sf.logs["cosine"].isnan()
    assert setting.sf.logs["valid_fraction"] == 1


@pytest.mark.parametrize(
    ("weight", "says"), [(-0.5, "0 or more; 1 of"), (torch.nan, "1 of"), (torch.inf, "infinity")]
)
def test_weights_that_are_none_are_refused(weight, says):
    setting = Setting(token_weights=True)
    features = weighted(setting)
    features.weights_BVHW[0, 0, 0, 0] = weight
    with pytest.raises(SpatialForcingError, match=says):
        setting.loss(features)


def test_weights_move_with_the_hosts_own_crop_and_are_averaged_as_tokens_are():
    setting = Setting(token_weights=True)
    features = weighted(setting)
    mirrored = weight_of(setting, features, affine_BV23=flip())
    assert_close(mirrored, features.weights_BVHW.flip(3))
    fine = setting.features()
    constant = fine.with_weights(torch.full(fine.valid_BVHW.shape, 0.25))
    assert_close(weight_of(setting, constant), torch.full((3, VIEWS, SIDE, SIDE), 0.25))


def test_the_controls_know_nothing_of_the_frames_weights():
    shuffled, place = (Setting(token_weights=True, control=name) for name in ("shuffled", "place"))
    features = weighted(shuffled)
    assert_close(weight_of(shuffled, features), features.weights_BVHW.roll(1, 0))
    other = features.with_weights(features.weights_BVHW.flip(0))
    assert torch.equal(place.loss(features), place.loss(other))


def test_points_and_weights_travel_together():
    setting = Setting(token_weights=True, points="concatenated")
    points = torch.rand(*weighted(setting).valid_BVHW.shape, 3)
    features = weighted(setting).with_points(points)
    assert torch.equal(features.of_views([1]).weights_BVHW, features.weights_BVHW[:, 1:])
    assert torch.equal(features.with_points(None).weights_BVHW, features.weights_BVHW)
    assert torch.equal(features.with_weights(None).points_BVHW3, points)
    assert setting.loss(features).isfinite()


def test_what_cannot_be_is_said():
    setting = Setting(token_weights=True)
    setting.act()
    with pytest.raises(SpatialForcingError, match=r"these features have none\. Store them beside"):
        setting.sf(setting.features())
    features = weighted(setting)
    with pytest.raises(SpatialForcingError, match=r"weights of shape \(3, 2, 2, 2\)"):
        setting.sf(features.with_weights(features.weights_BVHW[..., :1]))
    with pytest.raises(SpatialForcingError, match=r"got torch\.int64"):
        setting.sf(features.with_weights(features.weights_BVHW.long()))


# ---- stored ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return painted_dataset(tmp_path_factory.mktemp("painted") / "demos")


@pytest.fixture(scope="module")
def features(demos, tmp_path_factory) -> Path:
    """A cache with weights, as one types it."""
    out = tmp_path_factory.mktemp("features") / "features"
    assert run("cache", "--out", out, "--dataset", demos, "--teacher", "untrained-tiny") == 0
    assert run("weights", "--source", "confidence:vggt-tiny-sim", "--features", out, "--dataset", demos) == 0
    return out


def test_weights_are_read_as_they_were_stored(features, demos):
    from spatial_forcing.cache.beside import frames_at

    store, dataset, index = FeatureStore(features, weights=True), open_dataset(demos), torch.tensor([9, 0, 5])
    source = weight_source("confidence:vggt-tiny-sim", dataset, CAMERAS, 0.0, "cpu")
    expected = source.weights(frames_at(dataset, index.tolist()), CAMERAS, *store.grid[1:3])
    assert_close(store(index).weights_BVHW, expected, atol=1e-3, rtol=0)
    assert store.fingerprint != FeatureStore(features).fingerprint
    assert FeatureStore(features)(index).weights_BVHW is None


def test_what_is_stored_is_verified_and_something_else_is_refused(features, demos, tmp_path, capsys):
    here = Path(shutil.copytree(features, tmp_path / "features"))
    again = ("weights", "--source", "confidence:vggt-tiny-sim", "--features", here, "--dataset", demos)
    shard = here / "weights" / "shard-00000.safetensors"
    before, when = shard.read_bytes(), shard.stat().st_mtime_ns
    assert run(*again) == 0
    assert shard.stat().st_mtime_ns == when
    capsys.readouterr()
    assert run(*again, "--least", "0.1") == 2
    assert "weights" in capsys.readouterr().err
    shard.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    with pytest.raises(CacheError, match="is damaged: its sum is not the one in the manifest"):
        FeatureStore(here, weights=True)(torch.tensor([0]))
    assert run("cache", "verify", "--out", here) == 2
    assert "store the weights again: spatial-forcing weights" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(here / "weights")
    with pytest.raises(CacheError, match="has no weights of its tokens"):
        FeatureStore(here, weights=True)
    assert run(*again) == 0
    assert shard.read_bytes() == before


@pytest.mark.parametrize("source", ["stored", "confidence:vggt-tiny-sim"])
def test_a_policy_trains_with_them(source, features, demos, tmp_path):
    policy = policy_config("tiny", {"cache": str(features), "token_weights": source}, **SIZES)
    how = {"steps": 2, "batch_size": 4, "seed": 0, "save_every": 2, "log_every": 1}
    train_or_continue(train_config(policy, demos, tmp_path / "run", **how))
    side = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "spatial_forcing" / "forcing.json"
    assert f'"token_weights": "{source}"' in side.read_text()


def test_options_that_do_not_fit_the_cache(features, demos, tmp_path):
    how = {"steps": 1, "batch_size": 2, "seed": 0, "save_every": 1}
    for options, says in (
        ({"teacher": "untrained-tiny", "token_weights": "stored"}, "stores beside a cache"),
        ({"cache": str(features), "token_weights": "mask:a"}, "holds weights of confidence:vggt-tiny-sim"),
    ):
        config = train_config(policy_config("tiny", options, **SIZES), demos, tmp_path / "run", **how)
        with pytest.raises(SpatialForcingError, match=says):
            train_or_continue(config)


def test_a_comparison_stores_weights_in_folders_of_their_own():
    plain = Teaching("vggt-tiny-sim")
    sure = replace(plain, token_weights="confidence:vggt-tiny-sim")
    folders = [one.folder(1.0) for one in (plain, sure)]
    assert folders == ["vggt-tiny-sim-f100", "vggt-tiny-sim-weights-confidence-vggt-tiny-sim-f100"]
