"""Runs a command of the package in this process."""

import logging
import sys

import pytest

from spatial_forcing.cli import main


def run(*arguments: object) -> int:
    """Exit code of a command. What it does to this process's loggers is undone: other tests read them."""
    ours, root = logging.getLogger("spatial_forcing"), logging.getLogger()
    level = root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "propagate", ours.propagate)
        patch.setattr(ours, "handlers", [*ours.handlers])
        patch.setattr(sys, "argv", ["spatial-forcing", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        finally:
            root.setLevel(level)
    return 0
