"""Specification of demonstrations: the options of the command `collect`, and defaults of the demo."""

from dataclasses import dataclass, field
from numbers import Integral

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.sim.camera import Jitter
from spatial_forcing.sim.tasks import task_record

CAMERA_MODES = ("fixed", "episode", "frame")
DEMO_STARTS = ("random-hand", "initial", "expert-warmup")


@dataclass(frozen=True)
class DemoSpec:
    """Specification of demonstrations; together with package versions it determines every byte.

    Attributes:
        tasks: Meta-World tasks.
        episodes: demonstrations per task.
        frames: length of a demonstration; None records until shortly after success.
        start: start state of a demonstration: "random-hand" (anywhere over the table), "initial"
            (Meta-World's), or "expert-warmup" (from a random position the expert, with noise, for a random
            number of steps first, so that short demonstrations cover whole episodes).
        camera: a new random pose every "frame" or "episode", or "fixed".
        jitter: range of random camera moves from the default pair.
        size: height and width of images, pixels.
        noise: standard deviation of noise on executed actions; the recorded actions are the expert's, which
            respond to it.
        points: cells per side of each view whose 3D points are recorded as `observation.points`, in metres in
            the robot's frame, for an oracle policy; 0 for none.
        seed: seed of all random numbers.

    Raises:
        UnknownNameError: an unknown task, start or camera mode.
        SpatialForcingError: an invalid number.
    """

    tasks: tuple[str, ...] = ("reach-v3",)
    episodes: int = 250
    frames: int | None = 6
    start: str = "random-hand"
    camera: str = "frame"
    jitter: Jitter = field(default_factory=Jitter)
    size: int = 112
    noise: float = 0.0
    points: int = 0
    seed: int = 0

    def __post_init__(self):
        for task in self.tasks:
            task_record(task)
        if self.start not in DEMO_STARTS:
            raise UnknownNameError("start", self.start, DEMO_STARTS)
        if self.camera not in CAMERA_MODES:
            raise UnknownNameError("camera mode", self.camera, CAMERA_MODES)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise SpatialForcingError(f"Name at least one task, and none twice; got {self.tasks}.")
        for name, least in (
            ("episodes", 1),
            ("frames", 1),
            ("size", 16),
            ("noise", 0),
            ("points", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and name != "noise" and not isinstance(value, Integral):
                raise SpatialForcingError(f"{name} is a whole number; got {value!r}.")
            if value is not None and value < least:
                raise SpatialForcingError(f"{name} must be at least {least}; got {value}.")

    @property
    def longest(self) -> int:
        """Number of frames of the longest possible demonstration."""
        return self.frames or max(task_record(task).max_steps for task in self.tasks)
