"""Metrics of depth: the textbook's numbers, alignment that undoes scale and shift, pairs by episode."""

import numpy as np
import pytest
import torch

from spatial_forcing.probe.depth import metrics
from spatial_forcing.probe.quality import METRICS, Judge, aligned, interval, mean_of

F, V, H, W = 12, 2, 6, 5


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    true = 0.5 + 2 * torch.rand(F, V, H, W, generator=g)
    predicted = (true * (1 + 0.3 * torch.randn(true.shape, generator=g))).clamp(min=0.1)
    true[torch.rand(true.shape, generator=g) < 0.1] = torch.nan
    return predicted, true, torch.arange(F) // 3


def judged(predicted, true, episodes, batch: int = F):
    judge = Judge()
    for parts in zip(predicted.split(batch), true.split(batch), episodes.split(batch), strict=True):
        judge.add(*parts)
    return judge.tallies()


def test_the_numbers_are_those_of_the_definitions_and_of_the_first_probe():
    predicted, true, episodes = maps()
    values = judged(predicted, true, episodes).values
    known = ~true.isnan()
    p, t = predicted[known].double(), true[known].double()
    ratio = torch.maximum(p / t, t / p)
    expected = {
        "absrel": (p - t).abs() / t,
        "log10": (p.log10() - t.log10()).abs(),
        **{f"delta{i}": (ratio < 1.25**i).double() for i in (1, 2, 3)},
    }
    for name, cells in expected.items():
        assert values[name] == pytest.approx(float(cells.mean()), rel=1e-9), name
    first = metrics(predicted, true)
    assert (values["absrel"], values["rmse"], values["delta1"]) == pytest.approx(
        (first.absrel, first.rmse_m, first.delta1), rel=1e-9
    )


def test_batches_do_not_matter():
    given = maps()
    whole, parts = judged(*given), judged(*given, batch=5)
    np.testing.assert_allclose(whole.totals_nK, parts.totals_nK, rtol=1e-12)


def test_alignment_undoes_scale_and_shift_of_each_image_and_is_least_squares():
    predicted, true, episodes = maps()
    g = torch.Generator().manual_seed(5)
    s, o = 0.3 + torch.rand(F, V, 1, 1, generator=g), torch.rand(F, V, 1, 1, generator=g)
    full = true.nan_to_num(1.0)
    moved = judged((full - o) / s, true, episodes).values
    assert moved["absrel"] > 0.1
    assert moved["absrel_aligned"] < 1e-5
    assert moved["delta1_aligned"] == 1.0
    p, t = predicted.flatten(2).flatten(0, 1), true.flatten(2).flatten(0, 1)
    known = ~t[0].isnan()
    ones = torch.stack([p[0, known], torch.ones(int(known.sum()))], 1)
    expected = ones @ torch.linalg.lstsq(ones, t[0, known, None]).solution
    torch.testing.assert_close(aligned(p, t)[0, known], expected[:, 0], rtol=1e-4, atol=1e-4)


def test_a_flat_prediction_is_aligned_to_the_mean_and_orders_nothing():
    _, true, episodes = maps()
    values = judged(torch.ones_like(true), true, episodes).values
    mean = true.flatten(2).nanmean(2, keepdim=True).unflatten(2, (1, 1)).expand_as(true)
    known = ~true.isnan()
    assert values["absrel_aligned"] == pytest.approx(
        float(((mean - true).abs() / true)[known].mean()), rel=1e-5
    )
    assert values["order"] == 0.5


def test_order_is_right_for_any_rising_function_and_wrong_for_a_falling_one():
    _, true, episodes = maps()
    full = true.nan_to_num(1.0)
    assert judged(full**3, true, episodes).values["order"] == 1.0
    assert judged(1 / full, true, episodes).values["order"] == 0.0


def test_every_metric_has_an_interval_over_episodes_around_its_value():
    predicted, true, episodes = maps()
    tallies = judged(predicted, true, episodes)
    resampled = tallies.resampled
    assert resampled is not None
    assert set(resampled) == set(METRICS)
    for name, value in tallies.values.items():
        low, high = interval(resampled[name])
        assert low <= value <= high, name
    one = judged(predicted[:3], true[:3], episodes[:3])
    assert one.resampled is None


def test_the_mean_head_of_several_seeds_is_judged_on_the_same_cells():
    predicted, true, episodes = maps()
    a, b = judged(predicted, true, episodes), judged(1.1 * predicted, true, episodes)
    assert a.comparable(b)
    assert mean_of([a, b]).values["absrel"] == pytest.approx((a.values["absrel"] + b.values["absrel"]) / 2)


def test_an_episode_without_depth_is_not_counted_and_none_at_all_gives_nothing():
    predicted, true, episodes = maps()
    true[:3] = torch.nan
    assert len(judged(predicted, true, episodes).cells_n) == len(episodes.unique()) - 1
    assert judged(predicted, torch.full_like(true, torch.nan), episodes) is None
