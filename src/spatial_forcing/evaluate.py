"""Rollouts of a saved policy through LeRobot's evaluation, and its error on held-out demonstrations."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.chunks import read_chunks_without_pictures
from spatial_forcing.errors import SpatialForcingError


@dataclass
class Evaluation:
    """What a policy did. ``episodes`` holds one record an episode, in the order of the seeds.

    Attributes:
        step: training step of the checkpoint.
        heldout_error: mean absolute error of the action chunk on held-out demonstrations, in standard
            deviations of each action dimension.
        episodes: {"task", "seed", "success", "final_distance", "closest_distance", "steps"}; distances in
            metres.
        videos: files of the first few episodes.
        seconds: wall time.
    """

    step: int
    heldout_error: float | None = None
    episodes: list[dict[str, Any]] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)


class LoadedPolicy:
    """A policy with its processors, as LeRobot loads them from a checkpoint folder.

    Raises:
        SpatialForcingError: the folder is not a checkpoint of a LeRobot policy.
    """

    def __init__(self, checkpoint: Path, device: str = "cpu"):
        checkpoint = Path(checkpoint)
        if not (checkpoint / "config.json").is_file():
            near = [str(p.parent) for p in sorted(checkpoint.glob("**/config.json"))[:3]]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise SpatialForcingError(
                f"{checkpoint} is not a policy checkpoint: it has no config.json.{hint}"
            )
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies import make_pre_post_processors
        from lerobot.policies.factory import get_policy_class
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        config = PreTrainedConfig.from_pretrained(checkpoint)
        config.device, config.pretrained_path = device, checkpoint
        self.policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
        self.preprocess, self.postprocess = make_pre_post_processors(
            config,
            pretrained_path=str(checkpoint),
            preprocessor_overrides={"device_processor": {"device": device}},
        )
        self.config = config

    def batches(self, dataset: Any, batch_size: int = 64) -> Iterator[dict[str, Any]]:
        """Preprocessed batches of a LeRobotDataset, in order."""
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=False, num_workers=0)
        for batch in loader:
            yield self.preprocess(batch)

    def dataset(self, root: Path) -> Any:
        """The data set at ``root`` with the action chunks this policy is trained on."""
        from lerobot.datasets.factory import resolve_delta_timestamps
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

        read_chunks_without_pictures()
        repo_id = f"local/{Path(root).name}"
        meta = LeRobotDatasetMetadata(repo_id, root=root)
        return LeRobotDataset(
            repo_id,
            root=root,
            delta_timestamps=resolve_delta_timestamps(self.config, meta),  # type: ignore[arg-type]
            # The default looks for FFmpeg and prints a page when there is none; pictures need neither.
            video_backend="pyav",
        )


@torch.no_grad()
def heldout_error(loaded: LoadedPolicy, root: Path) -> float:
    """The policy's own action loss over a data set it was not trained on, every frame once."""
    loaded.policy.eval()
    total, frames = torch.zeros((), dtype=torch.float64), 0
    for batch in loaded.batches(loaded.dataset(root)):
        loss: Tensor = loaded.policy.forward(batch)[0]
        count = len(batch["index"])
        total, frames = total + loss.double() * count, frames + count
    return float(total / frames)


def roll_out(
    loaded: LoadedPolicy,
    env_config: Any,
    *,
    episodes: int,
    seed: int,
    videos: Path | None = None,
    video_count: int = 2,
) -> Evaluation:
    """Runs LeRobot's evaluation; episode i has the seed ``seed`` + i, for every policy."""
    from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy_all

    start = time.perf_counter()
    envs = make_env(env_config, n_envs=episodes, use_async_envs=False)
    env_preprocess, env_postprocess = make_env_pre_post_processors(env_config, loaded.config)
    try:
        info = eval_policy_all(
            envs=envs,
            policy=loaded.policy,
            env_preprocessor=env_preprocess,
            env_postprocessor=env_postprocess,
            preprocessor=loaded.preprocess,
            postprocessor=loaded.postprocess,
            n_episodes=episodes,
            max_episodes_rendered=video_count if videos else 0,
            videos_dir=videos,
            start_seed=seed,
        )
        records = [
            {"task": env.unwrapped.task, **env.unwrapped.episodes[0]}
            for tasks in envs.values()
            for vector in tasks.values()
            for env in vector.envs
        ]
    finally:
        close_envs(envs)
    reported = info["overall"]["pc_success"] / 100
    counted = sum(bool(r["success"]) for r in records) / len(records)
    assert abs(reported - counted) < 1e-6, f"LeRobot counts {reported} successes, the environments {counted}"
    return Evaluation(
        step=0,
        episodes=records,
        videos=list(info["overall"].get("video_paths", [])),
        seconds=time.perf_counter() - start,
    )
