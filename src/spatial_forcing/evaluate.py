"""Evaluation of a saved policy: rollouts through LeRobot, and its error on held-out demonstrations."""

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.results import Episode, Evaluation

# Frames at a time of the held-out error; fixed, as draws go by batches.
HELDOUT_BATCH = 64


class PolicyError(SpatialForcingError):
    """A saved policy cannot be loaded, or does not fit the environment."""


class SavedPolicy:
    """The configuration and the processors of a saved policy, without its weights.

    Args:
        checkpoint: the folder.
        device: where it is to run.
        overrides: flags of LeRobot that change its configuration, without their prefix:
            ``--n_action_steps=10``.
        rename_map: the environment's names of observations -> the policy's; those that were saved if None.

    Raises:
        PolicyError: the folder is not a checkpoint of a LeRobot policy, or one of its files is damaged.
        DeviceError: no such device.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str = "cpu",
        *,
        overrides: Sequence[str] = (),
        rename_map: Mapping[str, str] | None = None,
    ):
        self.folder = checkpoint = Path(checkpoint)
        checked_device(device)
        if not (checkpoint / "config.json").is_file():
            near = [str(p.parent) for p in sorted(checkpoint.glob("**/config.json"))[:3]]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise PolicyError(f"{checkpoint} is not a policy checkpoint: it has no config.json.{hint}")
        _check_layout(checkpoint)
        try:
            self._load(device, list(overrides), rename_map)
        except SpatialForcingError:
            raise
        except Exception as error:  # of many kinds: LeRobot's, draccus', safetensors', the disk's
            raise PolicyError(
                f"The policy in {checkpoint} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def _load(self, device: str, overrides: list[str], rename_map: Mapping[str, str] | None) -> None:
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies import make_pre_post_processors
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        self.config = PreTrainedConfig.from_pretrained(self.folder, cli_overrides=overrides)
        self.config.device, self.config.pretrained_path = device, self.folder
        steps: dict[str, Any] = {"device_processor": {"device": device}}
        if rename_map:
            steps["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        self.preprocess, self.postprocess = make_pre_post_processors(
            self.config, pretrained_path=str(self.folder), preprocessor_overrides=steps
        )

    @property
    def rename_map(self) -> dict[str, str]:
        """The names of observations that its preprocessor replaces -> the policy's."""
        for step in self.preprocess.steps:
            if (names := getattr(step, "rename_map", None)) is not None:
                return dict(names)
        return {}


def _check_layout(checkpoint: Path) -> None:
    from spatial_forcing.openvla.base import is_released

    if is_released(str(checkpoint)):
        raise PolicyError(
            f"{checkpoint} is a checkpoint of OpenVLA in the released layout, expected one of LeRobot's. "
            f"Convert it first: spatial-forcing convert --checkpoint {checkpoint} --out <folder>"
        )


