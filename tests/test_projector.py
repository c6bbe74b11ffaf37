"""Laws of the projector: the statistics of its norm, and its precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spatial_forcing.align import SpatialForcing
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import Layout
from spatial_forcing.projector import Projector
from spatial_forcing.tap import Host

seeds = st.integers(0, 10_000)


@given(seed=seeds)
def test_batch_statistics_are_those_of_the_valid_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    visual_BND = 3 + 2 * torch.randn(2, 6, 4, generator=generator)
    valid_BN = torch.rand(2, 6, generator=generator) < 0.5
    valid_BN[0, :2] = True
    projector = Projector(4, 8, "batch")
    projected_BNC = projector(visual_BND, valid_BN)
    tokens_ND = visual_BND[valid_BN]
    normed_ND = (tokens_ND - tokens_ND.mean(0)) / (
        tokens_ND.var(0, unbiased=False) + projector.norm.eps
    ).sqrt()
    expected_NC = projector.fc2(F.gelu(projector.fc1(normed_ND)))
    torch.testing.assert_close(projected_BNC[valid_BN], expected_NC, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(projector.norm.running_mean, 0.1 * tokens_ND.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_tokens_leave_the_batch_statistics_alone(count):
    projector = Projector(4, 8, "batch")
    projector(3 + torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool))
    before = copy.deepcopy(projector.state_dict())
    visual_BND, valid_BN = torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    valid_BN[0, :count] = True
    in_training = projector(visual_BND, valid_BN)
    after = projector.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # Then the running statistics serve, as in evaluation.
    assert torch.equal(in_training, projector.eval()(visual_BND, valid_BN))
    normed_ND = projector.norm(visual_BND[0, :count])
    torch.testing.assert_close(in_training[0, :count], projector.fc2(F.gelu(projector.fc1(normed_ND))))


def test_projectors_have_a_norm_that_exists():
    with pytest.raises(SpatialForcingError, match="'layer' or 'batch', got 'group'"):
        Projector(4, 8, "group")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_projector_keeps_its_precision_whatever_the_hosts(dtype, norm):
    # A handful of numbers: LeRobot loads language models in bfloat16.
    projector = Projector(4, 4, norm)
    visual_BND = torch.randn(1, 3, 4).to(dtype).requires_grad_()
    valid_BN = torch.tensor([[True, True, False]])
    projected_BNC = projector(visual_BND, valid_BN)
    assert projected_BNC.dtype == torch.float32
    torch.testing.assert_close(projected_BNC, projector(visual_BND.float(), valid_BN), atol=1e-5, rtol=1e-5)
    projected_BNC.sum().backward()
    assert visual_BND.grad.dtype == dtype
    assert projector.fc1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_autocast_leaves_the_target_and_the_loss_in_float32(norm):
    sf = SpatialForcing(
        Host(
            "one token",
            [nn.Identity()],
            end := nn.Identity(),
            4,
            Layout(1, 1, 2),
            lambda hidden: hidden,
            layer=1,
        ),
        type("Width", (), {"width": 4}),
        norm=norm,
    )
    features = Features(torch.randn(1, 1, 2, 3, 4), torch.ones(1, 1, 2, 3, dtype=torch.bool))
    hidden_BLD = torch.randn(1, 2, 4, requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        with sf.watch():
            end(hidden_BLD)
        return sf(features), sf.target(features)[0]

    loss, target_BNC = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_autocast, target_autocast = run()
    assert torch.equal(target_autocast, target_BNC)
    assert loss_autocast.dtype == torch.float32
    assert loss_autocast.item() == pytest.approx(loss.item(), abs=0.02)
    loss_autocast.backward()
    assert hidden_BLD.grad.isfinite().all()
