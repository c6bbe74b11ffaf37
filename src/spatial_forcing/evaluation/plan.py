"""Plan of an evaluation: policies, tasks, fixed episodes, and what decides the result.

    <out>/plan.json                              everything that decides the result
    <out>/episodes/<policy>/<task>/000000.json   a batch of episodes, by its first
    <out>/videos/<policy>/<task>/000000.mp4
    <out>/guards.json                            what the guards found
    <out>/log.txt                                what the simulator and LeRobot printed
    <out>/eval.json, eval.md                     the results

Episode i of a task begins alike for every policy: from the seed ``seed + i`` and, where the task has a list
of initial states (LIBERO), from the i-th of them. It does not depend on the episodes before it, so that
neither the order nor the number of processes changes a result.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from spatial_forcing.evaluation.env_flags import EvalError, settings_of
from spatial_forcing.files import checksum, claim
from spatial_forcing.provenance import versions
from spatial_forcing.rollouts import made_env
from spatial_forcing.saved_policy import PolicyError

NOTE = "plan.json"
NAME = re.compile(r"[\w.+-]+")
# Two of these that differ make two results that are not one evaluation.
DECIDING = ("torch", "lerobot", "mujoco", "metaworld", "hf-libero", "robosuite", "gymnasium", "numpy")
DECIDING += ("transformers",)


@dataclass(frozen=True)
class EvalTask:
    """A task of an environment.

    Attributes:
        name: for people and files: ``libero_object/3``, ``reach-v3``.
        group, number: LeRobot's keys of it.
        instruction: what a policy is told.
        states: how many initial states it has; None if a seed decides.
        max_steps: of an episode.
    """

    name: str
    group: str
    number: int
    instruction: str
    states: int | None
    max_steps: int


@dataclass(frozen=True)
class Job:
    """A batch of consecutive episodes of a policy on a task."""

    policy: str
    task: EvalTask
    first: int
    count: int


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and how; goes to worker processes.

    Attributes:
        out: the folder.
        policies: checkpoint folders by name, the baseline first.
        flags: LeRobot's, as after ``--``.
        tasks: of the environment.
        episodes, seed, batch_size, rendering, threads, videos, device: see ``options.Eval``.
        kept: whether the folder stays.
    """

    out: Path
    policies: Mapping[str, Path]
    flags: tuple[str, ...]
    tasks: tuple[EvalTask, ...]
    episodes: int
    seed: int
    batch_size: int
    rendering: str
    threads: int
    videos: int
    device: str
    kept: bool = True

    def jobs(self) -> Iterator[Job]:
        """All batches, policy by policy and task by task."""
        for policy in self.policies:
            for task in self.tasks:
                for first in range(0, self.episodes, self.batch_size):
                    yield Job(policy, task, first, min(self.batch_size, self.episodes - first))

    def path_of(self, job: Job) -> Path:
        """The file of a batch's results."""
        return self.out / "episodes" / job.policy / slug(job.task.name) / f"{job.first:06d}.json"

    def videos_of(self, job: Job) -> Path:
        return self.out / "videos" / job.policy / slug(job.task.name)

    def missing(self) -> list[Job]:
        """The batches without a result."""
        return [job for job in self.jobs() if not self.path_of(job).is_file()]

    def claim(self, env: Any) -> None:
        """Writes the plan into its folder, or checks that it is the one there.

        Raises:
            EvalError: the folder holds another evaluation; says what differs.
        """
        found = {name: number for name, number in versions().items() if name in DECIDING}
        specification = {
            "policies": list(self.policies),
            "checkpoints": {name: weights_of(folder) for name, folder in self.policies.items()},
            "environment": settings_of(env),
            "flags": [flag for flag in self.flags if not flag.startswith("--env.")],
            "tasks": [task.name for task in self.tasks],
            "episodes": self.episodes,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rendering": self.rendering,
            "threads": self.threads,
            "device": self.device,
            "versions": found,
        }
        claim(self.out / NOTE, specification, what="evaluation", only=True, error=EvalError)


def check_policies(named: Mapping[str, Any]) -> None:
    """Raises :class:`EvalError` for names that cannot be folders."""
    for name in named:
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise EvalError(f"A policy's name is made of letters, digits and . _ + -; got {name!r}.")


def weights_of(folder: Path) -> dict[str, str]:
    """Checksums of the files of a checkpoint that decide what it does."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("policy_*.json"), folder / "config.json"])
    try:
        return {path.name: checksum(path) for path in files}
    except OSError as error:
        raise PolicyError(f"The policy in {folder} cannot be loaded: {error}.") from error


def tasks_of(config: Any) -> tuple[EvalTask, ...]:
    """The tasks of an environment's configuration.

    Raises:
        EvalError, PolicyError: the environment cannot be made.
    """
    from lerobot.envs import close_envs

    with redirect_stdout(StringIO()):
        envs = made_env(config, 1)
    try:
        return tuple(
            task_of(config, group, number, env, alone=set(numbers) == {0})
            for group, numbers in envs.items()
            for number, env in numbers.items()
        )
    finally:
        close_envs(envs)


def task_of(config: Any, group: str, number: int, env: Any, *, alone: bool) -> EvalTask:
    """Describes a task from its vector environment."""
    world = env.envs[0].unwrapped
    # A suite's task keeps its name whichever of the suite's are chosen.
    name = group if alone and not hasattr(config, "task_ids") else f"{group}/{number}"
    said = getattr(world, "task_description", None) or getattr(world, "task", None) or ""
    steps = env.call("_max_episode_steps")[0]
    return EvalTask(name, group, number, str(said), state_count(world), int(steps))


def state_count(world: Any) -> int | None:
    """How many fixed initial states a simulator has for its task; None if it begins from a seed alone."""
    states = getattr(world, "_init_states", None)
    return len(states) if getattr(world, "init_states", False) and states is not None else None


def check_episodes(tasks: tuple[EvalTask, ...], episodes: int) -> None:
    """Raises :class:`EvalError` if a task has fewer initial states than there are episodes."""
    for task in tasks:
        if task.states is not None and episodes > task.states:
            raise EvalError(
                f"{task.name} has {task.states} initial states, and --episodes {episodes} would begin with "
                f"some of them twice. Give at most --episodes {task.states}."
            )


def slug(name: str) -> str:
    """A task's name as the name of a folder."""
    return re.sub(r"[^\w.-]", "-", name)
