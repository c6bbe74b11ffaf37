"""Calibrations: whether they are of a data set, and the cameras of a batch.

Shapes: B batch, V views, n numbers of a state.
"""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_calibration import LEFT, MOVING, RIGHT, TURNED, WRIST, with_value, written

from spatial_forcing.geometry.calibration import Calibration
from spatial_forcing.geometry.cameras import CalibrationError
from spatial_forcing.geometry.matrices import ROTATIONS, of_axis_angle
from spatial_forcing.geometry.pinhole import turns_between


@pytest.fixture
def calibration(tmp_path) -> Calibration:
    return Calibration.read(written(tmp_path, RIGHT))


# ---- the data set ------------------------------------------------------------------------------------------


def meta(**changed: tuple[int, ...]) -> SimpleNamespace:
    """Metadata of a data set with the columns and cameras of the right file; some of other shapes."""
    shapes = {LEFT: (240, 320, 3), WRIST: (480, 640, 3), MOVING: (480, 640, 3)}
    shapes |= {"observation.state": (7,), "moving.intrinsics": (9,), "moving.extrinsics": (3, 4)} | changed
    features = {
        key: {"shape": shape, "names": None, "dtype": "video" if "images" in key else "float32"}
        for key, shape in shapes.items()
    }
    return SimpleNamespace(features=features, camera_keys=[key for key in features if "images" in key])


def test_a_resized_image_fits(calibration):
    calibration.check(meta(), [LEFT, WRIST, MOVING])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({LEFT: (480, 480, 3)}, "those of the data set are 480 x 480: of another aspect ratio"),
        ({"observation.state": (6,)}, "observation.state has 6 numbers, and those of indices [3, 4, 5, 6]"),
        (
            {"moving.extrinsics": (7,)},
            f"extrinsics of camera {MOVING}: The column moving.extrinsics is to hold a matrix of 12, 3 x 4",
        ),
        ({"moving.intrinsics": (3,)}, f"intrinsics of camera {MOVING}: The column moving.intrinsics is to"),
    ],
)
def test_another_data_set_is_refused(calibration, changed, says):
    with pytest.raises(CalibrationError, match=re.escape(says)):
        calibration.check(meta(**changed), [LEFT, WRIST, MOVING])


def test_cameras_and_columns_that_are_not_there_are_named_with_the_nearest(tmp_path, calibration):
    with pytest.raises(CalibrationError, match=f"'observation.images.lef'. Did you mean '{LEFT}'"):
        calibration.check(meta(), ["observation.images.lef"])
    more = meta()
    more.camera_keys += ["observation.images.top"]
    with pytest.raises(
        CalibrationError, match=r"does not calibrate observation.images.top, a camera of the data"
    ):
        calibration.check(more, [LEFT, "observation.images.top"])
    other = meta()
    other.camera_keys.remove(LEFT)
    with pytest.raises(CalibrationError, match=f"Unknown camera '{LEFT}'"):
        calibration.check(other, [LEFT])
    content = with_value("end_effector/position/column", "observation.stat")
    with pytest.raises(
        CalibrationError,
        match=r"position of the end effector: Unknown column .*Did you mean 'observation.state'",
    ) as told:
        Calibration.read(written(tmp_path, content)).check(meta(), [LEFT])
    assert "images" not in str(told.value), "no column of numbers"
    whole = with_value("end_effector/position", {"column": "observation.state"})
    with pytest.raises(CalibrationError, match=r"is to have 3 numbers and has 7. Say which"):
        Calibration.read(written(tmp_path, whole)).check(meta(), [LEFT])


