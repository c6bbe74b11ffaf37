"""The depth probe's head: it finds what is linearly in the tokens, and nothing else."""

import pytest
import torch
from small_probe import C, F, H, K, V, W, episodes, judge, planted, whole

from spatial_forcing.probe import DepthProbe, ProbeError, metrics


def test_depth_linear_in_tokens_plus_an_offset_of_each_cell_is_recovered_exactly():
    (train, depth), (test, true) = planted(0), planted(1)
    plain = DepthProbe(sub_grid=K, ridges=[0.0]).fit(train, depth, episodes())
    seen = true.clamp(depth.min(), depth.max())
    torch.testing.assert_close(plain.predict(test), seen, rtol=1e-5, atol=1e-5)
    chosen = metrics(DepthProbe(sub_grid=K).fit(train, depth, episodes()).predict(test), true)
    assert chosen.absrel < 1e-3
    assert chosen.delta1 == 1.0
    assert chosen.pixels == true.numel()


@pytest.mark.parametrize("missing", [False, True])
def test_tokens_that_never_change_give_the_mean_depth_exactly(missing):
    """A token of its own for every place says where it lies, which is nothing new."""
    _, depth = planted()
    g = torch.Generator().manual_seed(4)
    if missing:
        depth = torch.where(torch.rand(depth.shape, generator=g) < 0.05, torch.nan, depth)
        depth[:, 0, :K, :K] = 0.0
    place = torch.randn(V, H, W, C, generator=g).expand(F, V, H, W, C)
    probe = DepthProbe(sub_grid=K).fit(place, depth, episodes())
    mean = torch.where(depth > 0, depth, torch.nan).double().nanmean(0)
    mean = torch.where(mean.isnan(), mean.nanmean(), mean)
    torch.testing.assert_close(
        probe.predict(place[:5]), mean.float().expand(5, -1, -1, -1), rtol=1e-6, atol=0
    )
    result = judge(whole(place=(place, place)), depth, depth, episodes(), episodes(first=50), sub_grid=K)
    assert torch.equal(result.predicted["place"], result.predicted["mean depth"])


def test_a_constant_for_each_place_changes_nothing():
    (train, depth), (test, _) = planted(0), planted(1)
    place = 3 * torch.randn(V, H, W, C, generator=torch.Generator().manual_seed(4))
    depth = depth + 0.1 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(5))
    plain = DepthProbe(sub_grid=K).fit(train, depth, episodes())
    moved = DepthProbe(sub_grid=K).fit(train + place, depth, episodes())
    assert moved.ridge == plain.ridge
    torch.testing.assert_close(moved.predict(test + place), plain.predict(test), rtol=1e-5, atol=1e-5)


def test_the_head_is_ridge_regression_with_a_free_offset_for_every_place():
    """The same predictions as least squares on tokens and places, with sqrt(λN) w = 0 for each channel."""
    tokens, depth = planted()
    depth = depth + 0.1 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(5))
    probe = DepthProbe(sub_grid=K, ridges=[0.1]).fit(tokens, depth, episodes())
    x = tokens.double()
    x = (x / (x - x.mean(0)).square().mean((0, 1, 2, 3)).sqrt()).reshape(-1, C)
    y = depth.double().view(F, V, H, K, W, K).transpose(3, 4).reshape(-1, K * K)
    places = torch.eye(V * H * W).double().repeat(F, 1)
    penalty = torch.cat([(0.1 * len(x)) ** 0.5 * torch.eye(C), torch.zeros(C, V * H * W)], 1)
    known = torch.cat([x, places], 1)
    a = torch.linalg.lstsq(
        torch.cat([known, penalty.double()]), torch.cat([y, torch.zeros(C, K * K).double()])
    ).solution
    expected = (known @ a).view(F, V, H, W, K, K).transpose(3, 4).reshape(depth.shape)
    torch.testing.assert_close(probe.predict(tokens), expected.float(), rtol=1e-5, atol=1e-5)


def test_rescaling_and_shifting_channels_changes_nothing():
    (tokens, depth), (test, _) = planted(0), planted(1)
    scale, shift = torch.logspace(-3, 3, C), torch.linspace(-50, 50, C)
    plain = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    moved = DepthProbe(sub_grid=K).fit((tokens + shift) * scale, depth, episodes())
    torch.testing.assert_close(
        moved.predict((test + shift) * scale), plain.predict(test), rtol=1e-3, atol=1e-4
    )


