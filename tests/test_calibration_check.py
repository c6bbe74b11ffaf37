"""The check of calibrations: right ones fit, wrong ones do not, and what it says of them.

Shapes: F frames, V views, P pairs, H W pixels.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from spatial_forcing.datasets import open_dataset
from spatial_forcing.geometry.cameras import CalibrationError, cameras_of
from spatial_forcing.geometry.check import examined, lines_of, surface_gap
from spatial_forcing.geometry.judgement import Verdict, judge
from spatial_forcing.geometry.matching import matched, matches_of
from spatial_forcing.geometry.matrices import of_axis_angle
from spatial_forcing.geometry.motion import View, following
from spatial_forcing.geometry.options import CalibrationCheck
from spatial_forcing.geometry.pinhole import Pinholes, centres
from spatial_forcing.sim.collect import DemoSpec, collect, load_geometry

LEFT, RIGHT = "observation.images.left", "observation.images.right"
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


# ---- a world of two planes ---------------------------------------------------------------------------------

K_33 = torch.tensor([[1.2, 0.0, 0.5], [0.0, 1.2, 0.5], [0.0, 0.0, 1.0]])
SIDE = 96


def texture(seed: int) -> Tensor:
    """A random image_13HW of blobs a few pixels wide."""
    noise = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(384, 384), mode="bicubic").clamp(0, 1)


def seen(cameras: Pinholes, position_F3: Tensor) -> Tensor:
    """Images of a wall 2 m ahead of the frame's origin, and a hand of 16 cm in front of it: images_F3HW."""
    K_F33, E_F34 = (of[:, 0] for of in cameras)
    rays_FHW3 = centres(SIDE, SIDE) @ K_F33.inverse().mT[:, None] @ E_F34[:, None, :, :3]
    from_F113 = cameras.centres_BV3[:, :, None]

    def plane(depth_F: Tensor) -> Tensor:
        times_FHW = (depth_F[:, None, None] - from_F113[..., 2]) / rays_FHW3[..., 2]
        return from_F113 + times_FHW[..., None] * rays_FHW3

    wall_FHW3 = plane(torch.full((len(K_F33),), 2.0))
    hand_FHW3 = plane(position_F3[:, 2]) - position_F3[:, None, None]
    images_F3HW = F.grid_sample(
        texture(0).expand(len(K_F33), -1, -1, -1), wall_FHW3[..., :2], align_corners=False
    )
    hand_F3HW = F.grid_sample(
        texture(1).expand(len(K_F33), -1, -1, -1), hand_FHW3[..., :2] / 0.08 / 4, align_corners=False
    )
    on_hand_F1HW = (hand_FHW3[..., :2].abs() < 0.08).all(-1)[:, None]
    return torch.where(on_hand_F1HW, hand_F3HW, images_F3HW)


def frames(cameras: Pinholes, position_F3: Tensor, believed: Pinholes | None = None) -> View:
    """Frames of the two planes, with the cameras that they are believed to be of."""
    images_F3HW = seen(cameras, position_F3)
    pairs_P2 = torch.stack([torch.arange(len(images_F3HW) - 1), torch.arange(1, len(images_F3HW))], dim=1)
    return View(images_F3HW, believed or cameras, position_F3, pairs_P2)


def wandering(F_: int = 24) -> Tensor:
    """Positions of the hand a metre ahead, some centimetres apart: position_F3."""
    t = torch.arange(F_) * 0.25
    return torch.stack([0.25 * t.sin(), 0.2 * (0.7 * t).cos(), 1.0 + 0.1 * (0.4 * t).sin()], dim=-1)


def still(F_: int = 24) -> Pinholes:
    return Pinholes(K_33.expand(F_, 1, 3, 3), torch.eye(4)[:3].expand(F_, 1, 3, 4))


def moving(F_: int = 24) -> Pinholes:
    """A camera that looks ahead from other places, turned a little."""
    t = torch.arange(F_) * 0.8
    R_F33 = of_axis_angle(torch.stack([0.1 * t.sin(), 0.1 * (1.3 * t).cos(), 0.2 * (0.6 * t).sin()], dim=-1))
    t_F31 = torch.stack([0.3 * t.cos(), 0.2 * (0.7 * t).sin(), 0.2 * (1.1 * t).sin()], dim=-1)[..., None]
    return Pinholes(K_33.expand(F_, 1, 3, 3), torch.cat([R_F33, t_F31], dim=-1)[:, None])