def test_how_cameras_are_turned_against_each_other_is_the_same_in_every_frame():
    draw = torch.Generator().manual_seed(0)
    Q_BV33 = torch.linalg.qr(torch.randn(2, 3, 3, 3, generator=draw, dtype=torch.float64))[0]
    R_BV33 = Q_BV33 * Q_BV33.det()[..., None, None]
    t_BV31 = torch.randn(2, 3, 3, 1, generator=draw, dtype=torch.float64)
    cameras_BV34 = torch.cat([R_BV33, t_BV31], dim=-1)
    elsewhere_BV34 = torch.cat([R_BV33 @ R_BV33[0, 0], 7 * t_BV31], dim=-1)
    assert turns_between(cameras_BV34, elsewhere_BV34).max() < 1e-4
    R_BV33[:, 1] = of_axis_angle(torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)) @ R_BV33[:, 1]
    degrees_BVV = turns_between(cameras_BV34, torch.cat([R_BV33, t_BV31], dim=-1))
    assert degrees_BVV[:, 1, [0, 2]].sub(math.degrees(0.5)).abs().max() < 1e-6
    assert degrees_BVV[:, 0, 2].max() < 1e-4, "these two are as before"


# ---- the cameras of a batch --------------------------------------------------------------------------------


def batch_of(B: int = 4, form: str = "quaternion_xyzw") -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """A raw batch with a random pose of the end effector, and the pose, base_from_hand_B44."""
    from scipy.spatial.transform import Rotation

    rotation = Rotation.random(B, rng=0)
    xyzw = rotation.as_quat()
    forms = {
        "quaternion_xyzw": xyzw,
        "quaternion_wxyz": np.roll(xyzw, 1, axis=-1),
        "axis_angle": rotation.as_rotvec(),
        "euler_xyz": rotation.as_euler("xyz"),
        "matrix": rotation.as_matrix().reshape(B, 9),
    }
    pose_B44 = np.tile(np.eye(4), (B, 1, 1))
    pose_B44[:, :3, :3], pose_B44[:, :3, 3] = (
        rotation.as_matrix(),
        np.random.default_rng(0).normal(size=(B, 3)),
    )
    state_Bn = np.concatenate([pose_B44[:, :3, 3], forms[form]], axis=1)
    moving_B34 = np.linalg.inv(pose_B44)[:, :3]
    return {
        "observation.state": torch.from_numpy(state_Bn).float(),
        "moving.intrinsics": torch.tensor(RIGHT["cameras"][WRIST]["intrinsics"]).flatten().expand(B, 9),
        "moving.extrinsics": torch.from_numpy(moving_B34).float(),
        "index": torch.arange(B),
    }, pose_B44


@pytest.mark.parametrize("form", ROTATIONS)
def test_a_camera_on_the_end_effector_moves_with_it(tmp_path, form):
    batch, pose_B44 = batch_of(form=form)
    content = with_value("end_effector/rotation", {
        "column": "observation.state",
        "indices": list(range(3, 3 + ROTATIONS[form].count)),
        "as": form,
    })  # fmt: skip
    found = Calibration.read(written(tmp_path, content)).pinholes(batch, [WRIST])
    hand_eye_44 = np.array([*RIGHT["cameras"][WRIST]["extrinsics"], [0, 0, 0, 1]], dtype=float)
    expected_B34 = (hand_eye_44 @ np.linalg.inv(pose_B44))[:, :3]
    np.testing.assert_allclose(found.extrinsics_BV34[:, 0].numpy(), expected_B34, atol=1e-5)


def test_pinholes_are_in_unit_coordinates_and_in_the_order_asked_for(calibration):
    batch, pose_B44 = batch_of()
    found = calibration.pinholes(batch, [MOVING, LEFT])
    assert found.intrinsics_BV33.dtype == found.extrinsics_BV34.dtype == torch.float32
    left_33 = torch.tensor([[520.1 / 640, 0, 320.2 / 640], [0, 520.3 / 480, 240.9 / 480], [0, 0, 1]])
    torch.testing.assert_close(found.intrinsics_BV33[:, 1], left_33.expand(4, 3, 3))
    torch.testing.assert_close(found.extrinsics_BV34[:, 1], torch.tensor(TURNED).expand(4, 3, 4))
    np.testing.assert_allclose(found.extrinsics_BV34[:, 0], np.linalg.inv(pose_B44)[:, :3], atol=1e-5)
    np.testing.assert_allclose(calibration.end_effector(batch), pose_B44[:, :3, 3], atol=1e-6)


