"""LeRobot's training configurations, from Python."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig, WandBConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.import_utils import register_third_party_plugins


def policy_config(type_name: str, forcing: dict[str, Any] | None, **options: Any) -> PreTrainedConfig:
    """Builds LeRobot's configuration of a policy: of ``sf_<type>`` with forcing options, plain if None."""
    register_third_party_plugins()
    name = type_name if forcing is None else f"sf_{type_name}"
    config_class: Any = PreTrainedConfig.get_choice_class(name)
    if forcing is not None:
        forcing_class: Any = next(f.type for f in fields(config_class) if f.name == "forcing")
        options["forcing"] = forcing_class(**forcing)
    return config_class(**options)


def train_config(
    policy: PreTrainedConfig,
    dataset_root: Path,
    output_dir: Path,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    save_every: int,
    log_every: int = 10,
) -> TrainPipelineConfig:
    """Builds a LeRobot training configuration for a local data set: offline, without uploads or trackers."""
    policy.push_to_hub = False
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=f"local/{dataset_root.name}", root=str(dataset_root)),
        policy=policy,
        output_dir=output_dir,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        # Small images that the file cache holds: a second process costs more to start than it saves.
        num_workers=0,
        log_freq=log_every,
        save_freq=save_every,
        env_eval_freq=0,
        wandb=WandBConfig(enable=False),
    )
