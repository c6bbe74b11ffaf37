"""A folder of demonstrations: its note, whether it is complete, and depth and cameras beside the data set.

    root/
      demos.json                                specification, versions, whether it is complete
      meta/, data/                              a LeRobotDataset: lerobot-train --dataset.root=root
      geometry/episode_000000.safetensors       depth_TVHW float16 (metres), intrinsics_TV33 (pixels),
                                                extrinsics_TV34 (world to camera)

T frames of an episode, V views in the order of the data set's cameras, H rows, W columns.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.files import claim, read_json, remove_temporary_files, write_json

if TYPE_CHECKING:
    from torch import Tensor

NOTE = "demos.json"
GEOMETRY = ("depth_TVHW", "intrinsics_TV33", "extrinsics_TV34")


def claim_folder(root: Path, manifest: dict[str, Any], beside: tuple[str, ...] = ()) -> None:
    """Claims a folder for the demonstrations that a manifest describes; see :func:`files.claim`."""
    claim(root / NOTE, manifest, what="collection of demonstrations", only=True, beside=("complete", *beside))


def is_complete(root: Path) -> bool:
    """Whether a folder holds demonstrations that were collected to the end."""
    path = root / NOTE
    advice = "Choose another folder, or remove this one to make it anew."
    return path.exists() and bool(read_json(path, advice).get("complete")) and (root / "meta").is_dir()


def check_complete(root: Path) -> None:
    """Raises :class:`SpatialForcingError` unless a folder holds complete demonstrations."""
    if not (root / NOTE).exists():
        raise SpatialForcingError(
            f"{root} holds no demonstrations (no {NOTE}). Make some with: spatial-forcing collect"
        )
    if not is_complete(root):
        raise SpatialForcingError(
            f"The demonstrations in {root} are not complete. Collect them again to continue."
        )


def check_geometry(root: Path, episodes: int) -> None:
    """Raises :class:`SpatialForcingError` if finished demonstrations have lost depth and cameras."""
    lost = sum(not geometry_path(root, episode).is_file() for episode in range(episodes))
    if lost:
        raise SpatialForcingError(
            f"The demonstrations in {root} were finished, and {lost} of {episodes} episodes have lost their "
            f"depth and cameras ({root / 'geometry'}). Collect them into another folder, or delete this one."
        )


def finish(root: Path, manifest: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Joins recorded pieces into a data set; removes only our own unfinished work.

    Args:
        root: the folder; its pieces are in ``.pieces``.
        manifest: what the note says then.
        write: writes the LeRobotDataset into a folder that does not exist yet.
    """
    for folder in (root / ".building", root / "meta", root / "data"):
        shutil.rmtree(folder, ignore_errors=True)
    building = root / ".building"
    write(building)
    for name in ("data", "meta"):
        (building / name).replace(root / name)
    remove_temporary_files(root / "geometry")
    shutil.rmtree(building)
    write_json(root / NOTE, {**manifest, "complete": True})
    shutil.rmtree(root / ".pieces")


def geometry_path(root: Path, episode: int) -> Path:
    """The file with depth and cameras of an episode."""
    return root / "geometry" / f"episode_{episode:06d}.safetensors"


def load_geometry(root: Path, episode: int) -> "dict[str, Tensor]":
    """Loads depth and camera matrices of one episode, aligned with its frames.

    Args:
        root: folder of demonstrations.
        episode: `episode_index` in the data set.

    Returns:
        `depth_TVHW` float16 (metres along the viewing axis), `intrinsics_TV33` float32 (pixels),
        `extrinsics_TV34` float32 (world to camera).

    Raises:
        SpatialForcingError: no such episode, or its file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = geometry_path(Path(root), episode)
    if not path.exists():
        count = len(list(path.parent.glob("episode_*.safetensors")))
        raise SpatialForcingError(
            f"{root} has no geometry of episode {episode}; it has {count} episodes, from 0."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SpatialForcingError(
            f"{path} cannot be read ({error}): it is damaged. Copy it again from where it came, or collect "
            "the demonstrations again into another folder."
        ) from error


def repo_id(root: Path) -> str:
    """The data set's name."""
    return f"local/{root.resolve().name}"


def import_ahead() -> None:
    """Imports what writes data sets, in a thread, as it takes seconds; failures come again in its use."""
    with suppress(Exception):
        import_lerobot()


def import_lerobot() -> None:
    """Imports LeRobot's data sets.

    Raises:
        MissingDependencyError: LeRobot, or something that it needs, is not installed.
    """
    try:
        import lerobot.datasets.lerobot_dataset  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "lerobot", "sim") from error
