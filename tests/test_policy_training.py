"""LeRobot's trainer with forced policies: resume, export, LoRA, compilation, checkpointing, videos."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import make_dataset
from small_policies import CAMERAS, PICTURE, small_batch, small_config, small_parts, small_policy
from torch import Tensor

from spatial_forcing.evaluate import LoadedPolicy, roll_out
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.sim.collect import DemoSpec, collect
from spatial_forcing.sim.env import SimEnvConfig
from spatial_forcing.tap import TapError
from spatial_forcing.teachers.base import stack_views
from spatial_forcing.train import checkpoints, read_metrics, train_config, train_or_continue

# pi0's tokens and trainer are those of its whole family.
TRAINED = tuple(kind for kind in PICTURE if kind not in ("pi05", "pi0_fast"))
PROJECTOR = "spatial_forcing/projector.safetensors"
VLM_LORA = r".*\.text_model\.layers\..*\.(q|v)_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    # Four steps within one epoch, also for GR00T, which leaves out the last three frames of an episode:
    # LeRobot does not continue bit for bit across epochs.
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=7, size=(40, 60))


def run_config(config: Any, dataset: Path, out: Path, steps: int, peft: Any = None) -> Any:
    run = train_config(config, dataset, out, steps=steps, batch_size=2, seed=3, save_every=2, log_every=1)
    run.peft = peft
    return run


def train(kind: str, config: Any, dataset: Path, out: Path, steps: int = 4, peft: Any = None) -> Path:
    with small_parts(kind):
        return train_or_continue(run_config(config, dataset, out, steps, peft))


def saved(run: Path, step: int = 4) -> dict[str, dict[str, Tensor]]:
    """The weights of a checkpoint: those of the host or of its adapter, and the projector's."""
    at = checkpoints(run)[step]
    host = next(
        at / name for name in ("model.safetensors", "adapter_model.safetensors") if (at / name).exists()
    )
    return {"host": load_file(host), "projector": load_file(at / PROJECTOR)}


def interrupt(run: Path) -> Path:
    """Makes a run of four steps one that was interrupted after two. Returns the checkpoint it has left."""
    newest = run / "checkpoints" / "last"
    shutil.rmtree(checkpoints(run)[4].parent)
    newest.unlink()
    newest.symlink_to(checkpoints(run)[2].parent.name)
    return checkpoints(run)[2].parent


def assert_equal_bits(actual: dict, expected: dict) -> None:
    for part, tensors in expected.items():
        assert actual[part].keys() == tensors.keys()
        different = [name for name, value in tensors.items() if not torch.equal(actual[part][name], value)]
        assert not different, f"{part}: {different}"


@contextmanager
def observed_steps(snapshot: Path | None = None) -> Iterator[list[list[int]]]:
    """The frames of every update that LeRobot's trainer makes inside; it does what it always does.

    ``snapshot``: a folder for what is there when the first update begins, in the files of a checkpoint.
    """
    from lerobot.common.train_utils import save_training_state
    from lerobot.scripts import lerobot_train

    plain, frames = lerobot_train.update_policy, []

    def update(tracker: Any, policy: Any, batch: Any, optimizer: Any, *args: Any, **more: Any) -> Any:
        if snapshot is not None and not frames:
            save_training_state(snapshot, tracker.steps, optimizer, more["lr_scheduler"])
            policy.save_pretrained(snapshot / "pretrained_model")
            policy.config.save_pretrained(snapshot / "pretrained_model")
        frames.append(batch["index"].tolist())
        return plain(tracker, policy, batch, optimizer, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_train, "update_policy", update)
        yield frames


def random_after_a_loader_started(state: dict[str, Tensor]) -> Tensor:
    """torch's random state if a data loader is started at a saved one: it draws the seed of its workers."""
    with torch.random.fork_rng():
        torch.set_rng_state(state["torch_rng_state"])
        iter(torch.utils.data.DataLoader(torch.zeros(2)))  # type: ignore[arg-type]
        return torch.get_rng_state()


def assert_resumed_from(checkpoint: Path, snapshot: Path) -> None:
    """A resumed run begins with what was saved: weights, projector, optimizer, schedule and random state.

    But for one number: LeRobot restores the random state and then starts its data loader, which draws one.
    """
    files = [path.relative_to(checkpoint) for path in checkpoint.rglob("*.safetensors")]
    files = [path for path in files if "processor" not in path.name]
    assert {path.name for path in files} >= {"projector.safetensors", "optimizer_state.safetensors"}
    for path in files:
        there, here = load_file(checkpoint / path), load_file(snapshot / path)
        if path.name == "rng_state.safetensors":
            there["torch_rng_state"] = random_after_a_loader_started(there)
        assert_equal_bits({path.name: here}, {path.name: there})
    for path in (checkpoint / "training_state").glob("*.json"):
        there, here = (
            json.loads(path.read_text()),
            json.loads((snapshot / "training_state" / path.name).read_text()),
        )
        if path.name == "training_step.json":
            there, here = there["step"], here["step"]
        assert here == there, path.name


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
    assert "forcing" not in (at / "config.json").read_text()


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


