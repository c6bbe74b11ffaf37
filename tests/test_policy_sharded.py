"""LeRobot's own trainer on two processes, with FSDP2 where LeRobot has it: what it saves, and how it resumes.

Accelerate shards on accelerators only. Here it is told that processes on the CPU are some; everything else,
from the flags to the checkpoints, is LeRobot's and accelerate's own.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_ranks
from safetensors.torch import load_file
from small_dataset import make_dataset
from small_plugin import SMALL, TEACHER
from training_configs import policy_config, train_config

from spatial_forcing.cache.extract import extract
from spatial_forcing.hosts.tiny_policy import TinyConfig
from spatial_forcing.teachers import load_teacher
from spatial_forcing.train import checkpoints, command_line

SHARDS = find_spec("lerobot.distributed") is not None
sharded = pytest.mark.skipif(not SHARDS, reason="LeRobot's trainer has no FSDP2 in this version (0.6.1)")
# What the processes need; importing it takes long.
IMPORTED = (
    "accelerate",
    "lerobot.scripts.lerobot_train",
    "lerobot_policy_spatial_forcing",
    "torch.distributed.fsdp",
)
# Without padded actions the halves of a batch weigh the same.
UNPADDED = SMALL | {"chunk_size": 1, "n_action_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sharded")
    make_dataset(root / "small", episodes=2, frames=8)
    extract(root / "small", load_teacher(TEACHER), TEACHER, root / "features")
    return root


def train(
    folder: Path, name: str, processes: int, extra: dict[str, Any], batch_size: int, forced: bool = True
):
    """Runs LeRobot's trainer in this process for 4 steps, or continues its last checkpoint."""
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.optim.optimizers import SGDConfig
    from lerobot.scripts import lerobot_train

    out = folder / name
    last = out / "checkpoints" / "last" / "pretrained_model"
    if last.is_dir():
        with command_line(f"--config_path={last / 'train_config.json'}"):
            config = TrainPipelineConfig.from_pretrained(str(last))
            config.resume = True
            config.policy.forcing.new_projector = extra.get("new_projector", False)
            config.policy.forcing.site = extra.get("site", config.policy.forcing.site)
            lerobot_train.train(config)
        return
    forcing = {"cache": str(folder / "features"), "diagnostics_every": 2} if forced else None
    config = train_config(
        policy_config("tiny", forcing, **UNPADDED),
        folder / "small",
        out,
        steps=4,
        batch_size=batch_size,
        seed=3,
        save_every=extra.get("save_every", 2),
        log_every=1,
    )
    if extra.get("shard"):
        from lerobot.configs.parallelism import ParallelismConfig
        from lerobot.configs.train import CheckpointFormat

        config.parallelism = ParallelismConfig(dp_shard=processes)
        config.checkpoint_format = CheckpointFormat(extra.get("format", "safetensors"))
    if "average" in extra:
        config.ema.enable, config.ema.decay = True, extra["average"]
    if "accumulate" in extra:
        config.accelerator.gradient_accumulation.steps = extra["accumulate"]
    # Adam makes a whole step of a gradient that is rounding alone.
    sgd = SGDConfig(lr=0.05, momentum=0.9)
    with command_line(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TinyConfig, "get_optimizer_preset", lambda config: sgd)
        lerobot_train.train(config)


def train_rank(rank: int, folder: Path, name: str, extra: dict[str, Any]) -> None:
    """One of two processes, each with half of the batch."""
    from accelerate.state import DistributedType, PartialState

    if extra.get("shard"):
        from lerobot.distributed import checkpoint

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
            )
            patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
            # From an accelerator weights are copied to the CPU. Here they stay views of what was gathered,
            # which is longer where a weight does not divide evenly, and safetensors refuses those.
            gather = checkpoint.full_model_state_dict
            patch.setattr(
                checkpoint,
                "full_model_state_dict",
                lambda module: {name: value.clone() for name, value in gather(module).items()},
            )
            train(folder, name, 2, extra, batch_size=2)
    else:
        train(folder, name, 2, extra, batch_size=2)


def on_two(folder: Path, name: str, **extra: Any) -> Path:
    in_ranks(train_rank, folder, name, extra, folder=folder, imported=IMPORTED)
    return folder / name


