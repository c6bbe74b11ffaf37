"""Plan of a comparison: the settings that determine its result, and its runs. Its folder: ``folder.py``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from spatial_forcing.compare.arm import PLAIN, Arm
from spatial_forcing.compare.flags import CompareError, arm_flags, check_flags, joined, name_of, policy_of
from spatial_forcing.compare.options import TEACHER
from spatial_forcing.compare.split import Split, split_episodes, tasks_of
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.evaluation.options import EVAL_SEED


@dataclass(frozen=True)
class Measures:
    """Evaluation settings of every run: checkpoints, rollouts, held-out frames, the probe.

    Attributes:
        evaluations: checkpoints that are evaluated, evenly spread over training, the last one at its end;
            fewer where the steps do not go into so many.
        episodes: rollouts per task and checkpoint, where the command has an environment.
        eval_seed: of the first; episode i of a task has eval_seed + i, in every run.
        videos: how many rollouts of the last checkpoint are filmed, per task.
        heldout_frames: at most so many frames of the held-out episodes are looked at, evenly spread.
        probe: the depth that is read from the tokens at the end: auto (recorded depth, if there is any),
            none, recorded or pseudo:<model>.
        probe_frames: so many frames are looked at for that, of training and held-out episodes together.
    """

    evaluations: int = 4
    episodes: int = 50
    eval_seed: int = EVAL_SEED
    videos: int = 2
    heldout_frames: int = 2000
    probe: str = "auto"
    probe_frames: int = 2000

    def __post_init__(self) -> None:
        least_of = {"evaluations": 1, "episodes": 1, "eval_seed": 0, "videos": 0, "heldout_frames": 1}
        least_of |= {"probe_frames": 3}
        for name, least in least_of.items():
            if (value := getattr(self, name)) < least:
                raise CompareError(f"--{name.replace('_', '-')} must be at least {least}; got {value}.")


@dataclass(frozen=True)
class Comparison:
    """Specification of a comparison: everything that determines its result.

    Attributes:
        flags: of lerobot-train, those after ``--``.
        arms: what is compared.
        seeds: of weights and data order.
        fractions: shares of the training episodes, above 0 and up to 1.
        split: the training episodes and the held-out ones.
        steps: of training, as the flags say.
        measures: what is measured.
        stored: whether features are stored before training, instead of asking the teacher at every step.
        policies: folder of the comparison whose trained policies are tested in another environment, see
            ``compare.transfer``; None for one that trains its own.
    """

    flags: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    split: Split
    steps: int
    measures: Measures = field(default_factory=Measures)
    stored: bool = True
    policies: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self.seeds, self.fractions)
        if self.measures.evaluations > self.steps:
            raise CompareError(
                f"{self.measures.evaluations} evaluations do not fit into {self.steps} steps of training."
            )

    @property
    def save_every(self) -> int:
        return ceil(self.steps / self.measures.evaluations)

    @property
    def evaluated_steps(self) -> list[int]:
        """The steps whose checkpoints are evaluated; of references the last one alone."""
        return sorted({*range(self.save_every, self.steps + 1, self.save_every), self.steps})

    def steps_of(self, run: "Run") -> list[int]:
        """The steps of a run whose checkpoints are evaluated."""
        return [self.steps] if run.arm.role == "reference" else self.evaluated_steps

    def runs(self) -> list["Run"]:
        """All runs, seed by seed, so that complete comparisons are there early."""
        return [Run(arm, seed, f) for seed in self.seeds for f in self.fractions for arm in self.arms]

    def run_flags(self, run: "Run", folder: Path, features: Sequence[Path] = ()) -> list[str]:
        """The training command of a run, as flags of ``spatial-forcing train``.

        Args:
            run: one of :meth:`runs`.
            folder: of the run.
            features: stored ones of its training episodes, one for each alignment of an arm with forcing.
        """
        flags = arm_flags(self.flags, run.arm, features)
        named = set(map(name_of, flags))
        episodes = self.split.share(run.fraction)
        flags = [flag for flag in flags if name_of(flag) != "dataset.episodes"]
        flags += [
            f"--output_dir={folder / 'train'}",
            f"--seed={run.seed}",
            f"--save_freq={self.save_every}",
            "--save_checkpoint=true",
            "--env_eval_freq=0",
            f"--dataset.episodes={episodes}".replace(" ", ""),
            "--policy.push_to_hub=false",
        ]
        if "log_freq" not in named:
            flags.append(f"--log_freq={max(1, min(200, self.steps // 50))}")
        return flags


@dataclass(frozen=True)
class Run:
    """One run: an arm with a seed and a fraction of the training episodes."""

    arm: Arm
    seed: int
    fraction: float

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.arm.name}-f{100 * self.fraction:g}-s{self.seed}"


def check_numbers(seeds: Sequence[int], fractions: Sequence[float]) -> None:
    """Raises :class:`CompareError` for invalid seeds or fractions."""
    for name, values in (("seeds", seeds), ("fractions", fractions)):
        if not values or len(set(values)) < len(values):
            raise CompareError(f"--{name} names at least one, and none twice; got {_listed(values)}.")
    if min(seeds) < 0:
        raise CompareError(f"--seeds are whole numbers from 0; got {_listed(seeds)}.")
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise CompareError(f"--fractions are above 0 and up to 1; got {_listed(fractions)}.")


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def planned(
    flags: Sequence[str], arms: Sequence[Arm], *, holdout: float, heldout: Sequence[int], **rest: Any
):
    """Plans a comparison from its training command.

    Args:
        flags: after ``--``.
        arms: what is compared.
        holdout, heldout: see :func:`~spatial_forcing.compare.split.split_episodes`.
        rest: the other attributes of :class:`Comparison`, but for its split and steps.

    Raises:
        CompareError: a flag that is not for a comparison, episodes that cannot be split, or an option or a
            teacher of an arm that does not exist; says which arm.
        FlagError: LeRobot does not take the flags.
        TrainError: what they name is not there.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from spatial_forcing.flags import read_config
    from spatial_forcing.teachers import find_teacher
    from spatial_forcing.train_command import check_dataset

    check_numbers(rest["seeds"], rest["fractions"])
    flags = joined(flags)
    check_flags(flags)
    plain = next((arm for arm in arms if arm.forcing is None), Arm(PLAIN))
    config = read_config(arm_flags(flags, plain))
    if config.dataset.streaming:
        raise CompareError(
            "A comparison holds out episodes, which a streamed data set does not give one by one."
        )
    check_dataset(config.dataset)
    meta = LeRobotDatasetMetadata(
        config.dataset.repo_id, root=config.dataset.root, revision=config.dataset.revision
    )
    split = split_episodes(tasks_of(meta, config.dataset.episodes), holdout=holdout, heldout=heldout)
    found = Comparison(tuple(flags), tuple(arms), split=split, steps=config.steps, **rest)
    for arm in arms:
        try:
            policy = policy_of(arm_flags(flags, arm))
            for entry in [] if arm.forcing is None else policy.forcing.entries():
                find_teacher(entry.teacher or TEACHER)
                if entry.points is not None and entry.points_from is None:
                    raise CompareError(
                        f"points: {entry.points} does not say whose depth they are from. Say points_from: "
                        "recorded (privileged: no camera gives it), or pseudo:<model>."
                    )
        except SpatialForcingError as error:
            raise CompareError(f"The arm {arm.name!r}: {error}") from error
    return found


def folder_of(out: Path, run: Run) -> Path:
    return out / "runs" / run.name


def trained_in(comparison: Comparison, out: Path) -> Path:
    """The folder that holds features and training runs: its own, or that whose policies are tested again."""
    return out if comparison.policies is None else Path(comparison.policies)


def training_of(comparison: Comparison, out: Path, run: Run) -> Path:
    """LeRobot's training run behind a run."""
    return folder_of(trained_in(comparison, out), run) / "train"