def shifted(metres: float) -> Change:
    return lambda K, E: (K, E + metres * F.pad(torch.tensor([[1.0], [0.0], [0.0]]), (3, 0)))


def turned(degrees: float, axis: int = 1) -> Change:
    vector_13 = F.one_hot(torch.tensor([axis]), 3) * torch.tensor(degrees).deg2rad()
    return lambda K, E: (K, of_axis_angle(vector_13)[0] @ E)


def mirrored(K: Tensor, E: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tensor([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]) @ K, E


def inverted(K: Tensor, E: Tensor) -> tuple[Tensor, Tensor]:
    R = E[..., :3].mT
    return K, torch.cat([R, -R @ E[..., 3:]], dim=-1)


def focal(factor: float) -> Change:
    return lambda K, E: (K * torch.tensor([[factor, factor, 1.0], [factor, factor, 1.0], [1.0, 1, 1]]), E)


def test_of_a_right_calibration_the_hand_follows_the_end_effector():
    found = following(frames(still(), wandering()))
    assert found is not None
    assert (found.offset, found.scale, found.turn) == (0.0, 1.0, 0.0)
    assert found.share > 0.7
    assert found.beyond < 0.12


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        (shifted(0.2), lambda found: abs(found.offset - 0.12) <= 0.021),  # the hand reaches 8 cm to each side
        (turned(-10.0, axis=2), lambda found: found.turn == 10),
        (focal(0.8), lambda found: found.scale == 1.25),
        (mirrored, lambda found: found.offset is None or found.offset > 0.05),
    ],
)
def test_a_wrong_calibration_is_measured(change, measured):
    cameras = still()
    found = following(frames(cameras, wandering(), Pinholes(*change(*cameras))))
    assert found is not None
    assert measured(found), found


def test_mirrored_images_fit_the_intrinsics_of_mirrored_images():
    """As LIBERO's are: the focal length in x is below zero, and the extrinsics are the camera's."""
    view = frames(still(), wandering())
    images_F3HW = view.images_F3HW.flip(-1)
    right = View(images_F3HW, Pinholes(*mirrored(*still())), view.position_F3, view.pairs_P2)
    assert judge(right, None, {}).verdict == Verdict.FITS
    found = judge(View(images_F3HW, still(), view.position_F3, view.pairs_P2), None, {})
    assert found.verdict == Verdict.NOT
    assert "the images were mirrored left to right" in found.fits_if


def test_noise_and_flicker_do_not_change_what_follows():
    view = frames(still(), wandering())
    noisy_F3HW = (view.images_F3HW + 0.05 * torch.randn_like(view.images_F3HW)).clamp(0, 1)
    found = following(View(noisy_F3HW, view.cameras, view.position_F3, view.pairs_P2))
    assert found is not None
    assert (found.offset, found.scale, found.turn) == (0.0, 1.0, 0.0)


def test_in_images_of_noise_nothing_follows():
    view = frames(still(), wandering())
    noise = View(torch.rand_like(view.images_F3HW), view.cameras, view.position_F3, view.pairs_P2)
    assert judge(noise, None, {}).verdict == Verdict.NOT


def test_a_hand_of_a_few_pixels_cannot_be_judged():
    far = torch.tensor([0.0, 0.0, 5.0])
    found = judge(frames(still(), wandering() * torch.tensor([5.0, 5.0, 1.0]) + far), None, {})
    assert found.verdict == Verdict.UNKNOWN
    assert "too small in the images: 10 cm of it are 1.9 pixels" in found.reasons[0]


def test_a_hand_that_stands_still_cannot_be_judged():
    view = frames(still(), wandering()[:1].expand(24, 3))
    assert following(view) is None
    assert judge(view, None, {}).verdict == Verdict.UNKNOWN


