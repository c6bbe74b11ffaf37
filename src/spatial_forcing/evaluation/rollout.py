"""Rollouts of a batch of fixed episodes with LeRobot's own evaluation, in one process."""

import shutil
import time
from pathlib import Path
from typing import Any

from spatial_forcing.evaluation.env_flags import EnvCommand, EvalError, read_env
from spatial_forcing.evaluation.known import drawn_as
from spatial_forcing.evaluation.plan import Job, Plan
from spatial_forcing.evaluation.results import Batch
from spatial_forcing.rollouts import Steps, kept_by, made_env
from spatial_forcing.run_results import Episode
from spatial_forcing.saved_policy import LoadedPolicy


class Rollouts:
    """Rolls out batches of episodes one after the other; keeps the policy and the environment of the last.

    Called with a :class:`Job` it writes the batch's results. Sent to a worker process it makes both there.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self._policy: tuple[str, LoadedPolicy] | None = None
        self._envs: dict[str, dict[int, Any]] | None = None
        self._task: str | None = None
        self._command: EnvCommand | None = None

    def __call__(self, job: Job) -> None:
        """Rolls out a batch.

        Raises:
            PolicyError: the policy cannot be loaded, or the environment not be made.
            EvalError: an episode began elsewhere than it should.
        """
        begun = time.perf_counter()
        command = self._command = self._command or read_env(self.plan.flags)
        loaded = self._loaded(job.policy, command)
        with drawn_as(command.env.type, self.plan.rendering):
            env = self._env(job, command.env)
            episodes = rolled_out(loaded, command.env, env, job, self.plan)
        Batch(episodes=episodes, seconds=time.perf_counter() - begun).save(self.plan.path_of(job))

    def close(self) -> None:
        """Frees policy and environment."""
        from lerobot.envs import close_envs

        if self._envs is not None:
            close_envs(self._envs)
        self._envs = self._policy = self._task = None

    def _loaded(self, name: str, command: EnvCommand) -> LoadedPolicy:
        if self._policy is None or self._policy[0] != name:
            self._policy = None  # two large ones at a time might not fit
            loaded = LoadedPolicy(
                self.plan.policies[name],
                self.plan.device,
                overrides=command.overrides,
                rename_map=command.rename_map,
            )
            self._policy = name, loaded
        return self._policy[1]

    def _env(self, job: Job, config: Any) -> Any:
        """The vector environment of a job's task. Others are closed: a simulator each is large."""
        from lerobot.envs import close_envs

        if self._envs is None or self._task != job.task.name:
            if self._envs is not None:
                close_envs(self._envs)
            self._envs, self._task = made_env(config, self.plan.batch_size, self.plan.seed), job.task.name
        return self._envs[job.task.group][job.task.number]


def rolled_out(loaded: LoadedPolicy, config: Any, env: Any, job: Job, plan: Plan) -> list[Episode]:
    """Rolls out a batch of episodes; the policy's random draws begin with the seed of the first.

    Args:
        loaded: the policy.
        config, env: the environment's configuration, and its vector environment of this task.
        job: which episodes.
        plan: with the seed, and where videos go.
    """
    from lerobot.envs import make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy
    from lerobot.utils.random_utils import seeded_context

    env_preprocess, env_postprocess = make_env_pre_post_processors(config, loaded.config)
    steps, filmed = Steps(env_postprocess), max(0, min(plan.videos - job.first, job.count))
    if filmed:
        shutil.rmtree(_films(plan, job), ignore_errors=True)  # of an attempt that was interrupted
    seed = plan.seed + job.first
    with seeded_context(seed), loaded.precision():
        found = eval_policy(
            env=env,
            policy=loaded.policy,
            env_preprocessor=env_preprocess,
            env_postprocessor=steps,  # type: ignore[arg-type]  # it is called, and nothing else
            preprocessor=loaded.preprocess,
            postprocessor=loaded.postprocess,
            n_episodes=job.count,
            max_episodes_rendered=filmed,
            videos_dir=_films(plan, job) if filmed else None,
            start_seed=seed,
        )
    kept = _kept_by(env)
    episodes = []
    for place, one in enumerate(found["per_episode"]):
        more: dict[str, Any] = kept.get(seed + place, {"seed": seed + place, "success": bool(one["success"])})
        if more["success"] != bool(one["success"]):
            raise EvalError(f"LeRobot and {job.task.name} disagree about the episode of seed {seed + place}.")
        more = {"steps": steps.count} | more if plan.batch_size == 1 else more
        more |= {"sum_reward": float(one["sum_reward"]), "max_reward": float(one["max_reward"])}
        if job.task.states is not None:
            more["initial_state"] = job.first + place
        if place < filmed:
            more["video"] = _moved(plan, job, place)
        episodes.append(Episode(task=job.task.name, **more))
    return episodes


def _kept_by(env: Any) -> dict[int, dict[str, Any]]:
    """Records of episodes by seed, of environments that keep their own; they are taken from them."""
    found = {}
    for one in env.envs:
        records = kept_by(one)
        found |= {record["seed"]: dict(record) for record in records}
        records.clear()
    return found


def _films(plan: Plan, job: Job) -> Path:
    """Where LeRobot writes the videos of a batch, under names of its own, until the batch is done."""
    return plan.videos_of(job) / f".{job.first:06d}"


def _moved(plan: Plan, job: Job, place: int) -> str:
    """Moves a finished video to its name; returns that, relative to the evaluation's folder."""
    made = _films(plan, job) / f"eval_episode_{place}.mp4"
    wanted = plan.videos_of(job) / f"{job.first + place:06d}.mp4"
    made.replace(wanted)
    if not any(made.parent.iterdir()):
        made.parent.rmdir()
    return str(wanted.relative_to(plan.out))
