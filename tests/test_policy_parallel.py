"""Several processes with LeRobot's real policies: two with half of the batch each do what one does."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import in_ranks
from safetensors.torch import load_file
from small_policies import small_batch, small_policy
from torch import Tensor

STEPS, BATCH = 2, 4
FSDP2_ONLY = find_spec("lerobot.distributed") is not None
# What the processes need; importing it takes long.
IMPORTED = (
    "accelerate",
    "lerobot.policies.act.modeling_act",
    "lerobot.policies.smolvla.modeling_smolvla",
    "lerobot.scripts.lerobot_train",
    "lerobot_policy_spatial_forcing.configuration_sf",
    "small_policies",
    "torch.distributed.fsdp",
)
# What is random in a forward would differ between the halves and the whole.
STILL: dict[str, dict[str, Any]] = {"smolvla": {}, "act": {"use_vae": False, "dropout": 0.0}}


def still_policy(kind: str, folder: Path, part: slice) -> Any:
    """A policy whose noise is the same in every forward: that of these samples of the batch."""
    policy = small_policy(kind, folder, forcing={}, **STILL[kind])
    if kind == "smolvla":
        draw = torch.Generator().manual_seed(5)
        noise = torch.randn(BATCH, policy.config.chunk_size, policy.config.max_action_dim, generator=draw)
        time = torch.rand(BATCH, generator=draw)
        policy.model.sample_noise = lambda shape, device: noise[part]
        policy.model.sample_time = lambda size, device: time[part]
    return policy


def part_of(batch: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {key: value[part] for key, value in batch.items()}


def with_accelerate(kind: str, folder: Path, part: slice) -> tuple[list[float], dict[str, Tensor]]:
    """(losses, weights afterwards) of LeRobot's own training step on these samples."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs
    from lerobot.scripts.lerobot_train import update_policy

    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # as LeRobot's trainer asks for it
    accelerator = Accelerator(cpu=True, kwargs_handlers=[unused])
    policy = still_policy(kind, folder, part)
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=0.05)
    batch = part_of(small_batch(policy, BATCH), part)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    losses = []
    for _ in range(STEPS):
        tracker: Any = SimpleNamespace(update_metrics=lambda logs: None)
        update_policy(tracker, policy, dict(batch), optimizer, 1.0, accelerator)
        losses.append(accelerator.reduce(torch.tensor(tracker.loss), "mean").item())
    weights = accelerator.unwrap_model(policy).state_dict()
    return losses, {name: value.detach().clone() for name, value in weights.items()}


def with_fsdp2(kind: str, folder: Path, part: slice) -> tuple[list[float], dict[str, Tensor]]:
    """The same with sharded parameters: the modules that the host calls, and the rest at the root."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    policy = still_policy(kind, folder, part)
    batch = part_of(small_batch(policy, BATCH), part)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    vlm = policy.model.vlm_with_expert.get_vlm_model()
    # SmolVLA never calls its blocks, only what is in them.
    for module in (*vlm.vision_model.encoder.layers, *(block.mlp for block in vlm.text_model.layers)):
        fully_shard(module, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    assert any(isinstance(p, DTensor) for p in policy.forcing.parameters())
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        loss, _ = policy(dict(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses, {name: value.full_tensor() for name, value in policy.state_dict().items()}


def with_fsdp1(kind: str, folder: Path, part: slice) -> tuple[list[float], dict[str, Tensor]]:
    """The same with the older sharding, whose state dict LeRobot's trainer gathers and saves."""
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

    inner = still_policy(kind, folder, part)
    batch = part_of(small_batch(inner, BATCH), part)
    inner.get_optim_params()
    policy = FullyShardedDataParallel(inner, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        loss, _ = policy.forward(dict(batch))  # as LeRobot's trainer calls it
        optimizer.zero_grad()
        loss.backward()
        policy.clip_grad_norm_(1.0)
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    # LeRobot also moves it to the CPU, where it is here; torch crashes if asked to.
    full = FullStateDictConfig(rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(policy, StateDictType.FULL_STATE_DICT, full):
        weights = policy.state_dict()
    if dist.get_rank() == 0:
        inner.save_pretrained(folder / "fsdp1", state_dict=dict(weights))
    return losses, weights


def half(rank: int, how: Callable, kind: str, folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """What one of two processes finds on its half of the batch."""
    return how(kind, folder, slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.mark.system
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (with_accelerate, "smolvla"),
        (with_accelerate, "act"),
        (with_fsdp2, "smolvla"),
        pytest.param(
            with_fsdp1,
            "smolvla",
            marks=pytest.mark.skipif(FSDP2_ONLY, reason="this release of LeRobot shards with FSDP2 alone"),
        ),
    ],
)
def test_two_processes_do_what_one_does(folder, how, kind):
    losses, weights = with_accelerate(kind, folder, slice(0, BATCH))
    ranks = in_ranks(half, how, kind, folder, folder=folder, imported=IMPORTED)
    parallel_losses, parallel_weights = ranks[0]
    assert parallel_losses == pytest.approx(losses, abs=1e-5)
    assert losses[0] != pytest.approx(losses[1], abs=1e-4), "nothing was learnt"
    assert parallel_weights.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(parallel_weights[name], value, atol=1e-5, rtol=1e-4, msg=name)
    if how is with_fsdp1:  # the gathered weights are saved as those of the plain policy
        host = {name for name in weights if not name.startswith("forcing.")}
        assert load_file(folder / "fsdp1" / "model.safetensors").keys() == host
        projector = load_file(folder / "fsdp1" / "spatial_forcing" / "projector.safetensors")
        assert {f"forcing.{name}" for name in projector} == weights.keys() - host
