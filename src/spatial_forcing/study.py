"""Arms of a comparison: the same policy trained with different options, everything else equal.

An arm is trained through LeRobot's trainer and every checkpoint is rolled out on the same episodes. Arms
with the same seed start from the same weights and see the same batches in the same order; whatever an arm
adds (projector, teacher) draws its random numbers elsewhere. Each arm is a folder; a finished one is reused,
an interrupted one continues.

    <folder>/arm.json            the specification
    <folder>/train/              LeRobot's run: checkpoints, metrics.jsonl
    <folder>/eval/000500.json    Evaluation of the checkpoint at step 500
    <folder>/log.txt             what LeRobot printed
"""

import os
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import claim
from spatial_forcing.locks import FolderLock
from spatial_forcing.output import output_to
from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs

if TYPE_CHECKING:
    from spatial_forcing.results import Evaluation

# Seconds in which a running arm prints something: it logs every ten steps, and every step of its rollouts.
ARM_PATIENCE = 1800.0
LOG = "log.txt"


@dataclass(frozen=True)
class Arm:
    """One training run and its evaluation.

    Attributes:
        name: also the name of its folder.
        label: for people.
        role: "arm"; "control" for one that is forced toward a target without the teacher's content;
            "reference" for the blind and state lines. Every table carries all three.
        policy: options of TinyConfig.
        forcing: options of ForcingConfig; None trains the plain policy.
        dataset, heldout: roots of LeRobotDatasets.
        steps, batch_size, seed, evaluations: the budget; checkpoints are evaluated ``evaluations`` times,
            evenly spread.
        env: options of SimEnvConfig, one dict per task.
        episodes, eval_seed: rollouts per task, 0 for the held-out error alone; episode i has the seed
            eval_seed + i.
        videos: how many of them are filmed.
        device: "cpu" or "cuda".
    """

    name: str
    label: str
    role: Literal["arm", "control", "reference"]
    dataset: str
    heldout: str
    steps: int
    batch_size: int
    seed: int
    env: tuple[dict[str, Any], ...]
    episodes: int
    eval_seed: int
    policy: dict[str, Any] = field(default_factory=dict)
    forcing: dict[str, Any] | None = None
    evaluations: int = 4
    videos: int = 2
    device: str = "cpu"

    @property
    def save_every(self) -> int:
        return max(1, self.steps // max(1, self.evaluations))


@dataclass
class ArmProgress:
    """How far an arm is: training step and finished evaluations."""

    step: int = 0
    evaluated: int = 0


def run_arm(arm: Arm, folder: Path) -> Path:
    """Trains and evaluates an arm in ``folder``; what is there already is not done again.

    Raises:
        SpatialForcingError: the folder holds another arm, or another process is at work there.
    """
    with FolderLock(folder):
        return _run_held(arm, folder)


def _run_held(arm: Arm, folder: Path) -> Path:
    from lerobot.utils.import_utils import register_third_party_plugins

    from spatial_forcing.train import checkpoints, train_config, train_or_continue

    claim(folder / "arm.json", asdict(arm), what="run")
    register_third_party_plugins()
    config = train_config(
        policy_config(arm),
        Path(arm.dataset),
        folder / "train",
        steps=arm.steps,
        batch_size=arm.batch_size,
        seed=arm.seed,
        save_every=arm.save_every,
    )
    run = train_or_continue(config)
    for step, checkpoint in checkpoints(run).items():
        path = folder / "eval" / f"{step:06d}.json"
        if not path.is_file():
            evaluate_checkpoint(arm, step, checkpoint, folder).save(path)
    return folder


def policy_config(arm: Arm) -> Any:
    """The LeRobot configuration of an arm: TinyConfig, or that of ``sf_tiny`` when it has forcing options."""
    from spatial_forcing import train

    options = {"device": arm.device, "decay_steps": arm.steps, **arm.policy}
    return train.policy_config("tiny", arm.forcing, **options)


def evaluations_of(folder: Path) -> "list[Evaluation]":
    """The evaluations of an arm so far, by step.

    Raises:
        ResultsError: a file of them is damaged; says which and what to do.
    """
    from spatial_forcing.results import Evaluation

    advice = "Remove it and run the same command again: that checkpoint is evaluated anew."
    return [Evaluation.read(path, advice) for path in sorted((folder / "eval").glob("[0-9]*.json"))]


def evaluate_checkpoint(arm: Arm, step: int, checkpoint: Path, folder: Path) -> "Evaluation":
    """Held-out action error and rollouts of one checkpoint. Only the last checkpoint is filmed."""
    from spatial_forcing.evaluate import LoadedPolicy, heldout_measures, roll_out
    from spatial_forcing.results import Evaluation
    from spatial_forcing.sim.env import SimEnvConfig

    loaded = LoadedPolicy(checkpoint, arm.device)
    error, loss = heldout_measures(loaded, loaded.dataset(Path(arm.heldout)))
    episodes, videos, seconds = [], [], 0.0
    film = folder / "videos" if step == arm.steps else None
    for options in arm.env if arm.episodes else ():
        one = roll_out(
            loaded,
            SimEnvConfig(**options),
            episodes=arm.episodes,
            seed=arm.eval_seed,
            videos=film and film / options["task"],
            video_count=arm.videos,
        )
        episodes += one.episodes
        videos += [str(Path(v).relative_to(folder)) for v in one.videos]
        seconds += one.seconds or 0.0
    return Evaluation(
        step=step, heldout_error=error, heldout_loss=loss, episodes=episodes, videos=videos, seconds=seconds
    )


def is_complete(arm: Arm, folder: Path) -> bool:
    """Whether every checkpoint of an arm has been evaluated."""
    steps = {*range(arm.save_every, arm.steps + 1, arm.save_every), arm.steps}
    return all((folder / "eval" / f"{step:06d}.json").is_file() for step in steps)


def progress_of(folder: Path) -> ArmProgress:
    """How far an arm is, from its files."""
    from spatial_forcing.train import read_metrics

    rows = read_metrics(folder / "train")
    return ArmProgress(rows[-1]["step"] if rows else 0, len(list((folder / "eval").glob("[0-9]*.json"))))


# ---- several arms, side by side
# --------------------------------------------------------------------------------------


def run_arms(
    arms: Sequence[Arm],
    root: Path,
    *,
    workers: int = 2,
    watch: Callable[[dict[str, ArmProgress]], None] = lambda progress: None,
    patience: float = ARM_PATIENCE,
) -> None:
    """Runs arms in ``root/<name>``, ``workers`` at a time, one thread each: on few cores two runs beat two
    threads.

    Args:
        arms: what to run; names must differ.
        root: folder of the runs.
        workers: processes.
        watch: called about once a second with the progress of every arm.
        patience: seconds without a line in its log after which an arm is ended.

    Raises:
        FolderBusyError: another process is at work in ``root``.
        SpatialForcingError: an arm failed, or its process died or stood still; says which and where its log
            is. The others are stopped and continue from their last checkpoints when they are started again.
    """
    folders = {arm.name: root / arm.name for arm in arms}
    assert len(folders) == len(arms), "arms with equal names"
    threads = max(1, (os.cpu_count() or 1) // max(1, min(workers, len(arms))))
    for arm in arms:
        if (folders[arm.name] / "arm.json").is_file():
            claim(folders[arm.name] / "arm.json", asdict(arm), what="run")
    arms = [arm for arm in arms if not is_complete(arm, folders[arm.name])]
    if not arms:
        return
    queue = deque(arms)
    try:
        with FolderLock(root) as lock:
            run_jobs(
                partial(_run_logged, root=root),
                [queue] * max(1, min(workers, len(arms))),
                setup=partial(start_worker, threads),
                poll=lambda: watch({name: progress_of(folder) for name, folder in folders.items()}),
                every=1.0,
                watch=Watch(lambda arm: log_size(folders[arm.name]), patience),
                locks=[lock],
            )
    except JobFailed as failed:
        folder = folders[failed.job.name]
        if isinstance(failed.error, WorkerLost):
            folder.mkdir(exist_ok=True)
            with (folder / LOG).open("a") as log:
                log.write(f"\n{failed.error}\n{failed.error.stacks}")
        raise SpatialForcingError(
            f"The arm {failed.job.name!r} failed: {failed.error}\nIts log: {folder / LOG}. What is finished "
            "is kept: run the same command again to continue."
        ) from failed.error


def log_size(folder: Path) -> int:
    """Bytes in the log of an arm, 0 before there is one."""
    try:
        return (folder / LOG).stat().st_size
    except FileNotFoundError:
        return 0


def start_worker(threads: int) -> None:
    """Sets up a worker process: its share of the cores, software rendering, no network."""
    import torch

    torch.set_num_threads(threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _run_logged(arm: Arm, root: Path) -> Path:
    folder = root / arm.name
    folder.mkdir(parents=True, exist_ok=True)
    with output_to(folder / LOG):
        try:
            return run_arm(arm, folder)
        except (Exception, SystemExit):
            traceback.print_exc()
            raise
