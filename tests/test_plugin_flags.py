"""Forcing flags beside --policy.path: a plain checkpoint is trained on with them."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file
from small_plugin import SMALL, train

from spatial_forcing import patches
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.tiny_policy import TinyConfig
from spatial_forcing.train import checkpoints
from spatial_forcing.train_command import TrainCommand


@pytest.fixture(scope="module")
def plain_checkpoint(dataset, tmp_path_factory) -> Path:
    out = train(
        TinyConfig(**SMALL | {"chunk_size": 3, "n_action_steps": 3}),
        dataset,
        tmp_path_factory.mktemp("plain") / "run",
        2,
    )
    return checkpoints(out)[2]


def test_a_plain_checkpoint_is_trained_on_with_forcing_flags(
    plain_checkpoint, dataset, cache, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    flags = [
        f"--policy.path={plain_checkpoint}", f"--policy.forcing.cache={cache}",
        "--policy.forcing.loss_weight=0.3", "--policy.push_to_hub=false",
        "--dataset.repo_id=local/small", f"--dataset.root={dataset}",
        f"--output_dir={out}", "--steps=2", "--batch_size=4", "--num_workers=0", "--save_freq=2",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", sys.argv)
    TrainCommand().run(flags)
    after = checkpoints(out)[2]
    config = json.loads((after / "config.json").read_text())
    assert (config["type"], config["chunk_size"]) == ("tiny", 3)
    assert "forcing" not in config
    assert json.loads((after / "spatial_forcing" / "forcing.json").read_text())["loss_weight"] == 0.3
    moved = load_file(after / "model.safetensors")
    start = load_file(plain_checkpoint / "model.safetensors")
    # Two small steps away from where the checkpoint was, not a policy started anew.
    assert moved.keys() == start.keys()
    assert 0 < max((moved[k] - start[k]).abs().max().item() for k in start) < 0.01


def test_without_forcing_flags_a_checkpoint_is_what_it_says(plain_checkpoint):
    patches.take_forcing_flags()
    assert type(PreTrainedConfig.from_pretrained(plain_checkpoint)) is TinyConfig
    lower = PreTrainedConfig.from_pretrained(plain_checkpoint, cli_overrides=["--n_action_steps=2"])
    assert type(lower) is TinyConfig
    assert lower.n_action_steps == 2


def test_forcing_flags_for_a_policy_without_a_record_name_those_that_have_one(plain_checkpoint, tmp_path):
    shutil.copytree(plain_checkpoint, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"type": "diffusion"}))
    patches.take_forcing_flags()
    with pytest.raises(SpatialForcingError, match=r"'diffusion'.*no record of. It has: act, .*pi05, .*tiny"):
        PreTrainedConfig.from_pretrained(tmp_path / "other", cli_overrides=["--forcing.loss_weight=0.3"])
