"""Structure scores of teachers: what they give for features whose structure is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.structure.rank import evenly, resampled_weights, scored
from spatial_forcing.structure.scores import (
    Shares,
    far_distance,
    frame_scores,
    likeness,
    shares,
    similarity_by_distance,
)

FRAMES, VIEWS, SIDE, CHANNELS = 12, 2, 8, 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISE = draw(FRAMES, VIEWS, SIDE, SIDE, CHANNELS)
POSITION = draw(1, VIEWS, SIDE, SIDE, CHANNELS, seed=1).expand_as(NOISE)
FRAME = draw(FRAMES, 1, 1, 1, CHANNELS, seed=2).expand_as(NOISE)
COMMON = draw(CHANNELS, seed=3).expand_as(NOISE)


def smoothed(tokens_FVhwC: Tensor, times: int = 3) -> Tensor:
    """Each token with its neighbours mixed in."""
    maps = tokens_FVhwC.flatten(0, 1).movedim(-1, 1)
    for _ in range(times):
        maps = F.avg_pool2d(F.pad(maps, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return maps.movedim(1, -1).unflatten(0, tokens_FVhwC.shape[:2])


SMOOTH = smoothed(NOISE)


def shares_of(tokens: Tensor) -> Shares:
    even = torch.full((1, len(tokens)), 1 / len(tokens), dtype=torch.float64)
    return Shares(*(share[0] for share in shares(likeness(tokens, range(len(tokens))), even)))


# ---- local against distant ---------------------------------------------------------------------------------


def test_scores_are_the_printed_formulas_pair_by_pair():
    tokens = draw(1, 1, 4, 5, 6)
    unit = F.normalize(tokens[0, 0], dim=-1)
    cells = [(r, c) for r in range(4) for c in range(5)]
    by_distance: dict[int, list[float]] = {}
    for a in cells:
        for b in cells:
            by_distance.setdefault(abs(a[0] - b[0]) + abs(a[1] - b[1]), []).append(float(unit[a] @ unit[b]))
    similarity, pairs = similarity_by_distance(unit.reshape(1, 20, 6), 4, 5)
    assert pairs.tolist() == [len(by_distance[d]) for d in range(8)]
    means = [sum(by_distance[d]) / len(by_distance[d]) for d in range(8)]
    assert similarity[0].tolist() == pytest.approx(means, abs=1e-5)

    far = [cosine for d, cosines in by_distance.items() if d >= far_distance(4, 5) for cosine in cosines]
    found = frame_scores(tokens)
    assert found.local_distant_F.item() == pytest.approx(means[1] - sum(far) / len(far), abs=1e-5)
    assert found.decay_F.item() == pytest.approx(means[1] - means[2], abs=1e-5), "two distances: a line"
    contrast = (unit - unit.mean((0, 1))).square().sum(-1).mean().sqrt()
    assert found.contrast_F.item() == pytest.approx(contrast.item(), abs=1e-5)
    assert far_distance(16, 16) == 6


def test_neighbours_of_a_smooth_field_are_more_alike_and_those_of_noise_are_not():
    smooth, noise = frame_scores(SMOOTH), frame_scores(NOISE)
    assert (smooth.local_distant_F > noise.local_distant_F + 0.3).all()
    assert noise.local_distant_F.abs().max() < 0.1
    assert (smooth.decay_F > noise.decay_F).all()
    assert (smooth.effective_rank_F < noise.effective_rank_F).all()
    assert (noise.effective_rank_F <= CHANNELS).all()


def test_what_tokens_share_takes_contrast_away():
    plain, shifted = frame_scores(SMOOTH), frame_scores(SMOOTH + 5 * COMMON)
    assert (shifted.contrast_F < plain.contrast_F / 2).all()
    assert (shifted.local_distant_F < plain.local_distant_F / 2).all()
    torch.testing.assert_close(shifted.effective_rank_F, plain.effective_rank_F, rtol=1e-3, atol=0)
    assert frame_scores(COMMON).contrast_F.max() < 1e-3


# ---- shares of variance ------------------------------------------------------------------------------------


def test_features_of_one_kind_have_one_share():
    assert shares_of(COMMON).common.item() == pytest.approx(1)
    assert shares_of(COMMON).position.isnan(), "nothing varies"
    assert shares_of(POSITION).position.item() == pytest.approx(1, abs=1e-6)
    assert shares_of(FRAME).frame.item() == pytest.approx(1, abs=1e-6)
    noise = shares_of(NOISE)
    assert noise.content.item() == pytest.approx(1, abs=0.02)
    assert noise.position < 0.02, "of few frames, too: chance is taken off"
    assert noise.common < 0.01


def test_shares_of_a_mixture_are_its_variances():
    tokens = 1 * POSITION + 2 * FRAME + 3 * NOISE
    found, parts = shares_of(tokens), [1 * POSITION, 2 * FRAME, 3 * NOISE]
    variances = [(part - part.mean((0, 1, 2, 3))).square().sum(-1).mean().item() for part in parts]
    expected = [variance / sum(variances) for variance in variances]
    assert [found.position.item(), found.frame.item(), found.content.item()] == pytest.approx(
        expected, abs=0.05
    )
    assert sum(found[1:]).item() == pytest.approx(1)


def test_what_frames_of_one_episode_share_is_not_what_a_position_says():
    """Each episode has tokens of its own at every position, the same in all of its frames."""
    episodes = [f // 4 for f in range(FRAMES)]
    tokens = NOISE[: len(set(episodes))][episodes]
    weights = resampled_weights(episodes)
    assert weights is not None
    assert weights.sum(1).tolist() == pytest.approx([1] * len(weights))
    products = likeness(tokens, episodes)
    position = shares(products, weights).position
    assert position.nanmean() < 0.05
    assert position.isnan().any(), "resamples of one episode alone have nothing between episodes"
    as_if_apart = shares(likeness(tokens, range(FRAMES)), weights).position
    assert as_if_apart.nanmean() > 0.2


# ---- all of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_no_score_depends_on_the_scale(scale):
    tokens = SMOOTH + POSITION + COMMON
    episodes = [f // 3 for f in range(FRAMES)]
    plain, scaled = scored(tokens, episodes), scored(scale * tokens, episodes)
    for name, score in plain.items():
        assert scaled[name].value == pytest.approx(score.value, rel=1e-3, abs=1e-5), name
        assert scaled[name].low == pytest.approx(score.low, rel=1e-3, abs=1e-5), name


def test_intervals_are_over_episodes():
    """Frames of an episode are copies here: more of them say no more."""
    few = smoothed(draw(4, 1, SIDE, SIDE, CHANNELS, seed=5), times=1)
    many = few.repeat_interleave(6, 0)
    one, other = (scored(few, range(4)), scored(many, [f // 6 for f in range(24)]))
    for name in one:
        assert other[name].value == pytest.approx(one[name].value, abs=1e-5)
        assert (other[name].low, other[name].high) == pytest.approx((one[name].low, one[name].high), abs=1e-5)
        assert one[name].low <= one[name].value <= one[name].high
    alone = scored(few, [0] * 4)["local_distant"]
    assert (alone.low, alone.high) == (None, None)


def test_what_cannot_be_computed_is_none():
    found = scored(COMMON.float(), [0, 1] * (FRAMES // 2))
    assert found["position"].value is None
    assert found["common"].value == pytest.approx(1)
    assert all(score.value is None or math.isfinite(score.value) for score in found.values())


@pytest.mark.parametrize(
    ("lengths", "frames", "expected"),
    [
        ([4, 4], 2, [2, 6]),
        ([4, 4], 4, [1, 3, 5, 7]),
        ([1, 3], 64, [0, 1, 2, 3]),
        ([5, 0, 5], 2, [2, 7]),
        ([10] * 5, 3, [5, 25, 45]),
    ],
)
def test_frames_are_evenly_over_episodes_and_within(lengths, frames, expected):
    assert evenly(lengths, frames) == expected