def test_a_constant_channel_gets_no_weight_even_if_it_moves_later():
    (tokens, depth), (test, _) = planted(0), planted(1)
    tokens[..., 3] = 7.3
    probe = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    moved = test.clone()
    moved[..., 3] = -1e4
    torch.testing.assert_close(probe.predict(moved), probe.predict(test))


def test_metres_in_metres_out():
    tokens, depth = planted()
    near = DepthProbe(sub_grid=K).fit(tokens, depth, episodes()).predict(tokens)
    far = DepthProbe(sub_grid=K, far=30).fit(tokens, 10 * depth, episodes()).predict(tokens)
    torch.testing.assert_close(far, 10 * near, rtol=1e-4, atol=1e-4)


def test_images_finer_than_the_sub_grid_are_averaged_and_predictions_stay_on_it():
    tokens, depth = planted()
    fine = depth.repeat_interleave(5, 2).repeat_interleave(3, 3)
    coarse, finer = (DepthProbe(sub_grid=K).fit(tokens, d, episodes()) for d in (depth, fine))
    assert finer.predict(tokens).shape == (F, V, H * K, W * K)
    torch.testing.assert_close(finer.predict(tokens), coarse.predict(tokens))


def test_noise_asks_for_a_stronger_ridge():
    tokens, depth = planted()
    noise = torch.randn(F, V, H, W, 300, generator=torch.Generator().manual_seed(3))
    clean = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    noisy = DepthProbe(sub_grid=K).fit(noise, depth, episodes())
    assert clean.ridge is not None
    assert noisy.ridge is not None
    assert clean.ridge < noisy.ridge


def holes(depth: torch.Tensor, zero: float, beyond: float, none: float) -> torch.Tensor:
    """The same depth, out of range on whole patches and on parts of them, in all frames or in some."""
    depth = depth.clone()
    depth[:, :, 0], depth[:, :, 1, :2], depth[: F // 2, 1, 2:4, 2] = zero, beyond, none
    return depth


def test_depth_out_of_range_is_neither_fitted_nor_judged():
    (train, depth), (test, true) = planted(0), planted(1)
    fillings = (0.0, 50.0, torch.nan), (-1.0, torch.inf, 3.0)
    found, other = (
        DepthProbe(sub_grid=K).fit(train, holes(depth, *filling), episodes()).predict(test)
        for filling in fillings
    )
    assert torch.equal(found, other)
    judged = metrics(found, holes(true, *fillings[0]))
    assert judged.absrel < 1e-3
    assert judged.pixels < true.numel()
    assert judged == metrics(found, holes(true, *fillings[1]))


def test_tokens_without_any_depth_in_range_are_not_fitted():
    (train, depth), (test, _) = planted(0), planted(1)
    depth[: F // 2, 0, :K, :K] = 0.0
    moved = train.clone()
    moved[: F // 2, 0, 0, 0] = torch.nan
    fitted = [DepthProbe(sub_grid=K).fit(x, depth, episodes()).predict(test) for x in (train, moved)]
    assert torch.equal(*fitted)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, d, e: (t[0], d, e), "frames, views, rows, columns, channels"),
        (lambda t, d, e: (t.long(), d, e), "torch.int64"),
        (lambda t, d, e: (t, d[:, :1], e), "same frames and views"),
        (lambda t, d, e: (t, d, e[:-1]), "one episode a frame"),
        (lambda t, d, e: (t, d, e * 0), "at least two episodes"),
        (lambda t, d, e: (t / 0, d, e), "NaN or infinite"),
        (lambda t, d, e: (t, d * 0, e), "in metres"),
        (lambda t, d, e: (t, d[..., :4], e), "cannot fill 8 cells"),
    ],
)
def test_what_does_not_fit_is_said(spoil, message):
    with pytest.raises(ProbeError, match=message):
        DepthProbe(sub_grid=K).fit(*spoil(*planted(), episodes()))


def test_predicting_from_broken_tokens_or_before_the_fit_is_an_error():
    tokens, depth = planted()
    with pytest.raises(ProbeError, match="not been fitted"):
        DepthProbe(sub_grid=K).predict(tokens)
    probe = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    with pytest.raises(ProbeError, match="predict from are NaN"):
        probe.predict(tokens / 0)
    with pytest.raises(ProbeError, match=r"\(F, 2, 3, 4, 10\)"):
        probe.predict(tokens[..., :4])
    with pytest.raises(ProbeError, match=r"\(F, 2, 3, 4, 10\)"):
        probe.predict(tokens[:, :1])
