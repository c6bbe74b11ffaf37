"""The DPT head: it reads depth that is in its tokens, none from others', and its memory is bounded."""

import pytest
import torch

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.dpt import LAYERS, Recipe, TokenSample, fit_dpt
from spatial_forcing.probe.quality import Judge

V, H, W, C, K = 2, 3, 4, 6, 2
QUICK = Recipe(steps=60, width=16, learning_rate=5e-3)


def frames(count: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Four layers of tokens that hold the depth of their patch among other things, and the depth."""
    draw = torch.Generator().manual_seed(seed)
    depth = 0.5 + 1.5 * torch.rand(count, V, H, W, generator=draw)
    layers = [torch.randn(count, V, H, W, C, generator=draw) for _ in range(LAYERS)]
    for of in layers:
        of[..., 0] = 4 * (depth - 1.25)
    return layers, depth.repeat_interleave(K, 2).repeat_interleave(K, 3)


def absrel(predicted: torch.Tensor, true: torch.Tensor) -> float:
    judge = Judge()
    judge.add(predicted, true, torch.arange(len(true)))
    return judge.tallies().values["absrel"]


def test_depth_in_the_tokens_is_read_and_from_other_frames_nothing_is():
    (layers, depth), (test, true) = frames(60, 0), frames(30, 1)
    sample, wrong = TokenSample(QUICK), TokenSample(QUICK)
    sample.add(layers, depth)
    wrong.add([of.roll(7, 0) for of in layers], depth)
    right, other = (
        fit_dpt(sample, K, QUICK, 0)(test),
        fit_dpt(wrong, K, QUICK, 0)([of.roll(7, 0) for of in test]),
    )
    flat = absrel(depth.mean(0).expand_as(true), true)
    assert absrel(right, true) < 0.7 * flat
    assert absrel(other, true) > 0.8 * flat


def test_a_seed_says_it_all():
    layers, depth = frames(20, 0)
    sample, few = TokenSample(QUICK), Recipe(steps=3, width=16)
    sample.add(layers, depth)
    state = torch.get_rng_state()
    a, b, c = (fit_dpt(sample, K, few, seed)(layers) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_the_sample_is_bounded_and_every_frame_is_as_likely():
    a_frame = LAYERS * V * H * W * C * 2 + V * H * K * W * K * 4
    recipe = Recipe(sample_bytes=20 * a_frame)
    kept = torch.zeros(100)
    for seed in range(200):
        sample = TokenSample(recipe, seed)
        for start in range(0, 100, 7):
            number = torch.arange(start, min(start + 7, 100)).float()
            layers = [number[:, None, None, None, None].expand(-1, V, H, W, C)] * LAYERS
            sample.add(layers, torch.ones(len(number), V, H * K, W * K))
        assert sample.bytes <= recipe.sample_bytes
        kept[sample.layers[0][:, 0, 0, 0, 0].long()] += 1
    assert sample.size == 20
    assert kept.sum() == 200 * 20
    assert kept.min() > 15  # 40 expected, with a deviation of 5.7
    assert kept.max() < 70


def test_cells_without_depth_are_not_trained_on_and_none_at_all_is_said():
    layers, depth = frames(20, 0)
    depth[:, 0] = torch.nan
    sample = TokenSample(QUICK)
    sample.add(layers, depth)
    assert fit_dpt(sample, K, Recipe(steps=2, width=16), 0)(layers).isfinite().all()
    empty = TokenSample(QUICK)
    empty.add(layers, torch.full_like(depth, torch.nan))
    with pytest.raises(ProbeError, match="No frame of the sample"):
        fit_dpt(empty, K, QUICK, 0)
