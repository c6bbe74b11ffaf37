"""Reader of calibration files: YAML beside a data set that says where its cameras are.

    cameras:
      observation.images.left:             # a camera key of the data set
        size: [480, 640]                   # height and width of the images that the intrinsics are of, pixels
        intrinsics: {fx: 520.1, fy: 520.3, cx: 320.2, cy: 240.9}      # or 3 x 3
        extrinsics:                        # [R | t], metres: x_camera = R x_base + t; or 4 x 4
          - [0.0, -1.0, 0.0, 0.02]
          - [-0.5, 0.0, -0.866025, 0.31]
          - [0.866025, 0.0, -0.5, 0.94]
      observation.images.wrist:
        size: [480, 640]
        intrinsics: {fx: 380.0, fy: 380.0, cx: 320.0, cy: 240.0}
        on: end_effector                   # then x_camera = R x_end_effector + t
        extrinsics: [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.07], [0.0, 0.0, 1.0, 0.04]]
      observation.images.moving:           # columns of the data set: 9, and 12 or 16 numbers, row by row
        size: [480, 640]
        intrinsics: {column: observation.camera.moving.intrinsics}
        extrinsics: {column: observation.camera.moving.extrinsics}
    end_effector:                          # in the base's frame
      position: {column: observation.state, indices: [0, 1, 2]}
      rotation: {column: observation.state, indices: [3, 4, 5, 6], as: quaternion_xyzw}   # for cameras on it

Camera axes are OpenCV's: x right, y down, z forward. ``matrices.py`` has the forms of a rotation. Errors say
file, line, what was expected, what was found, and what to do.
"""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.geometry.calibration import CalibratedCamera, Calibration, Matrix, Turned
from spatial_forcing.geometry.cameras import CalibrationError
from spatial_forcing.geometry.columns import Column
from spatial_forcing.geometry.matrices import ROTATIONS, Fault, extrinsics_fault, intrinsics_fault

MOUNTS = ("base", "end_effector")
PINHOLE = ("fx", "fy", "cx", "cy")
COLUMN = "{column: <column of the data set>}"
# A number of a camera's matrix, the deepest there is, is five levels down. An anchor may hold itself.
DEEPEST = 8


class Node(NamedTuple):
    """A value of the file, with its place: a mapping or list of nodes, or a plain value."""

    value: Any
    field: str
    where: str

    @property
    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        return [node.plain for node in self.value] if isinstance(self.value, list) else self.value

    def wrong(self, expected: str, advice: str = "") -> CalibrationError:
        """The error that this value is not what was expected."""
        found = repr(self.plain)
        found = found if len(found) <= 80 else f"{found[:77]}..."
        return CalibrationError(
            f"{self.where}: {self.field} is to be {expected}; got {found}. {advice}".strip()
        )

    def mapping(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, "Node"]:
        """The nodes of a mapping by key; raises unless it has the keys that it must and may have."""
        known = (*required, *optional)
        if not isinstance(self.value, dict):
            raise self.wrong(f"a mapping with {', '.join(known)}")
        for key, node in self.value.items():
            if key not in known:
                raise CalibrationError(
                    f"{node.where}: {UnknownNameError(f'key of {self.field}', key, known)}"
                )
        missing = [key for key in required if key not in self.value]
        if missing:
            raise CalibrationError(
                f"{self.where}: {self.field} lacks {', '.join(missing)}; it has "
                f"{', '.join(self.value) or 'nothing'}. Add {'it' if len(missing) == 1 else 'them'}."
            )
        return self.value


def read_calibration(path: Path) -> Calibration:
    """Reads a calibration file; see :meth:`Calibration.read`.

    Raises:
        CalibrationError: it cannot be read, or something in it cannot be.
    """
    top = _file(path).mapping(("cameras",), ("end_effector",))
    if not isinstance(top["cameras"].value, dict) or not top["cameras"].value:
        raise top["cameras"].wrong("a mapping of camera keys of the data set to cameras")
    cameras = {key: _camera(node) for key, node in top["cameras"].value.items()}
    position, rotation = _end_effector(top["end_effector"]) if "end_effector" in top else (None, None)
    for key, camera in cameras.items():
        if camera.on == "end_effector" and rotation is None:
            raise CalibrationError(
                f"{top['cameras'].value[key].where}: camera {key} is on the end effector, whose rotation the "
                "file does not say. Add it to end_effector, like rotation: {column: observation.state, "
                "indices: [3, 4, 5, 6], as: quaternion_xyzw}."
            )
    return Calibration(path.name, cameras, position, rotation)


def _camera(node: Node) -> CalibratedCamera:
    found = node.mapping(("size", "intrinsics", "extrinsics"), ("on",))
    size = _size(found["size"])
    mount = found["on"].value if "on" in found else "base"
    if mount not in MOUNTS:
        raise found["on"].wrong(" or ".join(MOUNTS))
    return CalibratedCamera(
        size, _intrinsics(found["intrinsics"], size), _extrinsics(found["extrinsics"]), mount
    )


def _size(node: Node) -> tuple[int, int]:
    size = node.plain
    whole = isinstance(size, list) and all(type(one) is int and one > 0 for one in size)
    if not whole or len(size) != 2:
        raise node.wrong("[height, width], two whole numbers of pixels above 0")
    return size[0], size[1]


