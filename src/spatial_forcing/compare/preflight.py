"""Preflight check: takes every arm to its first training step, compares configurations, runs the doctor.

LeRobot's trainer makes data set, policy, processors and batch as it will; arms with forcing go through the
doctor there, and the guards of an evaluation compare the environment, if there is one, with the data set.
Features that an arm would read are stored for a few frames only.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from spatial_forcing.compare.arm import Arm
from spatial_forcing.compare.features import dataset_of, stored_features
from spatial_forcing.compare.flags import CompareError, name_of
from spatial_forcing.compare.launch import LOG, log_size
from spatial_forcing.compare.plan import Comparison, folder_of
from spatial_forcing.compare.split import Split
from spatial_forcing.evaluation.guards.look import Guarded, examined
from spatial_forcing.evaluation.plan import EvalTask, check_episodes, tasks_of
from spatial_forcing.files import read_json, write_json
from spatial_forcing.processes import JobFailed, Watch, run_jobs

# What follows from a policy's own options, which references may change.
OF_POLICY = ("policy", "optimizer", "scheduler")
# What an arm with a checkpoint of its own to start from changes.
STARTS_FROM = "policy.pretrained_path"
# Of the run and not of the training.
ASIDE = ("job_name", "output_dir", "policy.type", "policy.forcing", "policy.repo_id")


def small_version(comparison: Comparison, *, steps: int, frames: int) -> Comparison:
    """Reduced copy of a comparison: a few episodes and steps, one seed and one evaluation.

    Args:
        comparison: the whole.
        steps: of training.
        frames: its training episodes have at least so many, if there are.
    """
    meta = dataset_of(comparison).meta
    train: list[int] = []
    seen = 0
    for episode in comparison.split.train:
        train.append(episode)
        seen += int(meta.episodes[episode]["length"])
        if seen >= frames:
            break
    flags = [flag for flag in comparison.flags if name_of(flag) not in ("steps", "log_freq")]
    return replace(
        comparison,
        flags=(*flags, f"--steps={steps}", "--log_freq=1"),
        seeds=comparison.seeds[:1],
        fractions=(1.0,),
        split=Split(tuple(train), comparison.split.heldout[:1]),
        steps=steps,
        measures=replace(comparison.measures, evaluations=1, episodes=1, heldout_frames=64, videos=0),
    )


@dataclass(frozen=True)
class Looked:
    """Preflight findings, by arm.

    Attributes:
        odd: by name of the arm, warnings.
        checkpoint: by name of the arm, estimated bytes of a checkpoint.
        guarded: what the guards say of the environment; None without one.
    """

    odd: dict[str, list[str]]
    checkpoint: dict[str, int]
    guarded: Guarded | None

    @property
    def warnings(self) -> list[str]:
        """What the guards found, and each warning after the arms that it is of."""
        arms: dict[str, list[str]] = {}
        for name, messages in self.odd.items():
            for message in messages:
                arms.setdefault(message, []).append(name)
        of_arms = [f"{', '.join(names)}: {message}" for message, names in arms.items()]
        return [*(self.guarded.warnings if self.guarded else []), *of_arms]


def check_arms(
    comparison: Comparison, out: Path, bars: Progress, device: str, *, episodes: int, patience: float
) -> Looked:
    """Checks every arm at its first training step, each in a process of its own.

    Args:
        comparison: of a few episodes, see :func:`small_version`.
        episodes: rollouts per task that the whole one asks for.
        out: an empty folder for it.
        bars: a bar each for storing features and for the arms.
        device: where a teacher runs that stores features.
        patience: seconds without output after which an arm counts as hung.

    Raises:
        CompareError: an arm would not train, looks wrong, or differs from the others in what they share.
    """
    features = stored_features(comparison, out, bars, device)
    jobs = [
        (run.arm, comparison.run_flags(run, folder_of(out, run), features.get(run.name, ())))
        for run in comparison.runs()
    ]
    # All arms have the same data, environment and processors; references may leave out what a policy sees.
    guarded = next((arm.name for arm, _ in jobs if arm.role != "reference"), jobs[0][0].name)
    bar = bars.add_task("looking at every arm", total=len(jobs))
    try:
        run_jobs(
            partial(look, out=out, episodes=episodes, guarded=guarded, seed=comparison.measures.eval_seed),
            [deque(jobs)],
            poll=lambda: bars.update(bar, completed=len(list(out.glob("*.found.json")))),
            watch=Watch(lambda job: log_size(out), patience),
        )
    except JobFailed as failed:
        raise CompareError(f"The arm {failed.job[0].name!r}: {failed.error}") from failed.error
    found = {arm.name: read_json(out / f"{arm.name}.found.json") for arm, _ in jobs}
    wrong = {name: one["wrong"] for name, one in found.items() if one["wrong"]}
    if wrong:
        name, messages = next(iter(wrong.items()))
        raise CompareError(
            f"The arm {name!r} would not train as it should: {' '.join(messages)} (spatial-forcing doctor "
            "says more.)"
        )
    check_shared({arm.name: arm for arm, _ in jobs}, {name: one["config"] for name, one in found.items()})
    said = found[guarded]["guarded"]
    return Looked(
        {name: one["odd"] for name, one in found.items()},
        {name: one["checkpoint"] for name, one in found.items()},
        None if said is None else Guarded.from_plain(said, f"{guarded}.found.json"),
    )


def look(job: tuple[Arm, list[str]], out: Path, episodes: int, guarded: str, seed: int) -> None:
    """Checks one arm at its first training step and writes the findings.

    Args:
        job: the arm, and the flags of its training.
        out: folder of the findings.
        episodes: rollouts per task that the comparison asks for.
        guarded: name of the arm with whose policy the environment is looked at.
        seed: of the first rollout.
    """
    from spatial_forcing.doctor import diagnose
    from spatial_forcing.flags import read_config
    from spatial_forcing.output import output_to
    from spatial_forcing.rehearsal import first_step

    arm, flags = job
    with output_to(out / LOG):
        config = read_config(flags)
        tasks = checked_tasks(config.env, episodes)
        env, rename_map = config.env, dict(config.rename_map)  # the first step clears what it does not need
        step = first_step(config, flags, forced=arm.forcing is not None)
        said: dict[str, Any] = {"wrong": [], "odd": []}
        checkpoint = checkpoint_bytes(step.policy)
        if arm.forcing is not None:
            findings = diagnose(step)
            said = {"wrong": findings.wrong, "odd": findings.odd}
        said["guarded"] = None
        if tasks and arm.name == guarded:
            policy = ToBeTrained(step.policy.config, step.preprocess, rename_map)
            dataset = str(config.dataset.root or config.dataset.repo_id)
            [of] = examined({arm.name: policy}, env, tasks, seed=seed, dataset=dataset)
            said["guarded"] = of.plain()
    shared = {name: value for name, value in flat(config.to_dict()) if not _aside(name)}
    write_json(
        out / f"{arm.name}.found.json",
        json.loads(json.dumps(said | {"config": shared, "checkpoint": checkpoint}, default=str)),
    )


@dataclass(frozen=True)
class ToBeTrained:
    """A policy before its first step, as the guards ask for one (``guards.trained.GuardedPolicy``)."""

    config: Any
    preprocess: Any
    rename_map: dict[str, str]
    folder: None = None


def checkpoint_bytes(policy: Any) -> int:
    """Estimated bytes of a checkpoint: the weights, and Adam's two moments of those that train.

    Of a policy wrapped by PEFT what trains is saved alone.
    """
    adapter = hasattr(policy, "peft_config")
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in policy.parameters()]
    return sum(size * (3 if trains else 1) for size, trains in sizes if trains or not adapter)


def checked_tasks(env: Any, episodes: int) -> tuple[EvalTask, ...]:
    """Tasks of an environment; none without one.

    Raises:
        SpatialForcingError: it cannot be made, or has too few initial states for so many episodes.
    """
    if env is None:
        return ()
    tasks = tasks_of(env)
    check_episodes(tasks, episodes)
    return tasks


def check_shared(arms: Mapping[str, Arm], configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises :class:`CompareError` if an arm differs from another in something that all share.

    Args:
        arms: by name.
        configs: of training, flat, without what an arm may say.
    """
    first = min(arms, key=lambda name: arms[name].role == "reference")
    expected = configs[first]
    for name, found in configs.items():
        for key in sorted({*expected, *found}):
            its_own = arms[name].role == "reference" and key.partition(".")[0] in OF_POLICY
            its_own |= key == STARTS_FROM and arms[name].start != arms[first].start
            if expected.get(key) == found.get(key) or its_own:
                continue
            raise CompareError(
                f"The arms {first!r} and {name!r} differ in {key}: {expected.get(key)!r} against "
                f"{found.get(key)!r}. That is for all arms: say it after --, or nowhere."
            )


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested mappings to (dotted name, value) pairs."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _aside(name: str) -> bool:
    return any(name == aside or name.startswith(f"{aside}.") for aside in ASIDE)


def what_differs(comparison: Comparison) -> list[tuple[str, str]]:
    """(arm, the flags in which it differs) pairs for printing."""
    return [(arm.name, " ".join(arm.differs) or "nothing added") for arm in comparison.arms]