def all_of(at: Path) -> dict[str, torch.Tensor]:
    projector = load_file(at / "spatial_forcing" / "projector.safetensors")
    return load_file(at / "model.safetensors") | {
        f"forcing.{name}": value for name, value in projector.items()
    }


def interrupt(run: Path) -> None:
    """As if the run had ended after its first checkpoint."""
    shutil.rmtree(run / "checkpoints" / "000004")
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "last").symlink_to("000002")


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    """One process with the whole batch."""
    train(folder, "alone", 1, {}, batch_size=4)
    return folder / "alone"


def assert_close(run: Path, other: Path, steps: tuple[int, ...] = (2, 4)) -> None:
    for step in steps:
        ours, theirs = all_of(checkpoints(run)[step]), all_of(checkpoints(other)[step])
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.system
@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp2", marks=sharded)])
def test_two_processes_save_what_one_saves_and_resume(folder, alone, how):
    run = on_two(folder, how, shard=how == "fsdp2")
    assert_close(run, alone)
    at = checkpoints(run)[4]
    config = json.loads((at / "config.json").read_text())
    assert config["type"] == "tiny"
    assert "forcing" not in config
    before = all_of(at)
    interrupt(run)
    on_two(folder, how, shard=how == "fsdp2")
    after = all_of(checkpoints(run)[4])
    assert all(torch.equal(after[name], value) for name, value in before.items())


@sharded
def test_sharded_checkpoints_resume_with_the_projector_among_the_shards(folder, alone):
    from lerobot.distributed.checkpoint import dcp_to_safetensors

    run = on_two(folder, "dcp", shard=True, format="dcp")
    at = checkpoints(run)[4]
    assert not (at / "model.safetensors").exists()
    assert [path.name for path in (at / "spatial_forcing").iterdir()] == ["forcing.json"]

    def merged(step: int, name: str) -> dict[str, torch.Tensor]:
        folder_of = checkpoints(run)[step]
        return load_file(dcp_to_safetensors(folder_of / "pytorch_model_fsdp_0", folder / name))

    straight, expected = merged(4, "straight"), all_of(checkpoints(alone)[4])
    assert straight.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(straight[name], value, atol=2e-5, rtol=1e-4, msg=name)
    interrupt(run)
    with pytest.raises(
        pytest.fail.Exception, match=r"site: blocks\.3 there, blocks\.1 here\).*lies among the policy's own"
    ):
        on_two(folder, "dcp", shard=True, site="blocks.1", new_projector=True)
    on_two(folder, "dcp", shard=True)
    assert all(torch.equal(merged(4, "resumed")[name], value) for name, value in straight.items())


@sharded
def test_what_is_sharded_on_its_own_is_the_hosts_choice():
    from lerobot.policies.factory import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    assert get_policy_class("sf_act")._fsdp_wrap_modules == get_policy_class("act")._fsdp_wrap_modules
    assert get_policy_class("sf_tiny")._fsdp_wrap_modules == ["Block"]


# ---- what else LeRobot's next trainer can do, in one process --------------------------------------------


@sharded
def test_averaged_weights_are_a_plain_checkpoint_with_a_projector(folder, alone):
    train(folder, "average", 1, {"average": 0.5}, batch_size=4)
    assert_close(folder / "average", alone)  # averaging changes nothing of what trains
    live = checkpoints(folder / "average")[4]
    averaged = live.parent / "pretrained_model_ema"
    assert json.loads((averaged / "config.json").read_text())["type"] == "tiny"
    ours, theirs = all_of(averaged), all_of(live)
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["forcing.projector.fc1.weight"], theirs["forcing.projector.fc1.weight"])


@sharded
def test_accumulated_steps_move_policy_and_projector_together(folder):
    train(folder, "accumulated", 1, {"accumulate": 2, "save_every": 1}, batch_size=2)
    at = {step: all_of(path) for step, path in checkpoints(folder / "accumulated").items()}
    for name in ("forcing.projector.fc1.weight", "model.patches.weight"):
        moved = [not torch.equal(at[step][name], at[step + 1][name]) for step in (1, 2, 3)]
        assert moved == [True, False, True], name
