"""sf_tiny, LeRobot's type of the small policy, trained with LeRobot's trainer."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from training_configs import train_config

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from lerobot_policy_spatial_forcing.modeling_sf import forced_policy_class
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction
from spatial_forcing.train import checkpoints, train_or_continue

SfTinyConfig = CLASSES["tiny"]
SfTinyPolicy = forced_policy_class("tiny")

SMALL = {
    "image_size": 28,
    "width": 32,
    "depth": 4,
    "heads": 2,
    "device": "cpu",
    "warmup_steps": 1,
    "decay_steps": 4,
}
TEACHER = "untrained-tiny"


def stored_in(components: int) -> Extraction:
    return Extraction(codec=CodecOptions("pca-int8", components=components))


def forced_config(**forcing) -> SfTinyConfig:
    return SfTinyConfig(
        **SMALL, forcing=ForcingConfig(**{"teacher": TEACHER, "diagnostics_every": 2} | forcing)
    )


def train(config, dataset: Path, out: Path, steps: int = 4, save_every: int = 2) -> Path:
    run = train_config(
        config, dataset, out, steps=steps, batch_size=4, seed=3, save_every=save_every, log_every=1
    )
    return train_or_continue(run)


def interrupted_after(run: Path, step: int) -> None:
    """As if a run of four steps had been interrupted after ``step``: drops what came after."""
    newest = run / "checkpoints" / "last"
    shutil.rmtree(checkpoints(run)[4].parent)
    newest.unlink()
    newest.symlink_to(checkpoints(run)[step].parent.name)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[step] / "model.safetensors")


def prepared(config, dataset: Path):
    """The policy as LeRobot has it when the optimizer is made."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/small", root=dataset))
    policy.get_optim_params()
    return policy
