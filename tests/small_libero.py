"""What LIBERO's tests share: scenes of made-up poses, a simulator of made-up frames, an installation of
made-up files.

Shapes: N corners of boxes.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from spatial_forcing.libero.boxes import Box, extent
from spatial_forcing.libero.expert import Outcome
from spatial_forcing.libero.grasp import Pose, pointing_down
from spatial_forcing.libero.servo import METRES, RADIANS

HALF_3 = np.array([0.02, 0.03, 0.04])
BASKET_3 = np.array([0.1, 0.08, 0.06])
REACH = 0.07  # metres from the gripper to an object that it holds when it has closed


class Kitchen:
    """A scene, as the expert reads one, whose gripper goes where it is told and holds what it closes on.

    Args:
        name: of the object to be brought.
        seed: of the places.
        slips: how often the object stays behind when it is lifted.
    """

    def __init__(self, name: str, seed: int, slips: int = 0):
        draw = np.random.default_rng(seed)
        self.goal = (name, "basket_1")
        self.hand = Pose(np.array([-0.1, 0.0, 0.3]), pointing_down(0.3, np.eye(3))[0])
        self.fingers_2 = np.array([0.04, -0.04])
        self.slips, self.held, self.actions = slips, None, []
        self._places = {
            name: np.array([*draw.uniform(-0.05, 0.1, 2), HALF_3[2]]),
            "basket_1": np.array([0.0, 0.3, BASKET_3[2]]),
        }
        self._halves = {name: HALF_3, "basket_1": BASKET_3}

    @property
    def carried(self) -> str | None:
        return self.goal[0]

    def position_3(self, name: str) -> np.ndarray:
        return self._places[name].copy()

    def boxes(self, name: str) -> list[Box]:
        return [self._box(name)]

    def corners_N3(self, name: str) -> np.ndarray:
        return self._box(name).corners_83

    def around(self, name: str, above: float) -> list[Box]:
        boxes = [self._box(other) for other in self._places if other != name]
        return [box for box in boxes if extent(box.corners_83)[1][2] >= above]

    def step(self, action_7: np.ndarray) -> bool:
        """Moves the gripper, and what it holds; says whether the object lies in the basket, let go."""
        from scipy.spatial.transform import Rotation

        self.actions.append(action_7)
        name, closes = self.goal[0], action_7[6] > 0
        turned_33 = Rotation.from_rotvec(RADIANS * action_7[3:6]).as_matrix() @ self.hand.rotation_33
        self.hand = Pose(self.hand.position_3 + METRES * action_7[:3], turned_33)
        low, high = 0.015, 0.04
        self.fingers_2 = np.array([1, -1]) * (max(low, self.fingers_2[0] - 0.005) if closes else high)
        reached = np.linalg.norm(self._places[name] - self.hand.position_3) < REACH
        if not closes:
            self.held = None
        elif self.held is None and reached and self.fingers_2[0] == low and self.slips > 0:
            self.slips -= 1
            self.held = False  # until it opens
        elif self.held is None and reached and self.fingers_2[0] == low:
            self.held = self._places[name] - self.hand.position_3
        if self.held is not None and self.held is not False:
            self._places[name] = self.hand.position_3 + self.held
        elif not closes:
            self._places[name][2] = self._floor(name)
        return self.held is None and not closes and self._in_basket(name)

    def _floor(self, name: str) -> float:
        return HALF_3[2] + (0.01 if self._in_basket(name) else 0.0)

    def _in_basket(self, name: str) -> bool:
        off_3 = np.abs(self._places[name] - self._places["basket_1"])
        return bool((off_3[:2] < BASKET_3[:2]).all())

    def _box(self, name: str) -> Box:
        return Box(self._places[name], np.eye(3), self._halves[name])


# ---- a simulator -------------------------------------------------------------------------------------------


class MadeUpWorld:
    """A world of frames with numbers in them, whose attempts 1 and 4 fail: what ``LiberoWorld`` gives."""

    FAILED = -1.0
    ROTATION = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    STEPS = 4
    resets: ClassVar[list[tuple[int, int | None]]] = []
    states = np.zeros((2, 5))

    def __init__(self, task: object, size: int, rendering: str):
        self.size, self.number = size, 0.0

    @staticmethod
    def fails(attempt: int) -> bool:
        return attempt in (1, 4)

    def reset(self, seed: int, state: int | None) -> None:
        self.resets.append((seed, state))
        self.seed, self.number = seed, float(10 * seed)

    @property
    def scene(self) -> "MadeUpWorld":
        return self

    @property
    def state_8(self) -> np.ndarray:
        last = self.FAILED if self.fails(self.seed) else 1.0
        return np.array([*range(6), self.number, last], dtype=np.float32)

    @property
    def snapshot(self) -> np.ndarray:
        return np.array([self.number])

    def step(self, action_7: np.ndarray) -> bool:
        self.number += 1
        return not self.fails(self.seed) and self.number - 10 * self.seed >= self.STEPS

    def show(self, snapshot: np.ndarray) -> None:
        self.number = float(snapshot[0])

    def draw(self) -> dict[str, np.ndarray]:
        side, number = self.size, self.number
        K_33 = np.array([[-20.0, 0, side / 2], [0, 20, side / 2], [0, 0, 1]], dtype=np.float32)
        # In the order of a transposed matrix, as a camera's is.
        E_34 = np.asfortranarray(np.c_[self.ROTATION, [0, 0, number]].astype(np.float32))
        rgb_VHW3 = np.full((2, side, side, 3), number, dtype=np.uint8)
        depth_VHW = np.stack([np.full((side, side), number + v, dtype=np.float32) for v in range(2)])
        return {
            "rgb_VHW3": rgb_VHW3,
            "depth_VHW": depth_VHW,
            "intrinsics_V33": np.stack([K_33] * 2),
            "extrinsics_V34": np.asfortranarray(np.stack([E_34] * 2)),
        }

    def close(self) -> None:
        pass

    class expert:
        """Acts until the world says that it is solved, or for six steps."""

        def __init__(self, scene: "MadeUpWorld", step: Callable[[np.ndarray], bool]):
            self.step = step

        def run(self) -> Outcome:
            for steps in range(1, 7):
                if self.step(np.full(7, 0.1 * steps, dtype=np.float32)):
                    return Outcome(True, steps)
            return Outcome(False, 6, "nothing was grasped")


# ---- an installation ---------------------------------------------------------------------------------------

TASKS = ["pick_up_the_milk_and_place_it_in_the_basket", "pick_up_the_soup_and_place_it_in_the_basket"]
BDDL = """(define (problem LIBERO_Floor_Manipulation)
  (:fixtures floor - floor)
  (:objects milk_1 - milk
    basket_1 - basket)
  (:goal (And (In milk_1 basket_1_contain_region))))
