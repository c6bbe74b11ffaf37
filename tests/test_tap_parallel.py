"""The tap in two processes: the gradients of DistributedDataParallel are those of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import in_ranks
from small_vla import observation, tiny_vla
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spatial_forcing.align import SpatialForcing
from spatial_forcing.features import Features


class Channels:
    """A teacher without weights: the mean colour of each quarter of an image, and its red squared."""

    width = 4

    def __call__(self, images_BV3HW: Tensor) -> Features:
        quarters_BV3hw = images_BV3HW.unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).mean((-3, -1))
        tokens_BVhwC = torch.cat([quarters_BV3hw, quarters_BV3hw[:, :, :1].square()], 2).movedim(2, -1)
        return Features(tokens_BVhwC, torch.ones(tokens_BVhwC.shape[:-1], dtype=torch.bool))


class Both(nn.Module):
    """Policy and alignment in one module, so that DistributedDataParallel sees both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.vla = tiny_vla()
        self.sf = SpatialForcing(self.vla.spatial_forcing_host(), Channels())

    def forward(self, images_BV3HW: Tensor, words_BK: Tensor, state_BS: Tensor) -> Tensor:
        with self.sf.watch():
            action_loss = self.vla(images_BV3HW, words_BK, state_BS).square().mean()
        return action_loss + self.sf(images_BV3HW)


def all_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def ddp_gradients(rank: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """What one of two processes gets, each from its half of the batch."""
    mine = [x[2 * rank : 2 * rank + 2] for x in torch.load(folder / "inputs.pt")]
    both = DistributedDataParallel(Both())
    for _ in range(2):  # the second step would meet leftovers of the first
        both.zero_grad()
        both(*mine).backward()

    # The five lines: only the policy is wrapped; the projector's gradients are averaged by the loop.
    apart = Both()
    vla = DistributedDataParallel(apart.vla)
    with apart.sf.watch():
        action_loss = vla(*mine).square().mean()
    (action_loss + apart.sf(mine[0])).backward()
    for parameter in apart.sf.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    return {"together": all_gradients(both.module), "apart": all_gradients(apart)}


@pytest.mark.system
def test_two_processes_get_the_gradients_of_one(tmp_path: Path):
    inputs = observation(batch=4)
    torch.save(inputs, tmp_path / "inputs.pt")
    ranks = in_ranks(ddp_gradients, tmp_path, folder=tmp_path)

    alone = Both()
    alone(*inputs).backward()
    expected = all_gradients(alone)
    assert any(name.startswith("sf.projector") for name in expected)
    for gradients_by_name in (found for parallel in ranks for found in parallel.values()):
        assert gradients_by_name.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients_by_name[name], gradient, atol=1e-6, rtol=1e-5)
