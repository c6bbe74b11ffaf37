"""Another package on the path, installed as pip would: modules, and entry points in its metadata."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, modules: Mapping[str, str], group: str, **points: str
) -> None:
    """Puts modules (name -> source) and entry points (name="module:attribute") of a group on the path."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    info = folder / "extension-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extension\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))