def _intrinsics(node: Node, size: tuple[int, int]) -> Matrix | Column:
    if _is_column(node):
        return _column(node)
    if isinstance(node.value, dict):
        fx, fy, cx, cy = (_number(one) for one in _in_order(node.mapping(PINHOLE), PINHOLE))
        matrix: Matrix = ((fx, 0.0, cx), (0.0, fy, cy), (0.0, 0.0, 1.0))
    else:
        matrix = _matrix(
            node, ((3, 3),), f"{{fx: ..., fy: ..., cx: ..., cy: ...}}, 3 x 3 numbers, or {COLUMN}"
        )
    _refuse(
        node,
        intrinsics_fault(torch.tensor([matrix], dtype=torch.float64), *size),
        "Intrinsics are in pixels.",
    )
    return matrix


def _extrinsics(node: Node) -> Matrix | Column:
    if _is_column(node):
        return _column(node)
    matrix = _matrix(node, ((3, 4), (4, 4)), f"3 x 4 or 4 x 4 numbers, [R | t], or {COLUMN}")
    if len(matrix) == 4 and matrix[3] != (0.0, 0.0, 0.0, 1.0):
        raise node.wrong("[R | t] with the last row [0, 0, 0, 1], if 4 x 4")
    _refuse(
        node,
        extrinsics_fault(torch.tensor([matrix[:3]], dtype=torch.float64)),
        "Extrinsics are [R | t] with a rotation R, and t in metres, so that x_camera = R x + t.",
    )
    return matrix[:3]


def _end_effector(node: Node) -> tuple[Column, Turned | None]:
    found = node.mapping(("position",), ("rotation",))
    position = _column(found["position"], 3)
    if "rotation" not in found:
        return position, None
    rotation = found["rotation"]
    form = rotation.mapping(("column", "as"), ("indices",))["as"]
    if not isinstance(form.value, str) or form.value not in ROTATIONS:
        raise CalibrationError(
            f"{form.where}: {UnknownNameError('form of a rotation', form.value, ROTATIONS)}"
        )
    return position, Turned(_column(rotation, ROTATIONS[form.value].count, ("as",)), form.value)


# ---- values ------------------------------------------------------------------------------------------------


def _is_column(node: Node) -> bool:
    return isinstance(node.value, dict) and "column" in node.value


def _column(node: Node, count: int | None = None, beside: Sequence[str] = ()) -> Column:
    """A column; ``count`` numbers of it if given, else a whole matrix."""
    found = node.mapping(("column",), (*beside, *(() if count is None else ("indices",))))
    name = found["column"]
    if not isinstance(name.value, str) or not name.value:
        raise name.wrong("the name of a column of the data set")
    if "indices" not in found:
        return Column(name.value)
    indices = found["indices"].plain
    whole = isinstance(indices, list) and all(type(one) is int and one >= 0 for one in indices)
    if not whole or len(indices) != count or len(set(indices)) < len(indices):
        raise found["indices"].wrong(f"a list of {count} different whole numbers, from 0")
    return Column(name.value, tuple(indices))


def _matrix(node: Node, shapes: Sequence[tuple[int, int]], expected: str) -> Matrix:
    rows = node.value if isinstance(node.value, list) else []
    widths = {len(row.value) if isinstance(row.value, list) else 0 for row in rows}
    if not any(len(rows) == height and widths == {width} for height, width in shapes):
        raise node.wrong(expected)
    return tuple(tuple(_number(one) for one in row.value) for row in rows)


def _number(node: Node) -> float:
    try:
        number = float(node.value) if type(node.value) in (int, float, str) else float("nan")
    except (ValueError, OverflowError):  # YAML takes 1e-3 for text, so text may be a number
        number = float("nan")
    if not isfinite(number):
        raise node.wrong("a finite number")
    return number + 0.0  # no negative zero, which is written otherwise


def _in_order(found: dict[str, Node], keys: Sequence[str]) -> list[Node]:
    return [found[key] for key in keys]


def _refuse(node: Node, fault: Fault, advice: str) -> None:
    if fault is not None:
        raise CalibrationError(f"{node.where}: {node.field} {fault[1]}; got {node.plain}. {advice}")


# ---- YAML --------------------------------------------------------------------------------------------------


def _file(path: Path) -> Node:
    """The content of a YAML file, with the line of each value."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CalibrationError(f"A calibration is a YAML file; {path} cannot be read: {reason}.") from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise CalibrationError(f"{path} is empty; it is to have cameras: and end_effector:.")
        return _node(root, loader, path, "the file", 0)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = str(path) if mark is None else f"{path}, line {mark.line + 1}"
        reason = getattr(error, "problem", None) or error
        raise CalibrationError(f"{where}: not readable as YAML: {reason}. Correct it.") from error


def _node(node: yaml.Node, loader: yaml.SafeLoader, path: Path, field: str, depth: int) -> Node:
    where = f"{path}, line {node.start_mark.line + 1}"
    if depth > DEEPEST:
        raise CalibrationError(f"{where}: {field} is nested too deep, or holds itself. Write it out.")
    if isinstance(node, yaml.SequenceNode):
        inner = f"a number of {field.removeprefix('a number of ')}"
        items = [_node(one, loader, path, inner, depth + 1) for one in node.value]
        return Node(items, field, where)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
            if name in found:
                line = f"{path}, line {key.start_mark.line + 1}"
                raise CalibrationError(f"{line}: {name} of {field} is said twice. Remove one.")
            inner = f"camera {name}" if field == "cameras" else name if depth == 0 else f"{name} of {field}"
            found[name] = _node(value, loader, path, inner, depth + 1)
        return Node(found, field, where)
    try:
        return Node(loader.construct_object(node), field, where)
    except (AttributeError, LookupError, ValueError) as error:  # of a tag: !!int many, !!bool many
        kind = node.tag.rpartition(":")[2]
        raise CalibrationError(
            f"{where}: {field} cannot be read: {node.value!r} is no {kind}. Correct it."
        ) from error
