"""LIBERO's installation: what is said of what is missing, and that nobody waits for input."""

import builtins
import importlib.util
import struct
import sys
from pathlib import Path

import pytest
from lerobot.envs.configs import EnvConfig
from small_libero import MESH, PNG, TASKS, installed

from spatial_forcing.cli import main
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.libero.assets import fault_of, files_of, fingerprint
from spatial_forcing.libero.install import (
    LiberoError,
    assets_folder,
    check_installed,
    config_file,
    draws_darker,
    load_libero,
    read_config,
    write_config,
)
from spatial_forcing.libero.suites import SUITES, Task, tasks_of
from spatial_forcing.rollouts import made_env

COLLECT = ("libero", "collect", "--suite", "libero_object")


@pytest.fixture(autouse=True)
def nobody_at_the_console(monkeypatch, tmp_path):
    def asked(*words: str) -> str:
        raise AssertionError(f"somebody asks: {words}")

    monkeypatch.setattr(builtins, "input", asked)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def absent(monkeypatch):
    """No LIBERO, whatever is installed here."""
    monkeypatch.setitem(sys.modules, "libero", None)


@pytest.fixture
def assets(monkeypatch, tmp_path) -> Path:
    """A made-up LIBERO and the packages that it needs; its assets."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    folder = installed(tmp_path / "site")
    for name in ("robosuite", "bddl", "numba", "h5py"):
        if importlib.util.find_spec(name) is None:
            (tmp_path / "site" / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, and what a command printed."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spatial-forcing", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- absent ------------------------------------------------------------------------------------------------


def test_commands_without_libero_say_how_to_install_it(absent, capsys, tmp_path):
    code, out, _ = run(capsys, "libero", "check")
    assert code == 1
    assert "LIBERO is not installed. Install it with: pip install" in out
    code, _, err = run(capsys, *COLLECT, "--out", tmp_path / "demos")
    assert code == 2
    assert "LIBERO is not installed" in err
    assert not (tmp_path / "demos").exists()
    with pytest.raises(LiberoError, match="not installed"):
        write_config()
    assert not config_file().exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["libero"], "needs a subcommand: libero check, libero collect"),
        (["libero", "chekc"], "Did you mean 'check'"),
        (["libero", "check", "--suites", "libero_objects"], "Did you mean 'libero_object'"),
        (
            [*COLLECT[:2], "--suite", "libero_goal", "--out", "OUT"],
            "solves the tasks of libero_spatial and libero_object, not those of libero_goal",
        ),
        ([*COLLECT, "--tasks", "3", "10", "--out", "OUT"], "numbered 0 to 9; got 10"),
        ([*COLLECT, "--tasks", "3", "3", "--out", "OUT"], "Task 3 of libero_object is named twice"),
        ([*COLLECT, "--episodes", "0", "--out", "OUT"], "episodes must be at least 1; got 0"),
        ([*COLLECT, "--size", "8", "--out", "OUT"], "size must be at least 16; got 8"),
        ([*COLLECT, "--workers", "0", "--out", "OUT"], "at least one process; got 0"),
    ],
)
def test_bad_options_are_told_before_anything_else(absent, capsys, tmp_path, arguments, says):
    code, _, err = run(capsys, *(one.replace("OUT", str(tmp_path / "demos")) for one in arguments))
    assert code == 2
    assert says in err
    assert not (tmp_path / "demos").exists()


# ---- configuration -----------------------------------------------------------------------------------------


def test_without_a_configuration_nothing_is_imported(assets):
    with pytest.raises(LiberoError, match="libero check --write-config"):
        load_libero()
    assert "libero.libero" not in sys.modules
    assert not config_file().exists()


def test_the_configuration_is_written_once_and_read(assets, capsys, tmp_path):
    code, out, _ = run(capsys, "libero", "check", "--write-config", "--suites", "libero_object", "--no-draw")
    assert code == 1  # its initial states are no states
    assert str(config_file()) in out
    assert Path(read_config()["init_states"]) == assets.parent / "init_files"
    config_file().write_text(f"bddl_files: {tmp_path}\ninit_states: {tmp_path}\n")
    write_config()
    assert read_config()["bddl_files"] == str(tmp_path)


@pytest.mark.parametrize("text", ["bddl_files: /nowhere\n", "[", "- a list\n", "\x00"])
def test_a_configuration_that_is_damaged_is_told(assets, text):
    config_file().parent.mkdir()
    config_file().write_text(text)
    with pytest.raises(LiberoError, match=r"config\.yaml"):
        check_installed()
    assert config_file().read_text() == text


def test_a_package_that_is_missing_is_named(assets, monkeypatch):
    monkeypatch.setitem(sys.modules, "bddl", None)
    with pytest.raises(LiberoError, match="LIBERO needs bddl"):
        check_installed()


def test_missing_assets_are_told_with_how_to_get_them(assets, monkeypatch):
    write_config()
    assets.rename(assets.with_name("elsewhere"))
    monkeypatch.setenv("HOME", str(assets.parent / "home"))
    with pytest.raises(LiberoError, match="hf download lerobot/libero-assets"):
        check_installed()
    fetched = assets.parent / "home" / ".cache" / "libero" / "assets"
    fetched.parent.mkdir(parents=True)
    assets.with_name("elsewhere").rename(fetched)
    assert assets_folder() == fetched
    check_installed()


def test_evaluations_and_comparisons_refuse_before_lerobot_imports_it(assets, monkeypatch):
    """They make LeRobot's environment, whose import would ask."""
    config = EnvConfig.get_choice_class("libero")(task="libero_object")
    with pytest.raises(LiberoError, match="libero check --write-config"):
        made_env(config, 1)
    assert "libero.libero" not in sys.modules
    monkeypatch.setitem(sys.modules, "libero", None)
    with pytest.raises(LiberoError, match=r"LIBERO is not installed\. Install it with: pip install"):
        made_env(config, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "libero_objct"}, "Did you mean 'libero_object'"),
        ({"task": "libero_object", "task_ids": [17]}, "numbered 0 to 9; got 17"),
        ({"control_mode": "absolut"}, "Unknown --env.control_mode 'absolut'. Did you mean 'absolute'"),
        ({"camera_name": "agentview"}, "Did you mean 'agentview_image'"),
    ],
)
def test_what_lerobots_environment_would_not_say(assets, options, says):
    write_config()
    with pytest.raises(SpatialForcingError) as refused:
        made_env(EnvConfig.get_choice_class("libero")(**{"task": "libero_object"} | options), 1)
    assert says in str(refused.value)