class LoadedPolicy(SavedPolicy):
    """A policy with its processors, as LeRobot loads them from a folder; see :class:`SavedPolicy`."""

    def _load(self, device: str, overrides: list[str], rename_map: Mapping[str, str] | None) -> None:
        from lerobot.policies.factory import get_policy_class

        super()._load(device, overrides, rename_map)
        of_type = get_policy_class(self.config.type)
        if self.config.use_peft:
            self.policy = with_adapter(of_type, self.folder, self.config)
        else:
            self.policy = of_type.from_pretrained(self.folder, config=self.config)

    def batches(
        self, dataset: Any, batch_size: int = 64, rename_map: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Preprocessed batches of a LeRobotDataset, in order.

        Args:
            dataset: the frames.
            batch_size: frames at a time.
            rename_map: the trainer's ``--rename_map``.
        """
        from spatial_forcing.patches.versions import renames_before_preprocessing

        renamed = rename_map if rename_map and renames_before_preprocessing() else {}
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=False,
            num_workers=0,
            generator=torch.Generator(),  # for the seed of workers, which would be torch's next number
        )
        for batch in loader:
            yield self.preprocess({renamed.get(name, name): value for name, value in batch.items()})

    def dataset(self, dataset: Path | str, episodes: Sequence[int] | None = None) -> Any:
        """Opens a data set, or some of its episodes, with the action chunks this policy is trained on."""
        from lerobot.datasets.factory import resolve_delta_timestamps

        from spatial_forcing.chunks import read_chunks_alone

        frames = open_dataset(
            dataset,
            lambda meta: resolve_delta_timestamps(self.config, meta),  # type: ignore[arg-type]
            episodes=episodes,
        )
        return read_chunks_alone(frames)


def with_adapter(of_type: Any, checkpoint: Path, config: Any) -> Any:
    """Loads an adapter (LoRA) with the policy that it was trained on."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise MissingDependencyError("peft", "policies") from error
    adapter = PeftConfig.from_pretrained(str(checkpoint))
    base = of_type.from_pretrained(adapter.base_model_name_or_path, config=config, revision=adapter.revision)
    return PeftModel.from_pretrained(base, str(checkpoint), config=adapter).to(config.device)


@contextmanager
def fixed_draws(seed: int) -> Iterator[None]:
    """Context with torch's random numbers seeded; afterwards they continue as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Heldout(NamedTuple):
    """Measures of a policy on held-out demonstrations.

    Attributes:
        error: mean absolute error of the sampled action chunk, over steps inside the episode, in the units of
            the policy's normalised actions (standard deviations for most).
        loss: the policy's own training loss.
        constant_error: what the error would be of predicting the mean of these actions, whatever is seen.
    """

    error: float
    loss: float
    constant_error: float


@torch.no_grad()
def heldout_measures(
    loaded: LoadedPolicy, frames: Any, *, most: int | None = None, rename_map: Mapping[str, str] | None = None
) -> Heldout:
    """Action error and training loss of a policy on held-out demonstrations.

    Noise and time of flow and diffusion policies are drawn from seeds that depend on the batch alone, so that
    policies, and checkpoints of one, are compared on the same draws.

    Args:
        loaded: the policy.
        frames: the data set, with the action chunks that the policy is trained on; see
            :meth:`LoadedPolicy.dataset`.
        most: at most so many frames are looked at, evenly spread; all if None.
        rename_map: the data set's names of observations -> the policy's, where they differ.

    Raises:
        PolicyError: no frames.
    """
    from lerobot.utils.constants import ACTION

    count = len(frames)
    if not count:
        raise PolicyError("There is no held-out frame to measure on.")
    if most is not None and most < count:
        frames = torch.utils.data.Subset(frames, torch.linspace(0, count - 1, most).round().int().tolist())
    loaded.policy.eval()
    error, loss, seen = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    actions = []
    for number, batch in enumerate(loaded.batches(frames, HELDOUT_BATCH, rename_map)):
        size = len(batch["index"])
        with fixed_draws(number):
            loss += loaded.policy.forward(dict(batch))[0].double().cpu() * size
        with fixed_draws(number):
            error += chunk_error(loaded.policy, dict(batch)).double().cpu() * size
        seen += size
        actions.append(batch[ACTION][inside_of(batch)].float().cpu())
    actions_nA = torch.cat(actions)
    constant = (actions_nA - actions_nA.mean(0)).abs().mean()
    return Heldout(float(error / seen), float(loss / seen), float(constant))


def inside_of(batch: dict[str, Any]) -> Tensor:
    """inside_BT: which steps of a batch's action chunks are inside the episode."""
    from lerobot.utils.constants import ACTION

    action_BTA = batch[ACTION]
    none_BT = torch.zeros(action_BTA.shape[:2], dtype=torch.bool)
    return ~batch.get("action_is_pad", none_BT).to(action_BTA.device)


def chunk_error(policy: Any, batch: dict[str, Any]) -> Tensor:
    """Mean absolute error of the chunk that a policy samples, over steps inside the episode."""
    from lerobot.utils.constants import ACTION

    policy.reset()
    inside_BT, action_BTA = inside_of(batch), batch.pop(ACTION)
    batch.pop("action_is_pad", None)
    sampled_BTA = policy.predict_action_chunk(batch)
    policy.reset()
    # Some policies sample more actions than they are trained on, or pad their width.
    T, A = (min(sizes) for sizes in zip(sampled_BTA.shape[1:], action_BTA.shape[1:], strict=True))
    error_BT = (sampled_BTA[:, :T, :A] - action_BTA[:, :T, :A]).abs().mean(-1)
    return (error_BT * inside_BT[:, :T]).sum() / inside_BT[:, :T].sum().clamp(min=1)


def roll_out(
    loaded: LoadedPolicy,
    env_config: Any,
    *,
    episodes: int,
    seed: int,
    at_once: int | None = None,
    videos: Path | None = None,
    video_count: int = 2,
) -> Evaluation:
    """Rolls out a policy with LeRobot's evaluation; episode i of a task has seed ``seed`` + i for any policy.

    Args:
        loaded: the policy.
        env_config: any of LeRobot's.
        episodes, seed: how many per task, and the seed of the first.
        at_once: environments side by side; as many as episodes if None.
        videos: folder for videos; none are recorded if None.
        video_count: episodes per task that are recorded.

    Raises:
        PolicyError: the policy does not fit the environment, or that cannot be made.
        SpatialForcingError: no episodes, a negative seed, or no such task.
    """
    from lerobot.envs import close_envs, make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy_all

    if episodes < 1:
        raise SpatialForcingError(f"A rollout needs at least one episode; got {episodes}.")
    if seed < 0:
        raise SpatialForcingError(f"The seed must be at least 0; got {seed}.")
    check_fit(loaded.config, env_config, loaded.rename_map)
    start = time.perf_counter()
    envs = made_env(env_config, min(episodes, at_once or episodes), seed)
    env_preprocess, env_postprocess = make_env_pre_post_processors(env_config, loaded.config)
    try:
        with fixed_draws(seed):
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
        finished = [episode for task in info["per_task"] for episode in task_episodes(task, envs, seed)]
    finally:
        close_envs(envs)
        del envs
        give_back_memory()
    return Evaluation(
        step=0,
        episodes=finished,
        videos=list(info["overall"].get("video_paths", [])),
        seconds=time.perf_counter() - start,
    )


def made_env(env_config: Any, at_once: int, first_seed: int | None = None) -> dict[str, dict[int, Any]]:
    """Creates LeRobot's environments, by suite and task; LIBERO's as :class:`LiberoEpisodes`.

    Args:
        env_config: any of LeRobot's.
        at_once: environments side by side, per task.
        first_seed: of the episode that begins from the first of LIBERO's initial states.

    Raises:
        PolicyError: they cannot be created; with the reason that LeRobot or the simulator gives.
        LiberoError: LIBERO is not installed, or would wait for answers on the console.
    """
    from lerobot.envs import make_env

    libero = env_config.type.startswith("libero")
    if libero:
        from spatial_forcing.libero.lerobot_env import check_env

        check_env(env_config)
    try:
        envs = make_env(env_config, n_envs=at_once, use_async_envs=False)
    except SpatialForcingError:
        raise
    except Exception as error:  # of many kinds: each simulator has its own
        raise PolicyError(not_made(env_config, error)) from error
    if libero:
        from spatial_forcing.libero.episodes import with_episodes

        with_episodes(envs, first_seed)
    return envs


def not_made(env_config: Any, error: Exception) -> str:
    """Message about an environment that LeRobot or the simulator could not make."""
    said = (
        f"The environment {env_config.type} cannot be made: {type(error).__name__}: {str(error).rstrip('.')}."
    )
    if env_config.type.startswith("libero"):
        from spatial_forcing.libero.lerobot_env import advice_of

        return f"{said} {advice_of(env_config)}"
    if isinstance(error, ImportError):
        return f"{said} Install it: pip install 'lerobot[{env_config.type}]'."
    return f"{said} If it is not installed: pip install 'lerobot[{env_config.type}]'."


def kept_by(env: Any) -> list[dict[str, Any]]:
    """The records of its episodes that an environment, or a wrapper of it, keeps; its own list."""
    return env.get_wrapper_attr("episodes") if env.has_wrapper_attr("episodes") else []


def task_episodes(task: dict[str, Any], envs: dict[str, dict[int, Any]], seed: int) -> list[Episode]:
    """Episode records of a task, from LeRobot's results and from environments that keep their own."""
    group, number, said = task["task_group"], task["task_id"], task["metrics"]
    name = group if len(envs[group]) == 1 else f"{group}/{number}"
    kept: list[dict[str, Any]] = [
        episode for env in getattr(envs[group][number], "envs", []) for episode in kept_by(env)
    ]
    by_seed = {episode["seed"]: episode for episode in kept}
    found = []
    for i, success in enumerate(said["successes"]):
        more: dict[str, Any] = by_seed.get(seed + i, {"seed": seed + i, "success": bool(success)})
        assert more["success"] == bool(success), f"LeRobot and {name} disagree about episode {seed + i}"
        more |= {"sum_reward": float(said["sum_rewards"][i]), "max_reward": float(said["max_rewards"][i])}
        found.append(Episode(task=name, **more))
    return found


def give_back_memory() -> None:
    """Returns freed memory to the operating system, where the C library can (glibc).

    It keeps what closed environments have freed, about 20 MB each. As other things are allocated in between,
    the next ones find room for a part of themselves only, and a process that evaluates many policies grows.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def check_fit(policy: Any, env: Any, rename_map: Mapping[str, str]) -> None:
    """Raises :class:`PolicyError` unless a policy's inputs and actions fit an environment's. Image sizes are
    not compared: some policies take any. Nor is what the environment's processors make of its observations
    (LIBERO's state): that shows in an observation, see ``evaluation.guards``."""
    from lerobot.configs import FeatureType
    from lerobot.utils.constants import OBS_IMAGES

    named = {env.features_map.get(key, key): feature for key, feature in env.features.items()}
    offered = {rename_map.get(key, key): feature for key, feature in named.items()}
    made = {key.rpartition(".")[0] for key in offered}  # observation.state of observation.state.eef_pos
    wrong = []
    for key, feature in ((policy.input_features or {}) | (policy.output_features or {})).items():
        if key.startswith(f"{OBS_IMAGES}.empty_camera"):  # LeRobot fills those with black
            continue
        if key not in offered and key not in made:
            wrong.append(f"{key} is not in the environment")
        elif key not in offered or feature.type is FeatureType.VISUAL:
            continue
        elif tuple(feature.shape) != offered[key].shape:
            wrong.append(f"{key} is {list(feature.shape)}, in the environment {list(offered[key].shape)}")
    if wrong:
        raise PolicyError(
            f"The policy does not fit the environment {env.type}: {'; '.join(wrong)}. The environment has: "
            f"{', '.join(sorted(offered))}."
        )
