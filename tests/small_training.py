"""Small policies through LeRobot's trainer, interrupted, and what a resumed run began with."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_policies import small_parts
from torch import Tensor
from training_configs import train_config

from spatial_forcing.train import checkpoints, train_or_continue

PROJECTOR = "spatial_forcing/projector.safetensors"


def run_config(config: Any, dataset: Path, out: Path, steps: int, peft: Any = None) -> Any:
    run = train_config(config, dataset, out, steps=steps, batch_size=2, seed=3, save_every=2, log_every=1)
    run.peft = peft
    return run


def train(kind: str, config: Any, dataset: Path, out: Path, steps: int = 4, peft: Any = None) -> Path:
    train.running = run_config(config, dataset, out, steps, peft)  # type: ignore[attr-defined]
    with small_parts(kind):
        return train_or_continue(train.running)  # type: ignore[attr-defined]


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
            # LeRobot's next release also notes how the run was shared among processes.
            noted = "cfg" in signature(save_training_state).parameters
            shared = {"cfg": train.running} if noted else {}  # type: ignore[attr-defined]
            state = {"optimizer": optimizer, "scheduler": more["lr_scheduler"]}
            save_training_state(snapshot, tracker.steps, **shared, **state)
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