def test_matches_of_a_moving_camera_lie_where_its_calibration_allows_them():
    cameras, position_F3 = moving(16), torch.tensor([[0.0, 0.0, -5.0]]).expand(16, 3)  # a wall alone
    view = frames(cameras, position_F3)
    matches = matches_of(view)
    right = matched(view, matches)
    assert right is not None
    assert right.error < 0.01 < 0.2 * right.chance
    assert right.gain < 0.1 or right.turn < 5
    for change in (mirrored, inverted):
        wrong = matched(frames(cameras, position_F3, Pinholes(*change(*cameras))), matches)
        assert wrong is not None
        assert wrong.error > 5 * right.error
    off = matched(frames(cameras, position_F3, Pinholes(*turned(10.0)(*cameras))), matches)
    assert off is not None
    assert off.turn == 10
    assert off.gain > 0.3


def test_a_surface_is_looked_for_around_the_projection():
    depth_1hw = torch.full((1, 100, 100), 2.0)
    depth_1hw[:, 50:, :53] = 1.02  # a finger beside the point between two
    place_12, focal_12 = torch.tensor([[0.55, 0.6]]), torch.tensor([[1.2, 1.2]])
    gap_1 = surface_gap(depth_1hw, place_12, torch.tensor([1.0]), focal_12)
    torch.testing.assert_close(gap_1, torch.tensor([0.02]), atol=1e-4, rtol=0)
    assert surface_gap(depth_1hw, torch.tensor([[1.2, 0.6]]), torch.tensor([1.0]), focal_12).isnan()
    assert surface_gap(0 * depth_1hw, place_12, torch.tensor([1.0]), focal_12).isnan()


# ---- the embedded world ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    """Demonstrations whose cameras stand still."""
    spec = DemoSpec(episodes=4, frames=24, camera="fixed", size=112)
    return collect(spec, tmp_path_factory.mktemp("check") / "demos", workers=1)


def calibration_of(root: Path, path: Path, change: Change, size: int = 112) -> Path:
    """Writes the recorded cameras, changed, as a calibration file."""
    geometry = load_geometry(root, 0)
    pixels_33 = torch.tensor([[size], [size], [1.0]])
    cameras = {}
    for v, key in enumerate((LEFT, RIGHT)):
        K, E = change(geometry["intrinsics_TV33"][0, v] / pixels_33, geometry["extrinsics_TV34"][0, v])
        cameras[key] = {
            "size": [size, size],
            "intrinsics": (pixels_33 * K).tolist(),
            "extrinsics": E.double().tolist(),
        }
    position = {"column": "observation.state", "indices": [0, 1, 2]}
    path.write_text(yaml.safe_dump({"cameras": cameras, "end_effector": {"position": position}}))
    return path


def judged(root: Path, calibration: Path | None, cameras=(LEFT, RIGHT)):
    from spatial_forcing.console import stages

    dataset = open_dataset(root)
    source = cameras_of(calibration, dataset)
    with stages(Console(quiet=True)) as bars:
        return examined(dataset, source, cameras, 2, bars)[0]


def test_recorded_cameras_fit(demos):
    for found in judged(demos, None).values():
        assert found.verdict == Verdict.FITS
        assert found.seen == 1
        assert found.depth is not None
        assert abs(found.depth) < 0.04


@pytest.mark.parametrize(
    ("factor", "says"), [(0.1, "too far for an arm that hides it"), (1000.0, "probably in millimetres")]
)
def test_recorded_depth_in_another_unit_does_not_fit(demos, tmp_path, factor, says):
    there = Path(shutil.copytree(demos, tmp_path / "demos"))
    for path in (there / "geometry").glob("*.safetensors"):
        found = load_file(path)
        found["depth_TVHW"] = (found["depth_TVHW"].float() * factor).half()
        save_file(found, path)
    for found in judged(there, None).values():
        assert found.verdict == Verdict.NOT
        assert says in " ".join(found.reasons)