"""
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20) + b"IEND" + bytes(4)
MESH = struct.pack("4i", 3, 0, 0, 1) + bytes(4 * (9 + 3))


def installed(site: Path) -> Path:
    """A package like LIBERO, with one suite's files, whose import waits for input; returns its assets."""
    package = site / "libero" / "libero"
    assets = package / "assets"
    for folder in ("benchmark", "bddl_files/libero_object", "init_files/libero_object"):
        (package / folder).mkdir(parents=True)
    (site / "libero" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("raise AssertionError('imported: ' + input('A folder? '))\n")
    table = dict.fromkeys(("libero_object", "libero_spatial"), TASKS * 5)
    (package / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {table!r}\n")
    for task in TASKS:
        (package / "bddl_files" / "libero_object" / f"{task}.bddl").write_text(BDDL)
        (package / "init_files" / "libero_object" / f"{task}.pruned_init").write_bytes(b"")
    write_assets(assets)
    return assets


def write_assets(assets: Path) -> None:
    """The files of the scene above."""
    for name in ("milk", "basket"):
        folder = assets / "stable_objects" / name
        (folder / "visual").mkdir(parents=True)
        (folder / f"{name}.xml").write_text(
            f'<mujoco><asset><texture file="texture.png" name="a"/><mesh file="visual/{name}.msh" name="b"/>'
            "</asset></mujoco>"
        )
        (folder / "texture.png").write_bytes(PNG)
        (folder / "visual" / f"{name}.msh").write_bytes(MESH)
    (assets / "scenes").mkdir()
    (assets / "scenes" / "libero_floor_base_style.xml").write_text(
        '<mujoco><asset><texture file="../textures/other.png" name="texplane"/></asset></mujoco>'
    )
    (assets / "textures").mkdir()
    (assets / "textures" / "light-gray-floor-tile.png").write_bytes(PNG)
