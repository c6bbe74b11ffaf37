"""Domain randomisation of teacher scenes: colours, lights, shapes and camera moves."""

from typing import Any

import numpy as np

from spatial_forcing.sim.camera import Camera, Jitter
from spatial_forcing.sim.render import Primitive
from spatial_forcing.sim.world import World

WIDE = Jitter(azimuth=40.0, elevation=18.0, distance=0.25, lookat=0.07, fov=7.0)
"""Camera jitter of teacher scenes: wider in every way than that of any policy's demonstrations."""

_KEEP = 0.3  # chance that a part keeps its own look, so that the true colours are seen as well


def randomise_looks(world: World, rng: np.random.Generator) -> None:
    """Randomises surface colours and lights of `world` in place; `World.reset` undoes it.

    Bodies of the robot share a hue; the other geoms get one each. Textures are tinted or dropped.
    """
    model = world.env.model
    robot = _robot_geoms(model)
    hue = rng.uniform(0.1, 1.0, 3)
    keep_robot, keep_rest = rng.random(2) < _KEEP
    for geom in range(model.ngeom):
        shade = rng.uniform(-0.12, 0.12, 3)
        own = rng.uniform(0.15, 1.0, 3)
        if keep_robot if robot[geom] else keep_rest:
            continue
        model.geom_rgba[geom, :3] = np.clip(hue + shade, 0.0, 1.0) if robot[geom] else own
    plain = rng.random(model.nmat) < 0.6
    if not keep_rest:
        model.mat_texid[plain] = -1
    _randomise_lights(model, rng)
    world.forward()


def _robot_geoms(model: Any) -> np.ndarray:
    root = model.body("hand").rootid[0]
    return model.body_rootid[model.geom_bodyid] == root


def _randomise_lights(model: Any, rng: np.random.Generator) -> None:
    for light in range(model.nlight):
        direction = rng.normal(size=3)
        direction[2] = -abs(direction[2]) - 0.3
        model.light_dir[light] = direction / np.linalg.norm(direction)
        model.light_diffuse[light] = rng.uniform(0.0, 0.55) * rng.uniform(0.7, 1.0, 3)
        model.light_specular[light] = rng.uniform(0.0, 0.4)
    headlight = model.vis.headlight
    headlight.ambient[:] = rng.uniform(0.3, 0.65) * rng.uniform(0.8, 1.0, 3)
    headlight.diffuse[:] = rng.uniform(0.1, 0.5)


def random_primitives(rng: np.random.Generator) -> list[Primitive]:
    """Zero to four random coloured spheres, boxes and cylinders, above the table or standing on it."""
    return [_random_primitive(rng) for _ in range(rng.integers(0, 5))]


def _random_primitive(rng: np.random.Generator) -> Primitive:
    kind = rng.choice(["sphere", "box", "cylinder"], p=[0.5, 0.25, 0.25])
    size = rng.uniform(0.015, 0.06, 3)
    position = rng.uniform([-0.38, 0.40, 0.06], [0.38, 0.92, 0.42])
    quaternion = rng.normal(size=4)
    yaw = rng.uniform(0.0, np.pi)
    rgba = np.append(rng.uniform(0.0, 1.0, 3), 1.0)
    if kind == "sphere":
        size[1:] = size[0]
    height = {"sphere": size[0], "box": size[2], "cylinder": size[1]}[str(kind)]
    rotation_33 = _rotation(quaternion / np.linalg.norm(quaternion))
    if rng.random() < 0.5:
        position[2] = height
        rotation_33 = _rotation(np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]))
    return Primitive(str(kind), size, position, rotation_33, rgba)


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def sees(camera: Camera, point: np.ndarray, margin: float = 0.04) -> bool:
    """Whether a world point falls into the image, at least `margin` image widths from its edge."""
    matrix_34 = camera.intrinsics_33(1, 1) @ camera.extrinsics_34
    u, v, z = matrix_34 @ np.append(point, 1.0)
    return bool(z > 0 and margin < u / z < 1 - margin and margin < v / z < 1 - margin)