@pytest.mark.parametrize(
    ("change", "verdicts", "says"),
    [
        (lambda K, E: (K, E), {Verdict.FITS}, ""),
        (shifted(0.05), {Verdict.FITS, Verdict.LOOK}, ""),
        (shifted(0.15), {Verdict.NOT}, "cm from it"),
        (turned(10.0), {Verdict.NOT}, "cm from it"),
        (turned(10.0, axis=2), {Verdict.LOOK, Verdict.FITS}, ""),
        (focal(1.5), {Verdict.NOT}, "times as far in the images as projected"),
        (inverted, {Verdict.NOT}, "would fit if the extrinsics were inverted"),
    ],
)
def test_a_file_is_judged_by_the_images(demos, tmp_path, change, verdicts, says):
    path = calibration_of(demos, tmp_path / "calibration.yaml", change)
    for camera, found in judged(demos, path).items():
        assert found.verdict in verdicts, found
        assert says in " ".join(lines_of(camera, found))


def test_swapped_cameras_are_found_out(demos, tmp_path):
    path = calibration_of(demos, tmp_path / "calibration.yaml", lambda K, E: (K, E))
    content = yaml.safe_load(path.read_text())
    left, right = content["cameras"][LEFT], content["cameras"][RIGHT]
    content["cameras"] = {LEFT: right, RIGHT: left}
    path.write_text(yaml.safe_dump(content))
    found = judged(demos, path)
    assert {one.verdict for one in found.values()} == {Verdict.NOT}
    assert found[LEFT].fits_if == (f"it were {RIGHT}",)


def test_cameras_that_move_are_judged_by_matches(tmp_path):
    spec = DemoSpec(episodes=8, frames=6, camera="frame", size=64)
    found = judged(collect(spec, tmp_path / "demos", workers=1), None)
    for one in found.values():
        assert one.matched is not None
        assert one.verdict in (Verdict.FITS, Verdict.LOOK)
        assert one.matched.error < 0.5 * one.matched.chance


def test_the_command_draws_a_row_of_frames_per_camera_and_exits_by_the_verdict(demos, tmp_path, capsys):
    out = tmp_path / "sheets" / "sheet.png"
    CalibrationCheck(dataset=str(demos), frames=3, out=out).run()
    said = capsys.readouterr().out
    assert said.count(" fits") == 2
    assert said.strip().endswith(str(out))
    width, height = Image.open(out).size
    assert 3 * 240 <= width <= 3 * 260
    assert 2 * 240 <= height <= 2 * 290
    path = calibration_of(demos, tmp_path / "calibration.yaml", shifted(0.15))
    with pytest.raises(SystemExit) as status:
        CalibrationCheck(dataset=str(demos), calibration=path, cameras=(LEFT,), frames=1, out=out).run()
    assert status.value.code == 1
    said = capsys.readouterr().out
    assert "does not fit" in said
    assert "right" not in said.split("seen in:")[0]


def test_a_camera_that_the_file_lacks_is_named(demos, tmp_path, capsys):
    """The cameras that are there are judged; the points of the other could not be computed."""
    path = calibration_of(demos, tmp_path / "calibration.yaml", lambda K, E: (K, E))
    said = yaml.safe_load(path.read_text())
    del said["cameras"][RIGHT]
    path.write_text(yaml.safe_dump(said))
    CalibrationCheck(dataset=str(demos), calibration=path, frames=1, out=tmp_path / "sheet.png").run()
    assert f"{RIGHT} is not calibrated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dataset": None}, "Say which data set"),
        ({"frames": 0}, "--frames is the number of frames to draw, at least 1; got 0"),
        ({"out": Path("sheet.jpg")}, "ends in .png"),
        ({"cameras": ("observation.images.lef",)}, f"Did you mean '{LEFT}'"),
        ({"calibration": Path("none.yaml")}, "none.yaml cannot be read"),
    ],
)
def test_wrong_options_are_refused(demos, tmp_path, changed, says):
    options = {"dataset": str(demos), "out": tmp_path / "sheet.png"} | changed
    with pytest.raises(CalibrationError, match=says):
        CalibrationCheck(**options).run()
    assert not (tmp_path / "sheet.png").exists()


def test_the_options_import_nothing_heavy():
    module = sys.modules[CalibrationCheck.__module__]
    assert not {"torch", "rich", "lerobot"} & set(vars(module))
