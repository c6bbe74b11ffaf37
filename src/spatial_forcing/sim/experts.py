"""Recording of one demonstration of Meta-World's scripted experts.

T frames of an episode, V = 2 views, H rows, W columns.
"""

from collections.abc import Iterator

import numpy as np

from spatial_forcing.sim.camera import Camera, Jitter, default_cameras, stack_matrices
from spatial_forcing.sim.spec import DemoSpec
from spatial_forcing.sim.tasks import TASKS
from spatial_forcing.sim.world import World

DEMONSTRATIONS, EVALUATIONS = 1, 2
"""Prefixes of all random seeds: demonstrations and evaluation episodes share no random numbers."""

_HOLD = 10  # frames recorded after success in a full demonstration, so that a policy learns to stay
_WARMUP_NOISE = 0.5
_STACKED = {
    "rgb_VHW3": "rgb_TVHW3",
    "depth_VHW": "depth_TVHW",
    "intrinsics_V33": "intrinsics_TV33",
    "extrinsics_V34": "extrinsics_TV34",
    "state_4": "state_T4",
    "environment_state_6": "environment_state_T6",
    "action_4": "action_T4",
}


def camera_stream(mode: str, jitter: Jitter, rng: np.random.Generator) -> Iterator[tuple[Camera, ...]]:
    """Infinite stream of the camera pair for every frame of an episode, for one of `spec.CAMERA_MODES` or
    "beyond", a pose for the episode outside the range of the others."""
    pair: tuple[Camera, ...] = default_cameras()
    if mode in ("episode", "beyond"):
        pair = tuple(jitter(camera, rng, beyond=mode == "beyond") for camera in pair)
    while True:
        if mode == "frame":
            yield tuple(jitter(camera, rng) for camera in default_cameras())
        else:
            yield pair


def observe(world: World, cameras: tuple[Camera, ...]) -> dict[str, np.ndarray]:
    """Observation of a world: images, depth, camera matrices, hand state and privileged state."""
    images = [world.draw(camera) for camera in cameras]
    intrinsics_V33, extrinsics_V34 = stack_matrices(cameras, world.size, world.size)
    return {
        "rgb_VHW3": np.stack([rgb for rgb, _ in images]),
        "depth_VHW": np.stack([depth for _, depth in images]).astype(np.float16),
        "intrinsics_V33": intrinsics_V33,
        "extrinsics_V34": extrinsics_V34,
        "state_4": world.state,
        "environment_state_6": world.environment_state,
    }


def demonstrate(world: World, spec: DemoSpec, episode: int) -> dict[str, np.ndarray]:
    """Records one demonstration of the world's task.

    Args:
        world: of one of the spec's tasks.
        spec: what to record.
        episode: its number within the task; with the spec it decides everything.

    Returns:
        The arrays of `observe` and the expert's actions, stacked over frames: `rgb_TVHW3` ... `action_T4`.
    """
    key = [DEMONSTRATIONS, spec.seed, sorted(TASKS).index(world.task), episode]
    world_seed, camera_seed, noise_seed = np.random.SeedSequence(key).spawn(3)
    cameras = camera_stream(spec.camera, spec.jitter, np.random.default_rng(camera_seed))
    noise = np.random.default_rng(noise_seed)
    warm = spec.start == "expert-warmup"
    world.reset(world_seed, "random-hand" if warm else spec.start)
    if warm:
        _warm_up(world, noise)
    frames: list[dict[str, np.ndarray]] = []
    left = spec.frames or world.record.max_steps
    while left > 0:
        action = world.expert_action()
        frames.append({**observe(world, next(cameras)), "action_4": action})
        world.step(action + spec.noise * noise.standard_normal(4))
        left -= 1
        if spec.frames is None and world.success():
            left = min(left, _HOLD)
    return {_STACKED[name]: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def _warm_up(world: World, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(0, world.record.max_steps)):
        world.step(world.expert_action() + _WARMUP_NOISE * rng.standard_normal(4))
        if world.success():
            return
