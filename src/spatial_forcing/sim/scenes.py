"""Random static scenes with depth and cameras, to train a small 3D teacher on.

    python -m spatial_forcing.sim.scenes --out scenes --scenes 8000 --workers 2 --seed 0

Writes `<split>-<number>.safetensors`, a shard for one task each, and `scenes.json`, which names them. A shard
is a function of the seed and its own number, so that the number of workers does not matter, and it appears in
one move when it is whole: an interrupted run is started again and keeps what it has.

N scenes of a shard, V = 2 views, H rows, W columns:

    rgb_NVHW3       uint8
    depth_NVHW      float16   metres along the viewing axis, at most 5
    intrinsics_NV33 float32   pixels
    extrinsics_NV34 float32   world to camera, OpenCV axes
    task_N          int64     index into the task names in scenes.json
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from spatial_forcing.files import check_space, claim, remove_temporary_files, write_atomically
from spatial_forcing.locks import FolderLock
from spatial_forcing.sim.camera import Camera, default_cameras, stack_matrices
from spatial_forcing.sim.pieces import in_processes, versions
from spatial_forcing.sim.randomise import WIDE, random_primitives, randomise_looks, sees
from spatial_forcing.sim.render import Primitive
from spatial_forcing.sim.tasks import POLICY_TASKS, TEACHER_TASKS
from spatial_forcing.sim.world import World

NOTHING = 5.0  # metres, where there is nothing within reach
_SHARD = 100
_SPLITS = ("train", "seen-val", "unseen-val")


@dataclass(frozen=True)
class ScenesSpec:
    """Specification of a set of scenes.

    Attributes:
        train: scenes of `TEACHER_TASKS` to train on.
        seen_val: more scenes of these tasks.
        unseen_val: scenes of `POLICY_TASKS`, which a teacher never trains on.
        size: height and width, pixels.
        seed: of everything.
    """

    train: int = 8000
    seen_val: int = 400
    unseen_val: int = 400
    size: int = 112
    seed: int = 0


@dataclass(frozen=True)
class Shard:
    """A file of consecutive scenes of one task."""

    file: str
    split: str
    task: str
    scenes: int
    number: int

    def __str__(self) -> str:
        return f"Rendering {self.file}"


def plan(spec: ScenesSpec) -> list[Shard]:
    """The shards of a set, grouped by task so that a worker compiles few models."""
    shards: list[Shard] = []
    counts = {"train": spec.train, "seen-val": spec.seen_val, "unseen-val": spec.unseen_val}
    for split, count in counts.items():
        tasks = POLICY_TASKS if split == "unseen-val" else TEACHER_TASKS
        number = 0
        for i, task in enumerate(tasks):
            left = count * (i + 1) // len(tasks) - count * i // len(tasks)
            while left > 0:
                scenes = min(left, _SHARD)
                shards.append(Shard(f"{split}-{number:05d}.safetensors", split, task, scenes, number))
                number, left = number + 1, left - scenes
    return sorted(shards, key=lambda shard: shard.task)


def render_scene(world: World, seed: list[int]) -> dict[str, np.ndarray]:
    """Renders one random scene of `world`, a function of `seed`; keys as in a shard, without N."""
    rng = np.random.default_rng(seed)
    world.reset(seed, start="anywhere")
    for action in rng.uniform(-1.0, 1.0, (rng.integers(0, 8), 4)):
        world.move(action)
    randomise_looks(world, rng)
    primitives = random_primitives(rng)
    images, cameras = [], []
    for home in default_cameras():
        camera, image = _good_view(world, home, primitives, rng)
        images.append(image)
        cameras.append(camera)
    intrinsics_V33, extrinsics_V34 = stack_matrices(cameras, world.size, world.size)
    return {
        "rgb_NVHW3": np.stack([rgb for rgb, _ in images]),
        "depth_NVHW": np.stack([depth for _, depth in images]).clip(max=NOTHING).astype(np.float16),
        "intrinsics_NV33": intrinsics_V33,
        "extrinsics_NV34": extrinsics_V34,
    }


def _good_view(
    world: World, home: Camera, primitives: list[Primitive], rng: np.random.Generator
) -> tuple[Camera, tuple[np.ndarray, np.ndarray]]:
    """Samples a view with the hand in the image and nothing large right before the lens, or else `home`."""
    hand = world.state[:3]
    for _ in range(20):
        camera = WIDE(home, rng)
        if not sees(camera, hand):
            continue
        rgb, depth = world.draw(camera, primitives)
        if np.mean(depth < 0.3) < 0.05 and rgb.mean() > 25 and rgb.std() > 8:
            return camera, (rgb, depth)
    return home, world.draw(home, primitives)


def render_shard(spec: ScenesSpec, out: Path, shard: Shard) -> None:
    """Renders one shard and moves it into place."""
    from safetensors.numpy import save_file

    world = World(shard.task, spec.size)
    key = [spec.seed, _SPLITS.index(shard.split), shard.number]
    scenes = [render_scene(world, [*key, i]) for i in range(shard.scenes)]
    tensors = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
    task = (TEACHER_TASKS + POLICY_TASKS).index(shard.task)
    tensors["task_N"] = np.full(shard.scenes, task, dtype=np.int64)
    write_atomically(out / shard.file, partial(save_file, tensors))


def render_scenes(
    spec: ScenesSpec,
    out: Path,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Renders a set of scenes, or those of them that are missing.

    Args:
        spec: what to render.
        out: folder; made if missing.
        workers: processes.
        progress: called with scenes done and scenes in all.

    Returns:
        `out`.

    Raises:
        SpatialForcingError: `out` holds another set, another process writes there, the disk is too small, or
            a worker died; nothing is lost.
    """
    out = Path(out)
    shards = plan(spec)
    total = sum(shard.scenes for shard in shards)
    missing = [shard for shard in shards if not (out / shard.file).exists()]
    check_space(out, 1.1 * sum(shard.scenes for shard in missing) * 2 * spec.size**2 * 5)

    def report() -> None:
        progress(sum(s.scenes for s in shards if (out / s.file).exists()), total)

    with FolderLock(out) as lock:
        claim(out / "scenes.json", _manifest(spec, shards), what="set of scenes", only=True)
        report()
        in_processes(partial(render_shard, spec, out), missing, workers, report, lock=lock)
        remove_temporary_files(out)
    return out


def _manifest(spec: ScenesSpec, shards: list[Shard]) -> dict:
    return {
        "spec": asdict(spec),
        "tasks": list(TEACHER_TASKS + POLICY_TASKS),
        "versions": versions("mujoco", "metaworld", "numpy"),
        "counts": {s: sum(x.scenes for x in shards if x.split == s) for s in _SPLITS},
        "shards": [asdict(shard) for shard in shards],
    }


def main(
    out: Path,
    scenes: int = 8000,
    seen_val: int = 400,
    unseen_val: int = 400,
    size: int = 112,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Render random scenes for a small 3D teacher, in shards that survive an interruption."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    spec = ScenesSpec(scenes, seen_val, unseen_val, size, seed)
    with Progress("rendering scenes", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        row = bar.add_task("", total=None)
        render_scenes(spec, out, workers, lambda done, total: bar.update(row, completed=done, total=total))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
