"""Settings of the demo, and the folder of its run: claimed, locked by one process, reused.

The command ``demo`` shows the options of :class:`DemoSettings`; defaults of the demonstrations are those of
``sim.spec.DemoSpec``.
"""

from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder, check_space, claim
from spatial_forcing.locks import FolderBusyError, FolderLock
from spatial_forcing.sim.spec import DemoSpec

DEMONSTRATIONS = "demonstrations"
# What a run takes on disk, roughly.
DEMO_BYTES = 2**30
DAMAGED = "Run the demo in another folder, or remove this one."
# Rough seconds a unit of work takes on two cores, for the estimate at the start.
SECONDS = {"frame": 0.0155, "feature": 0.01, "step": 0.16, "episode": 0.18, "fixed": 140}


@dataclass(frozen=True)
class DemoSettings:
    """Settings that determine the demo's result.

    Args:
        tasks: Meta-World tasks, learned by one policy.
        episodes: demonstrations per task to train on.
        heldout_episodes: demonstrations per task for the held-out action error and the probe's test.
        frames: length of a demonstration.
        start: start state of a demonstration: random-hand, initial or expert-warmup.
        steps: training steps of every policy.
        batch_size: frames per training step.
        learning_rate: learning rate of all policies.
        chunk: length of action chunks, predicted and executed at a time.
        evaluations: number of checkpoints that are evaluated, evenly spread over training.
        eval_episodes: rollouts per task and checkpoint.
        teacher: registered teacher, or a local file or folder with one.
        loss_weight: weight of the alignment loss in the forced arms.
        seed: seed of weights, data order and demonstrations.
        device: device on which policies train: cpu or cuda.
    """

    tasks: tuple[str, ...] = DemoSpec.tasks
    episodes: int = DemoSpec.episodes
    heldout_episodes: int = 40
    frames: int | None = DemoSpec.frames
    start: str = DemoSpec.start
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 1e-3
    chunk: int = 4
    evaluations: int = 2
    eval_episodes: int = 50
    teacher: str = "vggt-tiny-sim"
    loss_weight: float = 0.5
    seed: int = DemoSpec.seed
    device: str = "cpu"

    def demonstrations(self) -> DemoSpec:
        """Specification of the demonstrations, training and held-out ones.

        Raises:
            UnknownNameError: an unknown task or start.
            SpatialForcingError: an invalid number.
        """
        for name in ("episodes", "heldout_episodes"):
            if (value := getattr(self, name)) < 1:
                raise SpatialForcingError(f"{name} must be at least 1; got {value}.")
        episodes = self.episodes + self.heldout_episodes
        return DemoSpec(self.tasks, episodes, self.frames, self.start, seed=self.seed)

    def heldout(self) -> tuple[int, ...]:
        """The held-out episodes: the last ones of each task."""
        per_task = self.episodes + self.heldout_episodes
        return tuple(
            task * per_task + episode
            for task in range(len(self.tasks))
            for episode in range(self.episodes, per_task)
        )

    def seconds(self, workers: int) -> float:
        """A rough estimate of the wall time on two cores."""
        spec = self.demonstrations()
        frames = len(spec.tasks) * spec.episodes * spec.longest
        episodes = len(self.tasks) * self.eval_episodes * (4 * self.evaluations + 2)
        shared = (
            frames * SECONDS["frame"] + 4.5 * self.steps * SECONDS["step"] + episodes * SECONDS["episode"]
        )
        return SECONDS["fixed"] + frames * SECONDS["feature"] + 2 * shared / max(1, workers)


def check_settings(settings: DemoSettings, workers: int) -> None:
    """Validates the settings before anything is computed.

    Raises:
        UnknownNameError: a task or teacher does not exist.
        WeightsError: the teacher's file or folder does not say what it is.
        DeviceError: the device does not exist.
        SpatialForcingError: an invalid number.
    """
    from spatial_forcing.device import checked_device
    from spatial_forcing.ranges import checked_weight
    from spatial_forcing.teachers import find_teacher

    settings.demonstrations()
    find_teacher(settings.teacher)
    checked_device(settings.device)
    for name in ("steps", "batch_size", "chunk", "evaluations", "eval_episodes"):
        if (value := getattr(settings, name)) < 1:
            raise SpatialForcingError(f"{name} must be at least 1; got {value}.")
    if not (isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise SpatialForcingError(f"learning_rate must be above 0; got {settings.learning_rate}.")
    checked_weight(settings.loss_weight)
    if workers < 1:
        raise SpatialForcingError(f"The demo takes at least one process; got {workers} workers.")


def take_folder(out: Path, settings: DemoSettings) -> None:
    """Claims the folder for this run, or raises if it holds another one or the disk is too full for it."""
    check_folder(out)
    check_space(out, DEMO_BYTES)
    claim(out / "settings.json", asdict(settings), what="demo", only=True)


def hold(out: Path) -> FolderLock:
    """Locks the folder for this process until the lock is closed or the process ends.

    Raises:
        SpatialForcingError: another process is running a demo there.
    """
    try:
        return FolderLock(out, wait=0)
    except FolderBusyError as error:
        raise SpatialForcingError(
            f"Another demo is running in {out}. Wait for it, or choose --out."
        ) from error
