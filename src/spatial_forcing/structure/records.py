"""Structure scores of teachers on a data set as a JSON file, written and read by the same classes."""

from pathlib import Path
from typing import Any

from spatial_forcing.files import write_json
from spatial_forcing.json_record import Record


class Score(Record):
    """A score and its 95 % bootstrap interval over episodes; None for what cannot be computed."""

    value: float | None
    low: float | None = None
    high: float | None = None


class LayerScores(Record):
    """Structure scores of one layer of a teacher, explained in ``structure.scores``.

    Attributes:
        teacher: its name, or the path that it was named by.
        layer: counted from 0; None for a teacher without a choice of layers.
        width: C.
        licence: of its weights.
        control: whether it is there to compare with.
        own_grid: rows and columns of the teacher's own tokens.
        seconds: wall time of reading frames and passing them through the teacher; layers share it.
        stored_bytes: of a frame, all views, in a cache that keeps the tokens to a mean cosine of 0.99.
        absrel: of depth read linearly from the features, on held-out episodes; None without depth.
    """

    teacher: str
    layer: int | None
    width: int
    licence: str
    control: bool
    own_grid: list[int]
    local_distant: Score
    decay: Score
    contrast: Score
    effective_rank: Score
    common: Score
    position: Score
    frame: Score
    content: Score
    seconds: float
    stored_bytes: int | None = None
    absrel: Score | None = None


SCORES = (
    "local_distant",
    "decay",
    "contrast",
    "effective_rank",
    "common",
    "position",
    "frame",
    "content",
)


class LeftOut(Record):
    """A teacher that was not scored, and why."""

    teacher: str
    reason: str


class DepthRead(Record):
    """The depth that was read from features.

    Attributes:
        name, unit: of its source; None if there was none.
        train_episodes, test_episodes: how many heads were fitted on, and judged on.
        mean: AbsRel of the mean depth of each position, which sees nothing.
        absent: why there was none.
    """

    name: str | None = None
    unit: str | None = None
    train_episodes: int = 0
    test_episodes: int = 0
    mean: Score | None = None
    absent: str | None = None


class TeacherScores(Record):
    """Structure scores of teachers on the same frames and grid.

    Attributes:
        dataset: as it was named.
        cameras: its keys, in the order in which teachers saw them.
        episodes, frames: how many were looked at; ``frame_indices`` which.
        grid: rows and columns that all features were pooled to.
        scores: the teacher with the largest local_distant first.
        left_out: registered teachers without weights here, or that could not be loaded.
        depth: what was read from the features.
        command, commit, versions, hardware: where the numbers come from.
    """

    dataset: str
    cameras: list[str]
    episodes: int
    frames: int
    frame_indices: list[int]
    grid: list[int]
    scores: list[LayerScores]
    left_out: list[LeftOut]
    depth: DepthRead | None = None
    command: str
    commit: str | None
    versions: dict[str, str]
    hardware: Any

    def save(self, path: Path) -> Path:
        """Writes the scores as JSON; makes the folder if missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_json(path, self.plain())
