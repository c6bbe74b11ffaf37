"""What the scripted expert sees of a LIBERO scene: poses and collision boxes, read from the simulator.

Privileged: no policy knows these. World coordinates, metres. Shapes: N corners of boxes.
"""

from typing import Any

import numpy as np

from spatial_forcing.libero.boxes import Box
from spatial_forcing.libero.grasp import Pose

ROBOT = ("robot0", "gripper0", "mount0")  # in the names of its bodies


class Scene:
    """Poses and collision boxes of a scene, as they are whenever they are asked for.

    Args:
        env: robosuite's environment of a LIBERO task, after its reset.
    """

    def __init__(self, env: Any):
        import mujoco

        self._mujoco, self._env = mujoco, env
        self._model, self._data = env.sim.model._model, env.sim.data

    @property
    def hand(self) -> Pose:
        """Where the gripper is: the place between the finger tips."""
        site = self._env.robots[0].eef_site_id
        rotation_33 = self._data.site_xmat[site].reshape(3, 3)
        return Pose(self._data.site_xpos[site].copy(), rotation_33.copy())

    @property
    def fingers_2(self) -> np.ndarray:
        """Positions of the two fingers, metres."""
        return self._data.qpos[self._env.robots[0]._ref_gripper_joint_pos_indexes].copy()

    @property
    def goal(self) -> tuple[str, str]:
        """Which object is to be brought where: the task's first predicate, (On object target) or In."""
        _, name, target = self._env.parsed_problem["goal_state"][0]
        return name, target.replace("_contain_region", "")

    @property
    def carried(self) -> str | None:
        """The object to be picked and placed; None in a task of another kind, or of several objects."""
        goal = self._env.parsed_problem["goal_state"]
        first, *rest = goal
        placed = not rest and first[0].lower() in ("in", "on") and first[1] in self._env.obj_body_id
        return first[1] if placed else None

    def position_3(self, name: str) -> np.ndarray:
        """Where an object is."""
        return self._data.body_xpos[self._env.obj_body_id[name]].copy()

    def boxes(self, name: str) -> list[Box]:
        """An object's boxes."""
        return [self._box(geom) for geom in self._geoms(name)]

    def corners_N3(self, name: str) -> np.ndarray:
        """Corners of an object's boxes."""
        return np.concatenate([box.corners_83 for box in self.boxes(name)])

    def around(self, name: str, above: float) -> list[Box]:
        """Boxes of all else that reaches above a height: neither the robot, nor a plane."""
        own, model = set(self._geoms(name)), self._model
        boxes = []
        for geom in range(model.ngeom):
            collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
            plane = model.geom_type[geom] == self._mujoco.mjtGeom.mjGEOM_PLANE
            if not collides or plane or geom in own or self._is_robot(geom):
                continue
            box = self._box(geom)
            if box.corners_83[:, 2].max() >= above:
                boxes.append(box)
        return boxes

    def _geoms(self, name: str) -> list[int]:
        """Collision geometry of an object."""
        contact = self._env.get_object(name).contact_geoms
        return [self._env.sim.model.geom_name2id(geom) for geom in contact]

    def _is_robot(self, geom: int) -> bool:
        of_body = self._mujoco.mjtObj.mjOBJ_BODY
        body = self._mujoco.mj_id2name(self._model, of_body, self._model.geom_bodyid[geom]) or ""
        return any(part in body for part in ROBOT)

    def _box(self, geom: int) -> Box:
        """The bounding box of a piece of geometry."""
        rotation_33 = self._data.geom_xmat[geom].reshape(3, 3).copy()
        aabb_6 = self._model.geom_aabb[geom]
        return Box(self._data.geom_xpos[geom] + rotation_33 @ aabb_6[:3], rotation_33, aabb_6[3:].copy())
