"""Rollouts of a policy through LeRobot's evaluation, in any environment of LeRobot."""

import ctypes
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.heldout import fixed_draws
from spatial_forcing.results import Episode, Evaluation
from spatial_forcing.saved_policy import LoadedPolicy, PolicyError


def roll_out(
    loaded: LoadedPolicy,
    env_config: Any,
    *,
    episodes: int,
    seed: int,
    at_once: int | None = None,
    videos: Path | None = None,
    video_count: int = 2,
    going: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Rolls out a policy with LeRobot's evaluation; episode i of a task has seed ``seed`` + i for any policy.

    Args:
        loaded: the policy.
        env_config: any of LeRobot's.
        episodes, seed: how many per task, and the seed of the first.
        at_once: environments side by side; as many as episodes if None.
        videos: folder for videos; none are recorded if None.
        video_count: episodes per task that are recorded.
        going: called at every control step.

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
        with fixed_draws(seed), loaded.precision():
            info = eval_policy_all(
                envs=envs,
                policy=loaded.policy,
                env_preprocessor=env_preprocess,
                env_postprocessor=Steps(env_postprocess, going),  # type: ignore[arg-type]  # it is called
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


class Steps:
    """A processor of LeRobot's that counts its calls, one per control step.

    Args:
        inner: the processor.
        going: called at every step.
    """

    def __init__(self, inner: Any, going: Callable[[], None] = lambda: None):
        self.inner, self.going, self.count = inner, going, 0

    def __call__(self, transition: Any) -> Any:
        self.count += 1
        self.going()
        return self.inner(transition)


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
