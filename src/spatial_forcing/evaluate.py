"""Rollouts of a saved policy through LeRobot's evaluation, and its error on held-out demonstrations."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.results import Episode, Evaluation


class PolicyError(SpatialForcingError):
    """A saved policy cannot be loaded, or does not fit the environment."""


class LoadedPolicy:
    """A policy with its processors, as LeRobot loads them from a checkpoint folder.

    Raises:
        PolicyError: the folder is not a checkpoint of a LeRobot policy, or one of its files is damaged.
        DeviceError: no such device.
    """

    def __init__(self, checkpoint: Path, device: str = "cpu"):
        checkpoint = Path(checkpoint)
        checked_device(device)
        if not (checkpoint / "config.json").is_file():
            near = [str(p.parent) for p in sorted(checkpoint.glob("**/config.json"))[:3]]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise PolicyError(f"{checkpoint} is not a policy checkpoint: it has no config.json.{hint}")
        try:
            self._load(checkpoint, device)
        except SpatialForcingError:
            raise
        except Exception as error:  # of many kinds: LeRobot's, draccus', safetensors', the disk's
            raise PolicyError(
                f"The policy in {checkpoint} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def _load(self, checkpoint: Path, device: str) -> None:
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

        from spatial_forcing.chunks import read_chunks_alone

        frames = open_dataset(root, lambda meta: resolve_delta_timestamps(self.config, meta))  # type: ignore[arg-type]
        return read_chunks_alone(frames)


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
    """Runs LeRobot's evaluation; episode i has the seed ``seed`` + i, for every policy.

    Raises:
        PolicyError: the policy has other actions or observations than the environment.
        SpatialForcingError: no episodes, a negative seed, or no such task.
    """
    from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy_all

    if episodes < 1:
        raise SpatialForcingError(f"A rollout needs at least one episode; got {episodes}.")
    if seed < 0:
        raise SpatialForcingError(f"The seed must be at least 0; got {seed}.")
    check_fit(loaded.config, env_config)
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
        finished = [
            Episode(task=env.unwrapped.task, **env.unwrapped.episodes[0])
            for tasks in envs.values()
            for vector in tasks.values()
            for env in vector.envs
        ]
    finally:
        close_envs(envs)
        del envs
        give_back_memory()
    reported = info["overall"]["pc_success"] / 100
    counted = sum(episode.success for episode in finished) / len(finished)
    assert abs(reported - counted) < 1e-6, f"LeRobot counts {reported} successes, the environments {counted}"
    return Evaluation(
        step=0,
        episodes=finished,
        videos=list(info["overall"].get("video_paths", [])),
        seconds=time.perf_counter() - start,
    )


def give_back_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    It keeps what closed environments have freed, about 20 MB each. As other things are allocated in between,
    the next ones find room for a part of themselves only, and a process that evaluates many policies grows.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def check_fit(policy: Any, env: Any) -> None:
    """Raises :class:`PolicyError` unless a policy's configuration takes what an environment shows, and acts
    as it does. Sizes of images are the policy's own business: some take any."""
    from lerobot.configs import FeatureType
    from lerobot.utils.constants import OBS_IMAGES

    offered = {env.features_map.get(key, key): feature for key, feature in env.features.items()}
    wrong = []
    for key, feature in ((policy.input_features or {}) | (policy.output_features or {})).items():
        if key.startswith(f"{OBS_IMAGES}.empty_camera"):  # LeRobot fills those with black
            continue
        if key not in offered:
            wrong.append(f"{key} is not in the environment")
        elif feature.type is not FeatureType.VISUAL and tuple(feature.shape) != offered[key].shape:
            wrong.append(f"{key} is {list(feature.shape)}, in the environment {list(offered[key].shape)}")
    if wrong:
        raise PolicyError(
            f"The policy does not fit the environment {env.type}: {'; '.join(wrong)}. The environment has: "
            f"{', '.join(sorted(offered))}."
        )
