"""These tests themselves: one that hangs in foreign code is ended."""

import subprocess
import sys

import pytest
from small_workers import TESTS

HANGS = """
import ctypes

def test_hangs():
    ctypes.{library}(None).sleep(1000)  # {library} {does}
"""


@pytest.mark.parametrize(
    ("library", "does", "by"),
    [
        ("CDLL", "lets other threads run", "++ Timeout ++"),
        ("PyDLL", "keeps the interpreter's lock", "Timeout (0:"),
    ],
)
def test_a_test_that_hangs_in_foreign_code_is_ended(tmp_path, library, does, by):
    """With the settings of this project, in less time."""
    (tmp_path / "test_hangs.py").write_text(HANGS.format(library=library, does=does))
    settings = ["-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "no:xdist"]
    settings += ["-o", "timeout=1", "-o", "faulthandler_timeout=5"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    said = ended.stdout + ended.stderr
    assert by in said
    assert "in test_hangs" in said