def test_of_a_history_the_last_observation_counts(calibration):
    batch, _ = batch_of()
    history = {key: torch.stack([-value, value], dim=1) for key, value in batch.items() if value.ndim > 1}
    cameras = [LEFT, WRIST, MOVING]
    expected, found = (calibration.pinholes(of, cameras) for of in (batch, history))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(calibration.end_effector(history), calibration.end_effector(batch))


@pytest.mark.parametrize("stored", [(12,), (16,), (3, 4), (4, 4)])
def test_matrices_may_be_stored_as_rows_or_as_matrices(calibration, stored):
    batch, _ = batch_of()
    expected = calibration.pinholes(batch, [MOVING])
    E_B34 = batch["moving.extrinsics"]
    last_B14 = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(4, 1, 4)
    whole = torch.cat([E_B34, last_B14], dim=1) if 16 in (np.prod(stored),) else E_B34
    found = calibration.pinholes(batch | {"moving.extrinsics": whole.reshape(4, *stored)}, [MOVING])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        (
            "observation.state",
            torch.zeros(4, 7),
            "camera observation.images.wrist: observation.state of frame 0 of the batch is no quaternion",
        ),
        ("observation.state", torch.full((4, 7), torch.nan), "observation.state of frame 0"),
        (
            "moving.extrinsics",
            torch.ones(4, 3, 4),
            "camera observation.images.moving: moving.extrinsics of frame 0 of the batch has no rotation",
        ),
        ("moving.extrinsics", 1000 * torch.eye(4)[:3].expand(4, 3, 4), "has no rotation"),
        (
            "moving.intrinsics",
            torch.zeros(4, 9),
            "camera observation.images.moving: moving.intrinsics of frame 0 of the batch is not of the form",
        ),
    ],
)
def test_columns_that_hold_something_else_are_refused(calibration, column, value, says):
    batch, _ = batch_of()
    with pytest.raises(CalibrationError, match=says):
        calibration.pinholes(batch | {column: value}, [LEFT, WRIST, MOVING])


@pytest.mark.parametrize("stored", [(16,), (4, 4)])
def test_a_matrix_stored_column_by_column_is_refused(calibration, stored):
    batch, _ = batch_of()
    last_B14 = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(4, 1, 4)
    whole_B44 = torch.cat([batch["moving.extrinsics"], last_B14], dim=1)
    with pytest.raises(CalibrationError, match=r"moving\.extrinsics .* row by row.* column by column"):
        calibration.pinholes(batch | {"moving.extrinsics": whole_B44.mT.reshape(4, *stored)}, [MOVING])


def test_a_position_in_millimetres_is_refused(calibration):
    batch, _ = batch_of()
    state_B7 = batch["observation.state"].clone()
    state_B7[:, :3] *= 1000
    moved = batch | {"observation.state": state_B7}
    with pytest.raises(CalibrationError, match=r"observation\.state of frame 0 .* probably in millimetres"):
        calibration.end_effector(moved)
    with pytest.raises(CalibrationError, match="probably in millimetres"):
        calibration.pinholes(moved, [WRIST])


def test_angles_in_degrees_are_refused(tmp_path):
    batch, _ = batch_of(form="euler_xyz")
    rotation = {"column": "observation.state", "indices": [3, 4, 5], "as": "euler_xyz"}
    degrees = batch | {"observation.state": batch["observation.state"].rad2deg()}
    with pytest.raises(CalibrationError, match="probably in degrees"):
        Calibration.read(written(tmp_path, with_value("end_effector/rotation", rotation))).pinholes(
            degrees, [WRIST]
        )


def test_without_an_end_effector_cameras_are_known_and_its_position_is_not(tmp_path):
    content = {"cameras": {LEFT: RIGHT["cameras"][LEFT]}}
    calibration, (batch, _) = Calibration.read(written(tmp_path, content)), batch_of()
    calibration.pinholes(batch, [LEFT])
    with pytest.raises(CalibrationError, match="does not say where the end effector is"):
        calibration.end_effector(batch)
    with pytest.raises(CalibrationError, match="Unknown column of the batch"):
        Calibration.read(written(tmp_path, RIGHT)).end_effector({"index": torch.arange(2)})
