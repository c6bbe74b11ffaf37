"""Laws of the cosine distance: what it is and what it ignores."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatial_forcing.losses.cosine import cosine_distance

scales = st.floats(1e-3, 1e3)
seeds = st.integers(0, 10_000)


def random_pair(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """projected_BNC, target_BNC, valid_BN with at least one valid token."""
    generator = torch.Generator().manual_seed(seed)
    projected, target = torch.randn(2, 2, 5, 4, generator=generator).unbind(0)
    valid = torch.rand(2, 5, generator=generator) < 0.6
    valid[0, 0] = True
    return projected, target, valid


@given(seed=seeds)
def test_the_distance_is_the_mean_of_one_minus_cosine(seed):
    projected, target, valid = random_pair(seed)
    p, y = projected[valid].double(), target[valid].double()
    expected = (1 - (p * y).sum(-1) / (p.norm(dim=-1) * y.norm(dim=-1))).mean()
    distance = cosine_distance(projected, target, valid)
    assert distance.item() == pytest.approx(expected.item(), abs=1e-6)
    assert 0 <= distance <= 2


@given(seed=seeds, scale=scales)
def test_the_distance_is_zero_iff_parallel_and_two_iff_opposite(seed, scale):
    _, target, valid = random_pair(seed)
    each_BN1 = scale * torch.rand(2, 5, 1) + 1e-3
    assert cosine_distance(each_BN1 * target, target, valid).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(-each_BN1 * target, target, valid).item() == pytest.approx(2, abs=1e-6)
    # Turning one valid token by a hundredth is already seen.
    turned = target.clone()
    turned[0, 0] += (
        0.01 * target[0, 0].norm() * F.normalize(target[0, 0].roll(1) * torch.tensor([1, -1, 1, -1]), dim=0)
    )
    assert cosine_distance(turned, target, valid) > 1e-6


@given(seed=seeds, a=scales, b=scales)
def test_the_distance_ignores_the_scale_of_either_side(seed, a, b):
    projected, target, valid = random_pair(seed)
    expected = cosine_distance(projected, target, valid).item()
    assert cosine_distance(a * projected, b * target, valid).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 0.0])
@given(seed=seeds)
def test_the_distance_ignores_what_is_not_valid(poison, seed):
    projected, target, valid = random_pair(seed)
    dirty = torch.where(valid[..., None], projected, poison).requires_grad_()
    dirty_target = torch.where(valid[..., None], target, poison)
    distance = cosine_distance(dirty, dirty_target, valid)
    distance.backward()
    assert torch.equal(distance, cosine_distance(projected, target, valid))
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~valid] == 0).all()


def test_the_distance_is_computed_in_float32():
    projected, target, valid = random_pair(0)
    distance = cosine_distance(projected.half(), target.double(), valid)
    assert distance.dtype == torch.float32
    assert distance.item() == pytest.approx(cosine_distance(projected, target, valid).item(), abs=1e-3)