# ---- suites, assets ----------------------------------------------------------------------------------------


def test_tasks_are_read_without_importing_libero(assets):
    tasks = tasks_of("libero_object", (1, 0))
    assert [task.number for task in tasks] == [1, 0]
    assert tasks[1].instruction == "pick up the milk and place it in the basket"
    assert all(task.bddl.is_file() for task in tasks)
    assert "libero.libero" not in sys.modules
    with pytest.raises(UnknownNameError, match="libero_object"):
        tasks_of("libero_objects")
    with pytest.raises(SpatialForcingError, match="0 to 89"):
        tasks_of("libero_90", (90,))


def test_instructions_are_the_words_after_the_scene():
    named = "LIVING_ROOM_SCENE2_put_both_the_soup_and_the_box_in_the_basket"
    assert Task("libero_10", 0, named).instruction == "put both the soup and the box in the basket"
    assert set(SUITES) == {"libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"}


def test_a_scene_needs_its_objects_files_and_the_textures_of_its_style(assets):
    files = files_of(tasks_of("libero_object"), assets)
    assert {path.relative_to(assets).as_posix() for path in files} == {
        *(f"stable_objects/{name}/{name}.xml" for name in ("milk", "basket")),
        *(f"stable_objects/{name}/texture.png" for name in ("milk", "basket")),
        *(f"stable_objects/{name}/visual/{name}.msh" for name in ("milk", "basket")),
        "scenes/libero_floor_base_style.xml",
        "textures/light-gray-floor-tile.png",
    }
    assert not any(map(fault_of, files))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("visual/milk.msh", None, "is missing"),
        ("visual/milk.msh", MESH[:-4], "is cut off"),
        ("visual/milk.msh", b"", "is cut off"),
        ("visual/milk.msh", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("texture.png", PNG[:-8], "is cut off"),
        ("texture.png", b"<html>not found</html>", "is no PNG image"),
        ("milk.xml", b"<mujoco>", "is no XML"),
    ],
    ids=["no mesh", "cut mesh", "empty mesh", "pointer", "cut image", "no image", "cut XML"],
)
def test_damaged_assets_are_named(assets, capsys, name, content, says):
    write_config()
    path = assets / "stable_objects" / "milk" / name
    before = fingerprint(files_of(tasks_of("libero_object"), assets), assets)
    path.unlink() if content is None else path.write_bytes(content)
    assert says in str(fault_of(path))
    code, out, _ = run(capsys, "libero", "check", "--suites", "libero_object", "--no-draw")
    assert code == 1
    assert f"stable_objects/milk/{name} is" in out
    assert says in out
    if content:
        assert fingerprint(files_of(tasks_of("libero_object"), assets) | {path}, assets) != before


def test_a_mesh_says_its_own_size(tmp_path):
    path = tmp_path / "a.msh"
    path.write_bytes(struct.pack("4i", 2, 1, 4, 5) + bytes(4 * (6 + 3 + 8 + 15)))
    assert fault_of(path) is None


def test_damage_is_to_be_mended_where_it_is_looked_for(assets, capsys, monkeypatch):
    """The folder in the package is taken before the one that a download fills."""
    write_config()
    (assets / "stable_objects" / "milk" / "milk.xml").unlink()
    check = ("libero", "check", "--suites", "libero_object")
    _, out, _ = run(capsys, *check)
    assert f"Remove {assets}, which is looked at first" in " ".join(out.split())
    assert "libero_object, drawn" in out
    assert "not tried" in out
    assets.rename(assets.with_name("whole"))
    assets.mkdir()
    assets.with_name("whole").rename(assets / "assets")
    _, out, _ = run(capsys, *check)
    assert "holds no folder scenes" in " ".join(out.split())
    assert f"Link {assets / 'assets'}" in " ".join(out.split())


def test_initial_states_that_are_none_are_told(assets, capsys):
    write_config()
    code, out, _ = run(capsys, "libero", "check", "--suites", "libero_object", "--no-draw")
    assert code == 1
    assert "initial states of task 0 of libero_object cannot be read" in out
    assert TASKS[0] in {task.name for task in tasks_of("libero_object")}


@pytest.mark.parametrize(
    ("version", "darker"),
    [("3.3.0", False), ("3.3.2", False), ("3.3.3", True), ("3.10.0", True), ("4.0.1", True)],
)
def test_mujocos_that_draw_darker(version, darker):
    assert draws_darker(version) is darker
