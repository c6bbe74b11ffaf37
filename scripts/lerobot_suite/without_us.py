"""A plug-in of pytest: this package is not installed."""

import importlib.metadata
import sys

OURS = ("spatial_forcing", "lerobot_policy_spatial_forcing")
installed = importlib.metadata.distributions


class Absent:
    """Finds nothing of ours."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


def others(**options):
    """What is installed beside this package."""
    return (found for found in installed(**options) if found.metadata["Name"] not in OURS)


sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
importlib.metadata.distributions = others
