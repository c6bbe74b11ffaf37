"""LeRobot's trainer with forced policies: resume and export, with LoRA and without."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import make_dataset
from small_policies import PICTURE, small_batch, small_config, small_policy
from small_training import assert_equal_bits, assert_resumed_from, interrupt, observed_steps, saved, train
from torch import Tensor

from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.probe.policies import all_sites
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.tap import TapError
from spatial_forcing.teachers.base import stack_views
from spatial_forcing.train import checkpoints, read_metrics

# pi0's tokens and trainer are those of its whole family.
TRAINED = tuple(kind for kind in PICTURE if kind not in ("pi05", "pi0_fast"))
VLM_LORA = r".*\.text_model\.layers\..*\.(q|v)_proj"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    # Four steps within one epoch, also for GR00T, which leaves out the last three frames of an episode:
    # LeRobot does not continue bit for bit across epochs.
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=7, size=(40, 60))


@pytest.fixture(scope="module")
def runs(folder, dataset, tmp_path_factory) -> Callable[[str], Path]:
    """kind -> run of four steps with forcing, trained when first asked for; ``frames[kind]`` of each step."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def run_of(kind: str) -> Path:
        if kind not in done:
            with observed_steps() as run_of.frames[kind]:
                done[kind] = train(kind, small_config(kind, folder, forcing={}), dataset, root / kind)
        return done[kind]

    run_of.frames = {}
    return run_of


# ---- resume and export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAINED)
def test_a_resumed_run_begins_with_exactly_what_was_saved(runs, folder, dataset, tmp_path, kind):
    run = runs(kind)
    early, checkpoint = saved(run, 2), interrupt(run)
    with observed_steps(tmp_path) as frames:
        train(kind, small_config(kind, folder, forcing={}), dataset, run)
    assert_resumed_from(checkpoint, tmp_path)
    assert frames == runs.frames[kind][2:]
    for part, tensors in saved(run).items():
        assert any(not torch.equal(early[part][name], value) for name, value in tensors.items())
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["align_loss"] > 0 for row in rows)


def test_a_policy_that_draws_no_random_numbers_continues_bit_for_bit(folder, dataset, tmp_path):
    # One that draws does not, as plain LeRobot does not: its data loader has drawn one before.
    quiet = {"use_vae": False, "dropout": 0.0, "forcing": {}}
    run = train("act", small_config("act", folder, **quiet), dataset, tmp_path / "run")
    straight = saved(run)
    interrupt(run)
    train("act", small_config("act", folder, **quiet), dataset, run)
    assert_equal_bits(saved(run), straight)


