"""Another's package (tests/third_party) brings a policy, a teacher and a loss, used from the command line.

It is installed as a user would install it, into a folder of its own, and every command runs in a process of
its own with a deadline.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_dataset import make_dataset

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.hosts import registry as hosts
from spatial_forcing.teachers import find_teacher

SOURCE = Path(__file__).parent / "third_party"
PACKAGE = "lerobot_policy_mini"
BIN = Path(sys.executable).parent
SECONDS = 400  # for one command, on a machine that does much else
pytestmark = [pytest.mark.timeout(3 * SECONDS), pytest.mark.system]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the installed package and its metadata, to put on PYTHONPATH."""
    base = tmp_path_factory.mktemp("third-party")
    shutil.copytree(SOURCE, base / "source")  # building writes beside it
    target = base / "installed"
    # Of this environment, or of the one whose packages it sees (.venv-main those of .venv).
    places = [BIN, *(Path(place).parents[2] / "bin" for place in sys.path if place.endswith("site-packages"))]
    uv = shutil.which("uv", path=os.pathsep.join(map(str, places))) or shutil.which("uv")
    assert uv, "make setup installs uv"
    # No network: the build backend is the one that is here, and so is what the package depends on.
    how = "--quiet --offline --no-cache --no-deps --no-build-isolation".split()  # noqa: SIM905
    where = ["--python", sys.executable, "--target", target]
    subprocess.run([uv, "pip", "install", *how, *where, base / "source"], check=True, timeout=SECONDS)
    return target


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4, size=(40, 60))


def run(installed: Path, *words: str, cwd: Path) -> str:
    """What a command prints, with the package installed; it has to end well within the deadline."""
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def data_flags(dataset: Path) -> list[str]:
    return ["--dataset.repo_id=local/small", f"--dataset.root={dataset}", "--num_workers=0"]


@pytest.fixture(scope="module")
def cache(installed, dataset, tmp_path_factory) -> Path:
    """Features of their teacher, one that is not the last layer, by `spatial-forcing cache`."""
    folder = tmp_path_factory.mktemp("cache")
    words = ["--dataset", str(dataset), "--teacher", "edges", "--layer", "0", "--resolution", "28"]
    said = run(
        installed, "spatial-forcing", "cache", *words, "--codec", "raw", "--out", "features", cwd=folder
    )
    assert "Wrote features" in said
    return folder / "features"


def test_their_teacher_makes_a_cache(cache):
    source = json.loads((cache / "manifest.json").read_text())["source"]
    assert source["teacher"] == "edges"
    assert source["teacher_licence"] == "MIT"
    assert (source["layer"], source["layers"], source["resolution"]) == (0, 2, [28, 28])


def test_their_policy_is_trained_by_lerobot_toward_their_teacher(installed, dataset, cache, tmp_path):
    flags = ["--policy.type=sf_mini", f"--policy.forcing.cache={cache}", "--policy.push_to_hub=false"]
    flags += ["--policy.forcing.loss=huber"]
    flags += ["--policy.device=cpu", "--batch_size=2", "--steps=2", "--log_freq=1", "--output_dir=run"]
    said = run(installed, "lerobot-train", *flags, *data_flags(dataset), cwd=tmp_path)
    losses = [float(value) for value in re.findall(r"align_loss:([\d.]+)", said)]
    assert len(losses) == 2, said
    assert all(0 < loss < 1 for loss in losses)
    saved = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    config = json.loads((saved / "config.json").read_text())
    assert (config["type"], "forcing" in config) == ("mini", False)
    forcing = json.loads((saved / "spatial_forcing" / "forcing.json").read_text())
    assert (forcing["teacher_licence"], forcing["loss"]) == ("MIT", "huber")


def test_the_doctor_finds_their_policy_healthy(installed, dataset, tmp_path):
    words = ["--dataset", str(dataset), "--policy.type=mini", "--teacher", "edges", "--layer", "0"]
    said = run(
        installed,
        "spatial-forcing",
        "doctor",
        *words,
        "--resolution",
        "112",
        "--batch-size",
        "2",
        cwd=tmp_path,
    )
    flat = " ".join(said.split())
    assert "[state] [view 1: 3x5]" in flat
    assert "Mini, 4 blocks, width 32" in flat
    assert "perturbation check" in flat
    assert "wrong:" not in flat


def test_a_policy_of_others_that_does_not_work_is_left_out_and_does_not_stop_lerobot(monkeypatch, caplog):
    from lerobot_policy_spatial_forcing import configuration_sf

    ours = hosts.RECORDS.own()["act"]
    theirs = {
        "missing": replace(
            ours, type="missing", config="MissingConfig", module="nobody.configuration_missing"
        ),
        "again": replace(ours, type="again"),
    }
    records = SimpleNamespace(own=lambda: {"act": ours}, working=lambda: {"act": ours} | theirs)
    monkeypatch.setattr(configuration_sf, "RECORDS", records)
    monkeypatch.setattr(
        configuration_sf, "forced_config_class", lambda record: import_module(record.configuration_module)
    )
    assert list(configuration_sf.forced_config_classes()) == ["act"]
    assert "There is no sf_missing: ModuleNotFoundError" in caplog.text
    assert "There is no sf_again: ValueError: another host has a configuration class ACTConfig" in caplog.text


def test_without_the_package_their_names_are_unknown():
    assert "mini" not in hosts.RECORDS
    with pytest.raises(UnknownNameError, match=r"Unknown teacher \(and no file or folder\) 'edges'"):
        find_teacher("edges")


def test_a_host_is_one_file_and_a_teacher_is_one_file():
    files = {
        path.name: path.read_text() for path in (SOURCE / PACKAGE).glob("*.py") if path.name != "__init__.py"
    }
    knowing = {name for name, text in files.items() if "spatial_forcing" in text}
    assert knowing == {"host.py", "edges.py"}
    assert files["huber.py"].count("import") == 2, "a loss is a function of tensors"
    assert "lerobot." not in files["host.py"], "a record imports nothing heavy"
    points = (SOURCE / "pyproject.toml").read_text()
    for group, line in (
        ("losses", f'huber = "{PACKAGE}.huber:huber"'),
        ("hosts", f'mini = "{PACKAGE}.host:RECORD"'),
        ("teachers", f'edges = "{PACKAGE}.edges:'),
    ):
        assert f'[project.entry-points."spatial_forcing.{group}"]\n{line}' in points
