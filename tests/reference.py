"""Where the reference tensors lie: `../shared/reference`, beside the repository, not inside it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "reference"


def reference(path: str) -> Path:
    """Path of a reference file, e.g. `reference("vggt/vggt_tiny_square.safetensors")`.

    Where the file is absent the calling test is skipped with the reason; on CI (environment variable
    `CI=true`), where the references are always laid out, it fails instead.
    """
    file = ROOT / path
    if file.exists():
        return file
    reason = f"reference data not found: {file} (expected at ../shared/reference beside the repository)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
