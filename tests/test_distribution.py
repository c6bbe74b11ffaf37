"""What pip installs: one distribution with the library and its plug-in, which LeRobot finds."""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from spatial_forcing.errors import DISTRIBUTION, MissingDependencyError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def test_it_holds_both_packages_the_weights_and_one_set_of_metadata(installed):
    version = next(installed.glob("*.dist-info")).name.split("-")[1].removesuffix(".dist")
    assert sorted(path.name for path in installed.iterdir()) == [
        DISTRIBUTION,
        f"{DISTRIBUTION}-{version}.dist-info",
        "spatial_forcing",
    ]
    for package in (DISTRIBUTION, "spatial_forcing"):
        there, here = (
            {
                path.relative_to(root)
                for path in (root / package).rglob("*")
                if "__pycache__" not in path.parts
            }
            for root in (installed, ROOT / "src")
        )
        assert there == here
    assert {path.name for path in (installed / "spatial_forcing").rglob("*.safetensors")} >= {
        "vggt-tiny-sim.safetensors",
        "vggt-tiny-sim-2d.safetensors",
        "vggt-tiny-sim-robot.safetensors",
    }


FOUND = """
import json
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.configs import PreTrainedConfig
register_third_party_plugins()
import lerobot_policy_spatial_forcing as plugin
print(json.dumps([plugin.__file__, list(PreTrainedConfig.get_known_choices())]))
"""


@pytest.mark.system
def test_lerobot_finds_it_by_its_name(installed):
    (found,) = distributions(path=[str(installed)])
    assert found.metadata["Name"] == DISTRIBUTION  # LeRobot imports what is written there
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"import sys; sys.path.insert(0, {str(installed)!r})\n{FOUND}",
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    file, types = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(installed)
    assert {"tiny", "sf_tiny", "sf_smolvla", "sf_groot"} <= set(types)


def test_what_errors_say_to_install_is_there(installed):
    (found,) = distributions(path=[str(installed)])
    extras = set(found.metadata.get_all("Provides-Extra"))
    said = {extra for path in (ROOT / "src").rglob("*.py") for extra in asked_extras(path.read_text())}
    assert said
    assert said <= extras
    assert f'pip install "{DISTRIBUTION}[sim]"' in str(MissingDependencyError("MuJoCo", "sim"))
    required = [line for line in found.requires or () if line.startswith("lerobot[")]
    assert all("<0.7,>=0.6.1" in line for line in required)


def asked_extras(source: str) -> list[str]:
    return re.findall(r'MissingDependencyError\([^,()]+, "(\w+)"', source)
