"""The options of ``spatial-forcing inspect``; ``look.py`` does what they ask for."""

import json as plain_json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Inspect:
    """Say what a checkpoint is and whether it would load, from headers alone; exit status 0 if it would."""

    checkpoint: Path
    """Folder or file to look at."""
    key: str | None = None
    """Un-normalisation key that a checkpoint of OpenVLA is to have."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from spatial_forcing.inspection.look import inspect_path

        found = inspect_path(self.checkpoint, self.key)
        print(plain_json.dumps(found.plain(), indent=1) if self.json else found.text())
        if not found.loads or found.unmet:
            sys.exit(1)
