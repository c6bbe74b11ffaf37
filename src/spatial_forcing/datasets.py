"""Opening LeRobotDatasets by folder or by name on the Hub, without a search for video backends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError


class DatasetError(SpatialForcingError):
    """A data set does not exist, or cannot be read."""


def locate_dataset(dataset: Path | str) -> tuple[str, Path | None]:
    """LeRobot's ``repo_id`` and ``root`` of a data set; no root if it is one on the Hub.

    Args:
        dataset: a data set's folder, or its name on the Hub (owner/name).

    Raises:
        DatasetError: a folder that holds none, or neither a folder nor such a name.
    """
    path = Path(dataset)
    if (path / "meta" / "info.json").is_file():
        return f"local/{path.resolve().name}", path
    if path.exists() or str(dataset).count("/") != 1:
        what = "is not a LeRobotDataset: it has no meta/info.json" if path.exists() else "does not exist"
        raise DatasetError(
            f"{dataset} {what}. Give a data set's folder, or its name on the Hub (owner/name)."
        )
    return str(dataset), None


def open_dataset(
    dataset: Path | str,
    deltas: Callable[[Any], dict[str, list[float]] | None] | None = None,
    *,
    episodes: Sequence[int] | None = None,
) -> Any:
    """Opens a LeRobotDataset.

    Args:
        dataset: see :func:`locate_dataset`.
        deltas: from its metadata to the seconds before and after a frame of which each key is wanted, as for
            action chunks; the frame alone if None.
        episodes: only these; all if None.

    Raises:
        DatasetError: there is none, it cannot be read, or a name cannot be read from the Hub.
        MissingDependencyError: LeRobot is not installed.
    """
    repo_id, root = locate_dataset(dataset)
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "lerobot", "lerobot") from error
    try:
        wanted = None if deltas is None else deltas(LeRobotDatasetMetadata(repo_id, root=root))
        # The default backend looks for FFmpeg and prints a page when there is none; images need neither.
        some = None if episodes is None else list(episodes)
        return LeRobotDataset(
            repo_id, root=root, episodes=some, delta_timestamps=wanted, video_backend="pyav"
        )
    except Exception as error:  # of many kinds: LeRobot's, those of its decoders and of the Hub, the disk's
        said = f"{type(error).__name__}: {error}"
        if root is None:
            raise DatasetError(
                f"{dataset} is no folder here, and could not be read from the Hub: {said}"
            ) from error
        raise DatasetError(
            f"The data set in {dataset} cannot be read: {said}. One of its files is damaged or missing."
        ) from error
