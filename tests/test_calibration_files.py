"""Calibration files: what they say, and what is refused, with file, line and reason."""

import re

import pytest
import yaml
from small_calibration import LEFT, MOVING, RIGHT, TURNED, WRIST, with_value, written

from spatial_forcing.geometry.calibration import CalibratedCamera, Calibration
from spatial_forcing.geometry.cameras import CalibrationError
from spatial_forcing.geometry.columns import Column

# ---- what is refused ---------------------------------------------------------------------------------------

EXTRINSICS, WRONG = f"cameras/{LEFT}/extrinsics", f"cameras/{LEFT}"
FOCAL = {"fx": 520.0, "fy": 520.0, "cx": 320.0, "cy": 240.0}
MALFORMED = {
    "an unknown key": (with_value("camera", {}), "Unknown key of the file 'camera'", "cameras"),
    "no cameras": (with_value("cameras", ...), "the file lacks cameras"),
    "no camera": (with_value("cameras", {}), "a mapping of camera keys"),
    "a list of cameras": (with_value("cameras", [1]), "a mapping of camera keys", "got [1]"),
    "a key of a camera": (with_value(f"{WRONG}/fov", 45), f"key of camera {LEFT} 'fov'", "on, size"),
    "a missing key": (with_value(f"{WRONG}/size", ...), f"camera {LEFT} lacks size"),
    "a camera that is a number": (with_value(WRONG, 3), f"camera {LEFT} is to be a mapping", "got 3"),
    "a size of one number": (with_value(f"{WRONG}/size", [480]), "[height, width]", "got [480]"),
    "a size below zero": (with_value(f"{WRONG}/size", [480, -640]), "[height, width]"),
    "a size in halves": (with_value(f"{WRONG}/size", [480.5, 640]), "[height, width]"),
    "an unknown mount": (with_value(f"{WRONG}/on", "wrist"), "base or end_effector", "got 'wrist'"),
    "intrinsics without cy": (
        with_value(f"{WRONG}/intrinsics", {"fx": 1, "fy": 1, "cx": 2}),
        f"intrinsics of camera {LEFT} lacks cy",
    ),
    "text for a number": (
        with_value(f"{WRONG}/intrinsics", FOCAL | {"fx": "long"}),
        "fx of intrinsics",
        "finite",
    ),
    "an infinite number": (with_value(f"{WRONG}/intrinsics", FOCAL | {"cx": float("inf")}), "finite"),
    "not a number": (with_value(EXTRINSICS, [[float("nan")] * 4] * 3), "a number of", "finite"),
    "a focal length of zero": (with_value(f"{WRONG}/intrinsics", FOCAL | {"fy": 0}), "a focal length of 0"),
    "unit intrinsics": (
        with_value(f"{WRONG}/intrinsics", {"fx": 0.8, "fy": 1.1, "cx": 0.5, "cy": 0.5}),
        "not in pixels of images of this size",
    ),
    "a principal point outside": (
        with_value(f"{WRONG}/intrinsics", FOCAL | {"cx": 700}),
        "principal point outside the image of 480 x 640",
    ),
    "intrinsics of 2 x 3": (with_value(f"{WRONG}/intrinsics", [[1, 2, 3]] * 2), "3 x 3 numbers"),
    "no matrix of intrinsics": (with_value(f"{WRONG}/intrinsics", [[520, 0, 320]] * 3), "is not of the form"),
    "extrinsics of 3 x 3": (with_value(EXTRINSICS, [[1, 0, 0]] * 3), "3 x 4 or 4 x 4 numbers"),
    "another last row": (with_value(EXTRINSICS, [*TURNED, [0, 0, 1, 0]]), "last row [0, 0, 0, 1]"),
    "no rotation": (with_value(EXTRINSICS, [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]), "no rotation"),
    "a mirror": (with_value(EXTRINSICS, [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]), "determinant is -1"),
    "millimetres": (
        with_value(EXTRINSICS, [[1, 0, 0, 20], [0, 1, 0, 310], [0, 0, 1, 940]]),
        "a translation of 990 m",
        "probably in millimetres",
    ),
    "a wrist camera without an end effector": (
        with_value("end_effector", ...),
        f"camera {WRIST} is on the end effector",
        "as: quaternion_xyzw",
    ),
    "a wrist camera without rotation": (with_value("end_effector/rotation", ...), "whose rotation"),
    "a rotation without a form": (
        with_value("end_effector/rotation", {"column": "observation.state", "indices": [3, 4, 5, 6]}),
        "rotation of end_effector lacks as",
    ),
    "an unknown form": (
        with_value("end_effector/rotation/as", "quaternion"),
        "Unknown form of a rotation 'quaternion'",
        "quaternion_xyzw",
    ),
    "too few indices": (
        with_value("end_effector/rotation/indices", [3, 4, 5]),
        "4 different whole numbers",
        "got [3, 4, 5]",
    ),
    "indices twice": (with_value("end_effector/position/indices", [0, 1, 1]), "3 different whole numbers"),
    "indices below zero": (with_value("end_effector/position/indices", [-3, 1, 2]), "3 different whole"),
    "a column without a name": (with_value("end_effector/position/column", 7), "name of a column", "got 7"),
    "no position": (with_value("end_effector", {}), "end_effector lacks position"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_with_file_line_and_reason(tmp_path, case):
    content, *says = MALFORMED[case]
    path = written(tmp_path, content)
    with pytest.raises(CalibrationError) as raised:
        Calibration.read(path)
    message = str(raised.value)
    assert message.startswith(f"{path}, line "), message
    for words in says:
        assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cameras: {a: [1, 2\n", "line 2: not readable as YAML"),
        ("cameras: {a: 1}\nb: c: d\n", "line 2: not readable as YAML"),
        ("\tcameras: 1\n", "line 1: not readable as YAML"),
        ("cameras: {a: {size: [1, 1], size: [2, 2]}}\n", "size of camera a is said twice"),
        ("cameras: &all\n  a: *all\n", "nested too deep, or holds itself"),
        ("cameras: {a: {size: !!int many}}\n", "line 1: size of camera a cannot be read"),
        ("cameras: {a: {size: !!bool many}}\n", "line 1: size of camera a cannot be read"),
        ("cameras: !!python/object:os.system x\n", "line 1: not readable as YAML"),
        ("a: 1\n---\nb: 2\n", "line 2: not readable as YAML"),
        ("- 1\n- 2\n", "line 1: the file is to be a mapping with cameras, end_effector; got [1, 2]"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("cameras: \x00\n", "not readable as YAML"),
    ],
)
def test_damaged_yaml_is_refused_with_the_line(tmp_path, text, says):
    path = written(tmp_path, text)
    with pytest.raises(CalibrationError, match=re.escape(says)):
        Calibration.read(path)


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary"):
        with pytest.raises(CalibrationError, match=r"A calibration is a YAML file; .* cannot be read"):
            Calibration.read(path)


# ---- what is read ------------------------------------------------------------------------------------------


def test_a_file_says_what_is_written_in_it(tmp_path):
    calibration = Calibration.read(written(tmp_path, RIGHT))
    assert calibration.cameras[LEFT] == CalibratedCamera(
        (480, 640), ((520.1, 0.0, 320.2), (0.0, 520.3, 240.9), (0.0, 0.0, 1.0)), tuple(map(tuple, TURNED))
    )
    assert calibration.cameras[MOVING].extrinsics == Column("moving.extrinsics")
    assert calibration.cameras[WRIST].on == "end_effector"
    assert calibration.position == Column("observation.state", (0, 1, 2))


def test_intrinsics_of_mirrored_images_have_a_focal_length_below_zero(tmp_path):
    content = with_value(f"{WRONG}/intrinsics", {"fx": -520.0, "fy": 520.0, "cx": 320.0, "cy": 240.0})
    read = Calibration.read(written(tmp_path, content))
    assert read.cameras[LEFT].intrinsics[0] == (-520.0, 0.0, 320.0)


def test_the_fingerprint_is_of_the_numbers_not_of_their_spelling(tmp_path):
    calibration = Calibration.read(written(tmp_path, RIGHT))
    same = [
        yaml.safe_dump(RIGHT, sort_keys=True, default_flow_style=True),
        yaml.safe_dump(with_value(EXTRINSICS, [*TURNED, [0, 0, 0, 1]])),
        yaml.safe_dump(with_value(EXTRINSICS, [[-0.0, -1, 0, "2e-2"], [0, 0, -1, 0.310], [1, 0, 0, 0.94]])),
        yaml.safe_dump(with_value(f"{WRONG}/intrinsics", [[520.1, 0, 320.2], [0, 520.3, 240.9], [0, 0, 1]])),
        "# a remark\n" + yaml.safe_dump({"end_effector": RIGHT["end_effector"], "cameras": RIGHT["cameras"]}),
    ]
    for content in same:
        assert Calibration.read(written(tmp_path, content)).fingerprint == calibration.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", calibration.fingerprint)
    others = [
        with_value(f"{WRONG}/intrinsics/fx", 520.2),
        with_value(f"{WRONG}/on", "end_effector"),
        with_value("end_effector/rotation/as", "quaternion_wxyz"),
        with_value("end_effector/position/indices", [0, 2, 1]),
    ]
    found = {Calibration.read(written(tmp_path, content)).fingerprint for content in others}
    assert len(found | {calibration.fingerprint}) == 5