# ---- how the forward runs ----------------------------------------------------------------------------------


def loss_and_gradients(policy: Any) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(3)
    loss, _ = policy(small_batch(policy))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def assert_same(actual: tuple[float, dict], expected: tuple[float, dict], tolerance: float) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast", "eo1", "evo1"])
def test_activation_checkpointing_changes_nothing(folder, kind):
    name = "enable_gradient_checkpointing" if kind == "evo1" else "gradient_checkpointing"
    kept = loss_and_gradients(small_policy(kind, folder, forcing={}, **{name: False}))
    again = loss_and_gradients(small_policy(kind, folder, forcing={}, **{name: True}))
    assert_same(again, kept, 1e-6)


@pytest.mark.slow
def test_a_compiled_forward_is_tapped(folder):
    sizes, small = {CAMERAS[0]: (40, 60)}, {"num_vlm_layers": 2, "forcing": {"site": "blocks.1"}}
    eager = loss_and_gradients(small_policy("smolvla", folder, sizes=sizes, **small))
    policy = small_policy("smolvla", folder, sizes=sizes, **small)
    # As compile_model=true does, which would also optimise, for minutes.
    policy.model.forward = torch.compile(policy.model.forward, backend="aot_eager")
    assert_same(loss_and_gradients(policy), eager, 1e-4)


def test_bfloat16_autocast(folder):
    policy = small_policy("smolvla", folder, forcing={})
    with torch.autocast("cpu", torch.bfloat16):
        loss, logs = policy(small_batch(policy))
    loss.backward()
    assert logs["align_loss"] == pytest.approx(1, abs=0.2)
    assert all(p.grad.isfinite().all() for p in policy.forcing.parameters())


def test_videos_train(folder, tmp_path):
    data = make_dataset(tmp_path / "videos", episodes=2, frames=4, size=(64, 96), videos=True)
    assert list(data.glob("videos/**/*.mp4"))
    run = train("smolvla", small_config("smolvla", folder, forcing={}), data, tmp_path / "run", steps=2)
    rows = read_metrics(run)
    assert len(rows) == 2
    assert all(0 < row["align_loss"] < 2 for row in rows)


@pytest.mark.parametrize("equal", [True, False])
def test_accumulated_halves_align_as_the_whole_only_if_samples_have_equally_many_valid_tokens(folder, equal):
    policy = small_policy("smolvla", folder, forcing={})
    there = torch.ones(4, dtype=torch.bool) if equal else torch.tensor([True, True, False, False])
    batch = small_batch(policy, 4) | {f"{CAMERAS[1]}_padding_mask": there}

    def alignment_gradient(part: slice) -> Tensor:
        piece = {key: value[part] for key, value in batch.items()}
        policy(piece)
        images = images_of(policy, piece)
        align = policy.forcing(
            stack_views(images.images), image_hw=images.sizes, present_BV=images.present_BV
        )
        return torch.autograd.grad(align, policy.forcing.projector.fc1.weight)[0]

    whole, first, second = (alignment_gradient(slice(*ends)) for ends in ((0, 4), (0, 2), (2, 4)))
    assert torch.allclose((first + second) / 2, whole, atol=1e-7) == equal


@pytest.mark.parametrize("kind", ["smolvla", "act"])
def test_a_forced_checkpoint_acts_in_meta_world(folder, tmp_path, kind):
    demos = collect(DemoSpec(episodes=2, frames=4, size=64), tmp_path / "demos", workers=1)
    run = train(kind, small_config(kind, folder, forcing={}), demos, tmp_path / "run", steps=2)
    with small_parts(kind):
        loaded = LoadedPolicy(checkpoints(run)[2])
    assert type(loaded.policy).__module__ == f"lerobot.policies.{kind}.modeling_{kind}"
    env = SimEnvConfig(task="reach-v3", size=64, max_steps=3)
    done = roll_out(loaded, env, episodes=2, seed=1_000_000).episodes
    assert [(one.seed, one.steps) for one in done] == [(1_000_000, 3), (1_000_001, 3)]
    assert all(one.final_distance > 0 for one in done)
