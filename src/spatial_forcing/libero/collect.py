"""Recording of demonstrations in LIBERO, in the format of the public data set, with depth and cameras.

Names, shapes and conventions are those of HuggingFaceVLA/libero, on which LeRobot's policies train: images
upright and mirrored left to right, a state of 8 and an action of 7 numbers, the task's words, 10 frames per
second said (the simulator does 20 steps). Only episodes in which the expert succeeded are kept
(``attempts.py``).

    root/
      demos.json      specification, versions, assets, how every attempt ended
      meta/, data/, geometry/   see sim/folder.py; intrinsics are of the mirrored images (camera.py)
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder, check_space, read_json
from spatial_forcing.libero.assets import files_of, fingerprint
from spatial_forcing.libero.attempts import (
    Attempts,
    ended,
    geometry_of,
    jobs_of,
    kept_of,
    make,
    path_of,
    read,
)
from spatial_forcing.libero.install import LiberoError, assets_folder, check_installed, installed_versions
from spatial_forcing.libero.spec import LiberoSpec
from spatial_forcing.libero.suites import MOST_STEPS, Task, tasks_of
from spatial_forcing.libero.world import CAMERAS, fixed_states
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import Watch
from spatial_forcing.sim.dataset import write_dataset
from spatial_forcing.sim.folder import (
    NOTE,
    claim_folder,
    finish,
    geometry_path,
    import_ahead,
    import_lerobot,
    is_complete,
    repo_id,
)
from spatial_forcing.sim.pieces import in_processes

FPS = 10
"""Frames per second as the public data set says; a frame is a step of the simulator, of which it does 20."""
ROBOT = "panda"
_AXES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3")
_BESIDE = ("attempts",)


def features(size: int) -> dict[str, dict[str, Any]]:
    """LeRobot's description of a frame, as in the public data set."""
    image = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channel"]}
    named = {"observation.state": [*_AXES, "gripper", "gripper"], "action": [*_AXES, "gripper"]}
    return {f"observation.images.{view}": dict(image) for view in CAMERAS} | {
        key: {"dtype": "float32", "shape": (len(names),), "names": {"motors": names}}
        for key, names in named.items()
    }


def collect(
    spec: LiberoSpec, root: Path, workers: int = 2, progress: Callable[[int], None] = lambda episodes: None
) -> Path:
    """Records demonstrations into a folder, or those of them that are missing.

    Args:
        spec: what to record.
        root: folder; made if missing. The same finished data set is used as it is.
        workers: processes; the result does not depend on their number.
        progress: called with the number of demonstrations that have just been finished (or found finished).

    Returns:
        `root`.

    Raises:
        LiberoError: LIBERO is not installed, or not whole; or the expert fails too often at a task.
        SpatialForcingError: `root` holds something else, another process writes there, the disk is too small,
            or a worker died; nothing is lost.
        RenderingError: this machine cannot render; says what to install.
    """
    root = Path(root)
    if workers < 1:
        raise SpatialForcingError(f"Recording takes at least one process; got {workers} workers.")
    check_folder(root)
    check_installed()
    tasks = tasks_of(spec.suite, spec.tasks)
    if spec.start == "fixed":
        _check_states(spec, tasks)
    assets = assets_folder()
    manifest = {
        "world": "libero",
        "spec": json.loads(json.dumps(asdict(spec))),
        "assets": fingerprint(files_of(tasks, assets), assets),
        "versions": installed_versions(),
    }
    if not is_complete(root):
        check_space(root, _bytes(spec, len(tasks) * spec.episodes))
        with FolderLock(root) as lock:
            claim_folder(root, manifest, _BESIDE)
            if not is_complete(root):  # the one who held the lock may have finished it
                _record(spec, root, tasks, manifest, workers, progress, lock)
                return root
    claim_folder(root, manifest, _BESIDE)
    progress(len(tasks) * spec.episodes)
    return root


def failures_in(root: Path) -> str:
    """How often the expert failed, for people: "4 of 44 attempts failed (task 3: 4 of 24)"."""
    attempts = read_json(root / NOTE)["attempts"]
    failed = {task: sum(not one["success"] for one in of) for task, of in attempts.items()}
    total = sum(map(len, attempts.values()))
    where = ", ".join(f"task {task}: {n} of {len(attempts[task])}" for task, n in failed.items() if n)
    return f"{sum(failed.values())} of {total} attempts failed{f' ({where})' if where else ''}."


# ---- recording ---------------------------------------------------------------------------------------------


