"""Recording of demonstrations into a LeRobotDataset, with depth and cameras beside it for the probe.

``folder.py`` says what is where. T frames of an episode, V = 2 views ("left", "right"), H rows, W columns.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder, check_space, write_atomically
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import Watch
from spatial_forcing.sim.dataset import FPS, POINTS, VIEWS, features, write_dataset
from spatial_forcing.sim.experts import demonstrate
from spatial_forcing.sim.folder import (
    GEOMETRY,
    check_complete,
    check_geometry,
    claim_folder,
    finish,
    geometry_path,
    import_ahead,
    import_lerobot,
    is_complete,
    load_geometry,
    repo_id,
)
from spatial_forcing.sim.packed import packed, unpacked
from spatial_forcing.sim.pieces import in_processes, versions
from spatial_forcing.sim.points import cell_points
from spatial_forcing.sim.spec import DemoSpec
from spatial_forcing.sim.tasks import task_record
from spatial_forcing.sim.world import World

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DemoSpec", "collect", "demo_dataset", "load_geometry", "render_frames"]

_PIECE = 10
_VECTORS = {
    "observation.state": "state_T4",
    "observation.environment_state": "environment_state_T6",
    "action": "action_T4",
}


@dataclass(frozen=True)
class _Piece:
    """Unit of recording: some consecutive episodes of one task, in one file."""

    number: int
    task: str
    first: int  # within the task
    first_of_all: int
    episodes: int

    def path(self, root: Path) -> Path:
        return root / ".pieces" / f"{self.number:05d}.safetensors"

    def finished(self, root: Path) -> int:
        """Number of its episodes recorded so far; they are lost if the process ends now."""
        episodes = range(self.first_of_all, self.first_of_all + self.episodes)
        return sum(geometry_path(root, episode).exists() for episode in episodes)

    def __str__(self) -> str:
        return f"Recording episodes {self.first} to {self.first + self.episodes - 1} of {self.task}"


def collect(
    spec: DemoSpec, root: Path, workers: int = 2, progress: Callable[[int], None] = lambda episodes: None
) -> Path:
    """Records demonstrations into a folder, or those of them that are missing.

    Args:
        spec: what to record.
        root: folder; made if missing. The same finished data set is used as it is.
        workers: processes; the result does not depend on their number.
        progress: called with the number of episodes that have just been finished (or found finished).

    Returns:
        `root`.

    Raises:
        SpatialForcingError: `root` holds something else, another process writes there, the disk is too small,
            a worker died, or a finished collection has lost depth and cameras; nothing is lost.
        UnknownNameError: an unknown task.
        RenderingError: this machine cannot render; says what to install.
    """
    root = Path(root)
    if workers < 1:
        raise SpatialForcingError(f"Recording takes at least one process; got {workers} workers.")
    check_folder(root)
    if not root.exists():  # before anything as long as the number of episodes is made
        check_space(root, _bytes(spec, len(spec.tasks) * spec.episodes))
    pieces = _plan(spec)
    said = asdict(spec)
    if not spec.points:
        del said["points"]  # as before there were any
    manifest = {
        "spec": json.loads(json.dumps(said)),
        "versions": versions("mujoco", "metaworld", "numpy", "lerobot"),
    }
    if not is_complete(root):
        missing = [piece for piece in pieces if not piece.path(root).exists()]
        check_space(root, _bytes(spec, sum(piece.episodes for piece in missing)))
        with FolderLock(root) as lock:
            claim_folder(root, manifest)
            if not is_complete(root):  # the one who held the lock may have finished it
                _record(spec, root, pieces, manifest, workers, _counter(pieces, root, progress), lock)
                return root
    claim_folder(root, manifest)
    check_geometry(root, len(spec.tasks) * spec.episodes)
    progress(len(spec.tasks) * spec.episodes)
    return root


def demo_dataset(root: Path) -> Any:
    """Opens the `LeRobotDataset` in a folder that `collect` filled; needs no network.

    Raises:
        SpatialForcingError: there is none, or it is not complete.
    """
    check_complete(Path(root))
    return open_dataset(root)


def render_frames(task: str, count: int, size: int = 112, seed: int = 0) -> "tuple[Tensor, Tensor, Tensor]":
    """Renders single frames at random hand positions, without a data set.

    Returns:
        images_BV3HW float32 in [0, 1], state_B4 and the expert's action_B4.
    """
    import torch

    spec = DemoSpec(tasks=(task,), episodes=count, frames=1, size=size, seed=seed)
    world = World(task, size)
    frames = [demonstrate(world, spec, episode) for episode in range(count)]
    rgb_BVHW3 = torch.from_numpy(np.concatenate([frame["rgb_TVHW3"] for frame in frames]))
    images_BV3HW = rgb_BVHW3.movedim(-1, 2).float() / 255
    state_B4, action_B4 = (
        torch.from_numpy(np.concatenate([frame[key] for frame in frames]))
        for key in ("state_T4", "action_T4")
    )
    return images_BV3HW, state_B4, action_B4


def _plan(spec: DemoSpec) -> list[_Piece]:
    starts = range(0, spec.episodes, _PIECE)
    return [
        _Piece(
            t * len(starts) + i, task, first, t * spec.episodes + first, min(_PIECE, spec.episodes - first)
        )
        for t, task in enumerate(spec.tasks)
        for i, first in enumerate(starts)
    ]


def _record(
    spec: DemoSpec,
    root: Path,
    pieces: list[_Piece],
    manifest: dict[str, Any],
    workers: int,
    count: Callable[[], None],
    lock: FolderLock,
) -> None:
    """Records the missing pieces, and joins all."""
    for folder in (root / ".pieces", root / "geometry"):
        folder.mkdir(exist_ok=True)
    # Takes seconds, while the other processes draw. Nobody waits for it when the work is stopped.
    Thread(target=import_ahead, daemon=True).start()
    missing = [piece for piece in pieces if not piece.path(root).exists()]
    in_processes(
        partial(_record_piece, spec, root),
        missing,
        workers,
        count,
        lock=lock,
        watch=Watch(partial(_Piece.finished, root=root)),
    )
    import_lerobot()
    _assemble(spec, root, pieces, manifest)


def _record_piece(spec: DemoSpec, root: Path, piece: _Piece) -> None:
    """Records the episodes of a piece: geometry first, then the piece, whose presence marks it complete."""
    from safetensors.numpy import save_file

    world = World(piece.task, spec.size)
    parts: dict[str, list[np.ndarray]] = {}
    for i in range(piece.episodes):
        episode = demonstrate(world, spec, piece.first + i)
        geometry = {key: episode[key] for key in GEOMETRY}
        write_atomically(geometry_path(root, piece.first_of_all + i), partial(save_file, geometry))
        arrays = packed(episode["rgb_TVHW3"]) | {key: episode[key] for key in _VECTORS.values()}
        if spec.points:
            arrays["points_TP"] = _points(episode, spec.points)
        for key, value in arrays.items():
            parts.setdefault(key, []).append(value)
    tensors = {key: np.concatenate(values) for key, values in parts.items()}
    write_atomically(piece.path(root), partial(save_file, tensors))


def _points(episode: dict[str, np.ndarray], cells: int) -> np.ndarray:
    """The points of all views of each frame, side by side: points_TP."""
    # Views of frames, one after the other.
    depth, intrinsics, extrinsics = (np.concatenate(episode[name]) for name in GEOMETRY)
    return cell_points(depth, intrinsics, extrinsics, cells).reshape(len(episode["depth_TVHW"]), -1)


def _read_piece(piece: _Piece, root: Path) -> Iterator[dict[str, Any]]:
    """Reads the episodes of a piece in the form that `write_dataset` takes."""
    from safetensors.numpy import load_file

    tensors = load_file(piece.path(root))
    columns = _VECTORS | ({POINTS: "points_TP"} if "points_TP" in tensors else {})
    for rows, images in unpacked(tensors, VIEWS):
        vectors = {column: tensors[key][rows] for column, key in columns.items()}
        yield {"task": task_record(piece.task).instruction, **images, **vectors}


def _assemble(spec: DemoSpec, root: Path, pieces: list[_Piece], manifest: dict[str, Any]) -> None:
    """Joins the pieces into a data set."""
    episodes = (episode for piece in pieces for episode in _read_piece(piece, root))
    described = features(spec.size, spec.points)
    finish(
        root,
        manifest,
        lambda folder: write_dataset(folder, repo_id(root), described, FPS, episodes),
    )


def _counter(pieces: list[_Piece], root: Path, progress: Callable[[int], None]) -> Callable[[], None]:
    counted = 0

    def count() -> None:
        nonlocal counted
        done = sum(piece.episodes for piece in pieces if piece.path(root).exists())
        if done > counted:
            progress(done - counted)
            counted = done

    count()
    return count


def _bytes(spec: DemoSpec, episodes: int) -> float:
    pixels = episodes * spec.longest * len(VIEWS) * spec.size**2
    # Depth takes 2 bytes a pixel, PNG about 1.3, twice while it is joined; and a tenth more.
    return 1.1 * (pixels * 6.0 + 1e6)
