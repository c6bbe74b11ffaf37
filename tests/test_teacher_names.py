"""A teacher has a name or a path, and every command that takes one takes the other."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_dataset import make_dataset

import spatial_forcing.teachers as teachers
from spatial_forcing.cache.command import check_options
from spatial_forcing.compare.features import Teaching
from spatial_forcing.demo_settings import DemoSettings, check_settings
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.rehearsal import training_flags
from spatial_forcing.teachers import (
    RECORDS,
    FrozenTeacher,
    TeacherInputError,
    WeightsError,
    find_teacher,
    load_teacher,
)
from spatial_forcing.teachers.base import named_dtype

PACKAGED = Path(teachers.__file__).parent / "weights" / "vggt-tiny-sim.safetensors"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=1, frames=3)


@pytest.fixture
def commands(dataset, tmp_path):
    """By command, what its teacher has to pass before anything is loaded or written."""

    def cached(teacher: str) -> None:
        said = {"dataset": str(dataset), "out": tmp_path / "f", "device": "cpu", "cameras": (), "batch": 8}
        codec = {
            "codec": "pca-int8",
            "components": None,
            "fidelity": 0.99,
            "grid": None,
            "decoders": 1,
            "layers": (),
            "episodes": (),
            "layer": None,
        }
        check_options(SimpleNamespace(teacher=teacher, **said, **codec))

    def demo(teacher: str) -> None:
        check_settings(DemoSettings(teacher=teacher), workers=1)

    def doctor(teacher: str) -> None:
        with training_flags(["--policy.type=tiny"], dataset="owner/name", teacher=teacher) as flags:
            assert f"--policy.forcing.teacher={teacher}" in flags

    return {"cache": cached, "demo": demo, "doctor": doctor, "load_teacher": load_teacher}


@pytest.mark.parametrize("command", ["cache", "demo", "doctor", "load_teacher"])
def test_every_command_takes_a_name_or_a_path(commands, command, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(PACKAGED.read_bytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(PACKAGED.read_bytes())
    for teacher in ("untrained-tiny", str(mine), str(folder)):
        commands[command](teacher)
    with pytest.raises(UnknownNameError, match=r"teacher \(and no file or folder\) 'vggt-1B'.*'vggt-1b'"):
        commands[command]("vggt-1B")
    with pytest.raises(UnknownNameError, match=r"no file or folder\) ''"):
        commands[command]("")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        commands[command](str(tmp_path / "text.safetensors"))


def test_a_path_is_the_teacher_that_it_holds(tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(PACKAGED.read_bytes())
    record = find_teacher(mine)
    assert (record.name, record.path, record.slug) == (str(mine), mine, "mine")
    assert (record.multi_view, record.resolution) == (True, 112)
    assert find_teacher("vggt-tiny-sim").slug == "vggt-tiny-sim"
    assert load_teacher(mine).fingerprint == load_teacher("vggt-tiny-sim").fingerprint
    with pytest.raises(TeacherInputError, match="either a path or a name with weights="):
        load_teacher(mine, weights=mine)


def test_the_features_of_a_teacher_by_its_path_are_in_a_folder_of_its_name(tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(PACKAGED.read_bytes())
    assert Teaching(str(mine)).folder(1.0) == "mine-f100"
    assert Teaching("vggt-tiny-sim", layer=2).folder(0.25) == "vggt-tiny-sim-layer2-f25"


# ---- loaders -----------------------------------------------------------------------------------------------


class Means(FrozenTeacher):
    """The mean colour of each patch."""

    def tokens(self, images_BV3HW, layers):
        return [
            torch.nn.functional.avg_pool2d(images_BV3HW.flatten(0, 1), 14)
            .unflatten(0, images_BV3HW.shape[:2])
            .movedim(2, -1)
        ]


def load_means(record, *, resolution, batch_size, **_):
    return Means(
        name=record.name,
        width=3,
        patch=14,
        licence=record.licence,
        multi_view=False,
        resolution=resolution,
        identity={},
        batch_size=batch_size,
    )


@pytest.mark.parametrize("loader", [load_means, f"{__name__}:load_means"])
def test_a_loader_is_a_function_or_says_where_it_is(loader, request):
    record = replace(RECORDS["pixels"], name="means", loader=loader)
    RECORDS.add(record.name, record)
    request.addfinalizer(lambda: RECORDS.refresh())
    images = torch.rand(2, 1, 3, 28, 28)
    found = load_teacher("means", resolution=28)(images)
    torch.testing.assert_close(found.tokens_BVHWC[0, 0, 1, 0], images[0, 0, :, 14:, :14].mean((-2, -1)))


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ("spatial_forcing.teachers.base", r"expected \"module:function\""),
        ("spatial_forcing.teachers.base:nothing", r"expected \"module:function\""),
        (lambda record, **options: 5, r"gave a int; expected a spatial_forcing.teachers.FrozenTeacher"),
    ],
)
def test_loaders_that_are_none(loader, says):
    with pytest.raises(SpatialForcingError, match=says):
        replace(RECORDS["pixels"], loader=loader).load()


def test_dtypes_have_names():
    assert named_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(UnknownNameError, match="dtype of a teacher 'int8'"):
        named_dtype("int8")