def test_the_projector_continues_where_the_optimizer_was_made_without_asking(runs, folder, dataset):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    policy = make_policy(config_on_top_of(folder, runs("smolvla")), ds_meta=meta).train()
    policy(small_batch(policy))
    for name, value in saved(runs("smolvla"))["projector"].items():
        assert torch.equal(policy.forcing.state_dict()[name], value)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_checkpoint_is_the_hosts_own(runs, folder, tmp_path, kind):
    at = checkpoints(runs(kind))[4]
    small_policy(kind, folder).save_pretrained(tmp_path)
    assert load_file(at / "model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()
    config, plain = (json.loads((path / "config.json").read_text()) for path in (at, tmp_path))
    assert config["type"] == kind
    assert config.keys() == plain.keys()
    assert "forcing" not in config


PLAIN_LEROBOT = """
import sys
from pathlib import Path

OURS = ("spatial_forcing", "lerobot_policy_spatial_forcing")


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


sys.meta_path.insert(0, Absent())

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies import make_policy

root, inputs, outputs, *folders = sys.argv[1:]
found, batches = {}, torch.load(inputs)
for folder in folders:
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/small", root=root)).eval()
    torch.manual_seed(0)
    found[folder] = policy.predict_action_chunk(batches[folder])
    if (Path(folder) / "adapter_config.json").exists():
        from peft import AutoPeftModel

        policy = AutoPeftModel.from_pretrained(folder, import_allowlist=["lerobot"]).eval()
        torch.manual_seed(0)
        assert torch.equal(policy.predict_action_chunk(batches[folder]), found[folder])
assert not [name for name in sys.modules if name.partition(".")[0] in OURS]
torch.save(found, outputs)
"""


def forced_actions(
    kind: str, folder: Path, dataset: Path, at: Path, batch: dict, peft: bool = False
) -> Tensor:
    """What the training object, loaded from the checkpoint ``at``, does."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    config = small_config(kind, folder, forcing={})
    config.pretrained_path, config.use_peft = at, peft
    config.input_features = PreTrainedConfig.from_pretrained(at).input_features
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/small", root=dataset)).eval()
    torch.manual_seed(0)
    return policy.predict_action_chunk(dict(batch))


@pytest.mark.system
@pytest.mark.parametrize("kinds", [("smolvla", "act", "eo1", "evo1"), ("groot",)], ids=" ".join)
def test_plain_lerobot_does_the_same_where_we_are_not_installed(
    runs, request, folder, dataset, tmp_path, kinds
):
    cases = {checkpoints(runs(kind))[4]: (kind, False) for kind in kinds}
    if "smolvla" in kinds:
        cases[checkpoints(request.getfixturevalue("lora_run"))[4]] = ("smolvla", True)
    batches = {}
    for at, (kind, _) in cases.items():
        batch = small_batch(small_policy(kind, folder))
        batches[str(at)] = {k: v for k, v in batch.items() if k not in ("action", "action_is_pad")}
    torch.save(batches, tmp_path / "inputs.pt")
    arguments = [dataset, tmp_path / "inputs.pt", tmp_path / "outputs.pt", *cases]
    command = [sys.executable, "-W", "ignore", "-c", PLAIN_LEROBOT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "outputs.pt")
    for at, (kind, peft) in cases.items():
        expected = forced_actions(kind, folder, dataset, at, batches[str(at)], peft)
        assert torch.equal(found[str(at)], expected), kind


# ---- LoRA --------------------------------------------------------------------------------------------------


def lora(target_modules: Any = VLM_LORA) -> Any:
    from lerobot.configs.default import PeftConfig

    return PeftConfig(target_modules=target_modules, r=2)


def config_on_top_of(folder: Path, base: Path) -> Any:
    config = small_config("smolvla", folder, forcing={})
    config.pretrained_path = checkpoints(base)[4]
    return config


@pytest.fixture(scope="module")
def lora_run(runs, folder, dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    return train("smolvla", config_on_top_of(folder, runs("smolvla")), dataset, out, peft=lora())


def test_with_lora_only_the_adapter_and_the_projector_train(runs, folder, dataset):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    policy = make_policy(config_on_top_of(folder, runs("smolvla")), ds_meta=meta)
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"target_modules": VLM_LORA, "r": 2}).train()
    given = {id(p) for p in wrapped.get_optim_params() if p.requires_grad}
    trains = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert given == {id(p) for p in trains.values()}
    assert {"lora" if ".lora_" in n else "projector" if ".forcing." in n else n for n in trains} == {
        "lora",
        "projector",
    }
    _, logs = wrapped.forward(small_batch(policy))
    assert logs["gradient_ratio"] > 0
    images = images_of(policy, small_batch(policy))
    policy.forcing(stack_views(images.images), image_hw=images.sizes).backward()
    # B starts at zero, so that the first gradient is all B's.
    reached = {name for name, p in trains.items() if "lora_B" in name and p.grad is not None and p.grad.any()}
    layers = {int(name.split(".layers.")[1].partition(".")[0]) for name in reached}
    assert layers == {0, 1, 2}, "the blocks before the tap"


def test_an_adapter_checkpoint_is_loaded_to_be_evaluated_and_probed(lora_run):
    loaded = LoadedPolicy(checkpoints(lora_run)[4])
    adapted = {name for name, _ in loaded.policy.named_parameters() if ".lora_" in name}
    assert adapted
    host = host_of(loaded.policy)
    assert all_sites(loaded.policy)[-1] == f"blocks.{len(host.blocks)}"
    inside = loaded.policy.base_model.model
    assert host.blocks is host_of(inside).blocks


def test_an_adapter_checkpoint_has_nothing_of_ours(lora_run, runs):
    at = checkpoints(lora_run)[4]
    assert json.loads((at / "config.json").read_text())["type"] == "smolvla"
    assert not (at / "model.safetensors").exists()
    assert json.loads((at / "adapter_config.json").read_text())["auto_mapping"] == {
        "base_model_class": "SmolVLAPolicy",
        "parent_library": "lerobot.policies.smolvla.modeling_smolvla",
    }
    assert "spatial_forcing" not in (at / "adapter_config.json").read_text()
    adapter, projector = saved(lora_run)["host"], saved(lora_run)["projector"]
    assert adapter
    assert all("lora_" in name and "text_model.layers" in name for name in adapter)
    assert projector.keys() == saved(runs("smolvla"))["projector"].keys()
    before = saved(lora_run, 2)
    assert any(not torch.equal(before["host"][name], value) for name, value in adapter.items())
    assert any(not torch.equal(before["projector"][name], value) for name, value in projector.items())


@pytest.mark.parametrize("targets", [VLM_LORA, ["q_proj", "fc1"]], ids=["pattern", "names"])
def test_a_resumed_lora_run_begins_with_exactly_what_was_saved(
    runs, lora_run, folder, dataset, tmp_path, targets
):
    # The projector has an fc1, too: the adapter must pass it by.
    config = config_on_top_of(folder, runs("smolvla"))
    run = lora_run
    if targets != VLM_LORA:
        run = train("smolvla", config, dataset, tmp_path / "run", peft=lora(targets))
    assert not [name for name in saved(run)["projector"] if "lora" in name]
    checkpoint = interrupt(run)
    with observed_steps(tmp_path / "snapshot") as frames:
        train("smolvla", config, dataset, run)
    assert_resumed_from(checkpoint, tmp_path / "snapshot")
    assert len(frames) == 2
    assert saved(run).keys() == {"host", "projector"}


def test_lerobots_own_lora_targets_leave_the_visual_tokens_frozen(runs, folder, dataset, tmp_path):
    config = config_on_top_of(folder, runs("smolvla"))
    with pytest.raises(TapError, match=r"--policy\.train_expert_only=false.*--peft\.target_modules"):
        train("smolvla", config, dataset, tmp_path / "run", peft=lora(None))
