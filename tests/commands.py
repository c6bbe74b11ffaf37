"""Runs a command of the package in this process."""

import sys

import pytest

from spatial_forcing.cli import main


def run(*arguments: object) -> int:
    """Exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spatial-forcing", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0
