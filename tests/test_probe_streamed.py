"""The streamed linear head equals the closed form on all data at once, and its memory does not grow."""

import pytest
import torch

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.linear import DepthProbe, per_token, validation_frames
from spatial_forcing.probe.moments import StreamedProbe, StreamedRidge

F, V, H, W, C, K = 60, 2, 3, 4, 10, 2


def planted(noise: float = 0.05, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens far from zero, depth linear in them plus an offset of each cell and noise, and episodes."""
    g = torch.Generator().manual_seed(99)
    weights, offset = torch.randn(C, K * K, generator=g) * 0.05, torch.rand(V, H * K, W * K, generator=g)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(F, V, H, W, C, generator=draw)
    linear = (tokens @ weights).view(F, V, H, W, K, K).transpose(3, 4).reshape(F, V, H * K, W * K)
    depth = 1 + offset + linear + noise * torch.randn(linear.shape, generator=draw)
    place = 300 * torch.randn(V, H, W, C, generator=g)
    return tokens + place, depth.clamp(0.2, 2.9), torch.arange(F) // 4


def streamed(tokens, depth, episodes, batch: int, **options) -> StreamedProbe:
    probe, held = StreamedProbe(K, **options), validation_frames(episodes)
    for parts in zip(tokens.split(batch), depth.split(batch), held.split(batch), strict=True):
        probe.add(*parts)
    return probe


@pytest.mark.parametrize("batch", [1, 7, F])
def test_the_streamed_head_is_the_closed_form_on_all_data_at_once(batch):
    tokens, depth, episodes = planted(noise=0.3)
    whole = DepthProbe(K).fit(tokens, depth, episodes)
    parts = streamed(tokens, depth, episodes, batch).fit()
    assert parts.ridge == whole.ridge
    torch.testing.assert_close(parts.predict(tokens), whole.predict(tokens), rtol=1e-6, atol=1e-6)


def test_cells_without_depth_are_left_out_as_in_the_closed_form():
    """Where whole tokens lack depth the two agree exactly; a cell that never had any gets the mean."""
    tokens, depth, episodes = planted()
    gone = torch.rand(F, V, H, W, generator=torch.Generator().manual_seed(3)) < 0.2
    gone[:, 0, 0, 0] = True
    depth = depth.masked_fill(gone.repeat_interleave(K, 2).repeat_interleave(K, 3), torch.nan)
    whole = DepthProbe(K, ridges=[0.01]).fit(tokens, depth, episodes)
    parts = streamed(tokens, depth, episodes, 9, ridges=[0.01]).fit()
    torch.testing.assert_close(parts.predict(tokens), whole.predict(tokens), rtol=1e-6, atol=1e-6)


def test_single_cells_without_depth_count_in_the_offsets_alone():
    """W is the one of the closed form, and tokens that say nothing give the mean depth of each cell."""
    tokens, depth, episodes = planted()
    depth = depth.masked_fill(
        torch.rand(depth.shape, generator=torch.Generator().manual_seed(3)) < 0.03, torch.nan
    )
    whole = DepthProbe(K, ridges=[0.01]).fit(tokens, depth, episodes)
    parts = streamed(tokens, depth, episodes, 9, ridges=[0.01]).fit()
    assert whole._head is not None
    assert parts._head is not None
    torch.testing.assert_close(parts._head.weight_CM, whole._head.weight_CM, rtol=1e-6, atol=1e-9)
    same = tokens[:1].expand_as(tokens)
    mean = streamed(same, depth, episodes, 9).fit().predict(same)
    torch.testing.assert_close(mean[0], depth.double().nanmean(0).float(), rtol=1e-6, atol=1e-6)


def test_the_sums_do_not_grow_with_the_frames_and_take_what_is_written():
    tokens, depth, episodes = planted()
    some, all_of_them = (streamed(tokens[:n], depth[:n], episodes[:n], 8) for n in (16, F))
    P, k = V * H * W, K * K
    fold = C * C + C * k + 1 + P * (C + k + 1)
    written = 8 * (2 * fold + P * (2 * C + 2 * k + 1))
    assert some.fitting.bytes == all_of_them.fitting.bytes == written


def test_fifty_thousand_frames_of_the_largest_host_fit_into_four_gib():
    """pi0: 18 blocks of width 2048, 27 of SigLIP's of width 1152, three views of 16 x 16 tokens, k = 2."""

    def head(P: int, C: int, k: int) -> int:
        return 8 * (2 * (C * C + C * k + 1 + P * (C + k + 1)) + P * (2 * C + 2 * k + 1))

    assert 19 * head(768, 2048, 4) + 28 * head(768, 1152, 4) < 4 * 2**30


def test_no_depth_and_tokens_that_are_not_finite_are_said():
    tokens, depth, episodes = planted()
    with pytest.raises(ProbeError, match="No patch lies wholly in the range of depth"):
        streamed(tokens, torch.full_like(depth, torch.nan), episodes, 9).fit()
    with pytest.raises(ProbeError, match="NaN or infinite"):
        streamed(tokens.index_fill(4, torch.tensor([2]), torch.inf), depth, episodes, 9)


def test_a_single_position_is_ordinary_ridge_regression():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 1, 6, generator=g), torch.randn(50, 1, 3, generator=g)
    fit = StreamedRidge([0.0])
    fit.add(x, y, torch.arange(50) % 5 == 0)
    weight, offset, _ = fit.head()
    ones = torch.cat([x[:, 0], torch.ones(50, 1)], 1).double()
    expected = torch.linalg.lstsq(ones, y[:, 0].double()).solution
    torch.testing.assert_close(torch.cat([weight, offset]), expected, rtol=1e-8, atol=1e-8)


def test_the_cells_of_a_token_are_those_of_its_patch():
    depth = torch.arange(V * H * K * W * K).view(1, V, H * K, W * K).float()
    assert per_token(depth, K)[0, 0, 0, 1].tolist() == [2.0, 3.0, 2.0 + W * K, 3.0 + W * K]