def _record(
    spec: LiberoSpec,
    root: Path,
    tasks: list[Task],
    manifest: dict[str, Any],
    workers: int,
    progress: Callable[[int], None],
    lock: FolderLock,
) -> None:
    """Makes attempts until there are enough demonstrations of every task, and joins these."""
    for folder in (root / ".pieces", root / "geometry"):
        folder.mkdir(exist_ok=True)
    # Takes seconds, while the other processes draw. Nobody waits for it when the work is stopped.
    Thread(target=import_ahead, daemon=True).start()
    count = _counter(spec, root, tasks, progress)
    planned = dict.fromkeys(tasks, spec.episodes)
    while True:
        jobs = [job for task in tasks for job in jobs_of(root, task, planned[task])]
        if jobs:
            watch = Watch(partial(Attempts.finished, root=root))
            in_processes(partial(make, spec, root), jobs, workers, count, lock=lock, watch=watch)
        lacking = {
            task: lack
            for task in tasks
            if (lack := spec.episodes - len(kept_of(root, task, planned[task]))) > 0
        }
        if not lacking:
            break
        for task, lack in lacking.items():
            planned[task] += lack
            _check_hope(spec, task, planned[task], spec.episodes - lack)
    import_lerobot()
    _join(spec, root, planned, manifest)


def _check_states(spec: LiberoSpec, tasks: list[Task]) -> None:
    """Raises if a task has fewer fixed initial states than demonstrations are wanted."""
    for task in tasks:
        if spec.episodes > (states := len(fixed_states(task))):
            raise LiberoError(
                f"{task} has {states} fixed initial states, and --episodes {spec.episodes} would begin from "
                f"some of them twice. Give at most --episodes {states}, or --start random."
            )


def _check_hope(spec: LiberoSpec, task: Task, planned: int, kept: int) -> None:
    """Raises after three times as many attempts as demonstrations are wanted, and ten; or when the fixed
    initial states are used up."""
    if spec.start == "fixed" and planned > (states := len(fixed_states(task))):
        raise LiberoError(
            f"From the {states} fixed initial states of {task} the expert makes {kept} demonstrations at "
            f"most, and {spec.episodes} are wanted. Ask for {kept}, in another folder, or --start random."
        )
    if planned > 3 * spec.episodes + 10:
        raise LiberoError(
            f"The expert solved {task} in {kept} of more than {3 * spec.episodes} attempts, of the "
            f"{spec.episodes} that are wanted. What is finished is kept; leave this task out (--tasks), in "
            "another folder."
        )


# ---- joining -----------------------------------------------------------------------------------------------


def _join(spec: LiberoSpec, root: Path, planned: dict[Task, int], manifest: dict[str, Any]) -> None:
    """Joins the attempts that succeeded into a data set."""
    kept = [(task, number) for task, count in planned.items() for number in kept_of(root, task, count)]
    attempts = {
        str(task.number): [ended(root, task, number) for number in range(count)]
        for task, count in planned.items()
    }
    for episode, (task, number) in enumerate(kept):
        recorded = geometry_of(path_of(root, task, number))
        if recorded.exists():  # else it is there already, of an interrupted run
            recorded.replace(geometry_path(root, episode))
    episodes = (read(root, task, number) for task, number in kept)
    described = features(spec.size)
    finish(
        root,
        {**manifest, "attempts": attempts},
        lambda folder: write_dataset(folder, repo_id(root), described, FPS, episodes, ROBOT),
    )


def _counter(
    spec: LiberoSpec, root: Path, tasks: list[Task], progress: Callable[[int], None]
) -> Callable[[], None]:
    """Tells of new demonstrations whenever it is called."""
    seen: dict[tuple[Task, int], bool] = {}
    counted = 0

    def count() -> None:
        nonlocal counted
        for task in tasks:
            for path in (root / ".pieces").glob(f"{task.number:02d}_*.safetensors"):
                key = (task, int(path.stem.split("_")[1]))
                if key not in seen:
                    seen[key] = ended(root, *key)["success"]
        done = sum(seen.values())
        if done > counted:
            progress(done - counted)
            counted = done

    count()
    return count


def _bytes(spec: LiberoSpec, episodes: int) -> float:
    pixels = episodes * MOST_STEPS[spec.suite] / 2 * len(CAMERAS) * spec.size**2
    # Depth takes 2 bytes a pixel, PNG about 2, twice while it is joined; and a tenth more.
    return 1.1 * (pixels * 6.0 + 1e6)
