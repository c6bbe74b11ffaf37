"""Rotation matrices from the forms that data sets write rotations in, and what cannot be a camera's matrix.

``ROTATIONS`` has by form how many numbers it has, and its functions: numbers_Bn -> matrix_B33, and
numbers_Bn -> what is wrong with them. A matrix takes coordinates in turned axes to those in the fixed ones.

    quaternion_xyzw, quaternion_wxyz   of norm 1, the real part w last or first
    axis_angle                         the axis times the angle (a rotation vector), radians
    euler_xyz                          roll, pitch, yaw: turns about the fixed axes x, y, z in turn, radians;
                                       R = Rz(yaw) Ry(pitch) Rx(roll), scipy's from_euler("xyz")
    matrix                             3 x 3, row by row

A fault is the first row that is wrong and words that say how; None if there is none.

Shapes: B batch, n numbers of a rotation.
"""

from collections.abc import Callable
from math import tau
from typing import NamedTuple

import torch
from torch import Tensor

from spatial_forcing.teachers.da3_heads import rotation

ORTHONORMAL = 1e-3
UNIT = 0.05  # a quaternion's norm may differ from 1 by so much; it is normalised
FARTHEST = 10.0  # metres from a robot's base to its camera or its hand
Fault = tuple[int, str] | None


class Rotation(NamedTuple):
    """A form of rotations."""

    count: int
    matrices: Callable[[Tensor], Tensor]
    fault: Callable[[Tensor], Fault]


def of_axis_angle(vector_B3: Tensor) -> Tensor:
    """Rotation matrices of rotation vectors, radians: (B, 3, 3)."""
    half_B1 = vector_B3.norm(dim=-1, keepdim=True) / 2
    return rotation(torch.cat([vector_B3 / 2 * torch.sinc(half_B1 / (tau / 2)), half_B1.cos()], dim=-1))


def of_euler(angles_B3: Tensor) -> Tensor:
    """Rotation matrices Rz Ry Rx of roll, pitch, yaw, radians: (B, 3, 3)."""
    Rx, Ry, Rz = (of_axis_angle(one) for one in torch.diag_embed(angles_B3).unbind(-2))
    return Rz @ Ry @ Rx


def of_rows(numbers_B9: Tensor) -> Tensor:
    """Rotation matrices from their rows: (B, 3, 3)."""
    return numbers_B9.unflatten(-1, (3, 3))


# ---- faults ------------------------------------------------------------------------------------------------


def quaternion_fault(numbers_B4: Tensor) -> Fault:
    """A quaternion of another norm than 1."""
    norm_B = numbers_B4.norm(dim=-1)
    return row_where(~((norm_B - 1).abs() <= UNIT), "is no quaternion: the norm of its four numbers is not 1")


def angles_fault(numbers_B3: Tensor) -> Fault:
    """Angles of more than a full turn."""
    return row_where(
        ~(numbers_B3.abs() <= tau + 1e-3).all(-1),
        "has an angle of more than a full turn: it is probably in degrees, and is to be in radians",
    )


def rotation_fault(R_B33: Tensor) -> Fault:
    """A matrix that is no rotation within 1e-3."""
    off_B = (R_B33 @ R_B33.mT - torch.eye(3).to(R_B33)).abs().amax((-2, -1))
    return row_where(
        ~(off_B <= ORTHONORMAL), f"has no rotation: R R^T is off the identity by {off_B.max():.2g}"
    ) or row_where(torch.linalg.det(R_B33) < 0, "has a mirror in place of a rotation: its determinant is -1")


def extrinsics_fault(E_B34: Tensor) -> Fault:
    """A matrix that cannot be extrinsics [R | t] in metres."""
    return rotation_fault(E_B34[..., :3]) or _far(E_B34[..., 3], "has a translation")


def position_fault(p_B3: Tensor) -> Fault:
    """A position of the end effector that is not finite, or not in metres."""
    return row_where(~p_B3.isfinite().all(-1), "is no position: it is not finite") or _far(
        p_B3, "has a position"
    )


def _far(t_B3: Tensor, words: str) -> Fault:
    """A vector that is longer than any from a robot to its camera or its hand."""
    distance_B = t_B3.norm(dim=-1)
    return row_where(
        ~(distance_B <= FARTHEST),
        f"{words} of {distance_B.max():.4g} m, more than {FARTHEST:g}: it is probably in millimetres, and "
        "is to be in metres",
    )


def intrinsics_fault(K_B33: Tensor, height: int, width: int) -> Fault:
    """A matrix that cannot be intrinsics in pixels of images of this size.

    A focal length below zero is that of images mirrored along its axis, as LIBERO's are in x.
    """
    last_3, size_2 = K_B33.new_tensor([0.0, 0.0, 1.0]), K_B33.new_tensor([width, height])
    focal_B2, centre_B2 = K_B33[:, (0, 1), (0, 1)], K_B33[:, :2, 2]
    shape_B = (K_B33[:, 2] == last_3).all(-1) & (K_B33[:, 1, 0] == 0)
    return (
        row_where(~shape_B, "is not of the form [[fx, s, cx], [0, fy, cy], [0, 0, 1]]")
        or row_where(~(focal_B2.abs() > 0).all(-1), "has a focal length of 0")
        or row_where(
            (focal_B2.abs() < 0.1 * size_2).any(-1),
            "has a focal length of less than a tenth of the image, a view of 157 degrees or more: it is "
            "probably not in pixels of images of this size",
        )
        or row_where(
            ~((centre_B2 >= 0) & (centre_B2 <= size_2)).all(-1),
            f"has its principal point outside the image of {height} x {width} pixels",
        )
    )


def row_where(wrong_B: Tensor, words: str) -> Fault:
    """The first row that is wrong, with words that say how."""
    return (int(wrong_B.nonzero()[0]), words) if bool(wrong_B.any()) else None


def _xyzw(wxyz_B4: Tensor) -> Tensor:
    return wxyz_B4.roll(-1, dims=-1)


ROTATIONS = {
    "quaternion_xyzw": Rotation(4, rotation, quaternion_fault),
    "quaternion_wxyz": Rotation(4, lambda wxyz_B4: rotation(_xyzw(wxyz_B4)), quaternion_fault),
    "axis_angle": Rotation(3, of_axis_angle, angles_fault),
    "euler_xyz": Rotation(3, of_euler, angles_fault),
    "matrix": Rotation(9, of_rows, lambda numbers_B9: rotation_fault(of_rows(numbers_B9))),
}
