"""Importing is cheap, and imports point one way."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import spatial_forcing

PACKAGE = Path(spatial_forcing.__file__).parent
# LeRobot's plug-in uses the library, which knows nothing of it.
PLUGIN = PACKAGE.parent / "lerobot_policy_spatial_forcing"

# What may import what: a part imports parts on lines above its own; parts on one line may import each other,
# but not in a circle. `errors` is for all. The plug-in is one part.
ORDER = (
    (
        "features",
        "grid",
        "uv",
        "xyz",
        "ranges",
        "registry",
        "console",
        "device",
        "files",
        "guard",
        "listed",
        "command_names",
        "output",
        "plot_style",
        "locks",
        "threads",
        "process_group",
        "processes",
        "datasets",
    ),
    ("site", "control", "target", "losses", "schedules"),
    ("tap",),
    ("check", "mixture"),
    ("projector", "on_grid", "pull", "diagnostics"),
    ("alignment",),
    ("align",),
    ("teachers", "hosts", "openvla"),
    ("cache", "chunks", "patches"),
    (
        "json_record",
        "probe_results",
        "run_results",
        "results",
        "stats",
        "bootstrap",
        "estimates",
        "reach",
        "power",
        "provenance",
    ),
    (
        "probe_options",
        "sim",
        "libero",
        "saved_policy",
        "heldout",
        "rollouts",
        "probe",
        "structure",
        "train",
        "flags",
        "train_command",
    ),
    ("geometry", "token_weights", "rehearsal", "convert", "inspection"),
    ("report", "doctor", "evaluation"),
    ("compare",),
    ("demo_settings", "demo", "cli"),
    (PLUGIN.name,),
)
LINE = {part: line for line, parts in enumerate(ORDER) for part in parts}


def run(program: str) -> dict:
    """What a fresh interpreter prints, as JSON."""
    source = str(PACKAGE.parent)
    program = f"import sys; sys.path.insert(0, {source!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200
    )
    return json.loads(done.stdout)


def test_importing_the_package_is_quick_and_imports_nothing_heavy():
    found = run(
        "import time, json; start = time.perf_counter(); import spatial_forcing\n"
        "seconds = time.perf_counter() - start\n"
        "print(json.dumps({'seconds': seconds, 'modules': sorted({m.split('.')[0] for m in sys.modules})}))"
    )
    assert found["seconds"] < 1
    third_party = set(found["modules"]) - sys.stdlib_module_names - {"__main__", "spatial_forcing"}
    heavy = {"torch", "numpy", "lerobot", "transformers", "mujoco", "matplotlib"}
    assert not third_party & heavy


def test_the_core_imports_torch_and_nothing_else():
    found = run(
        "import json, torch; before = set(sys.modules)\n"
        "import spatial_forcing.align, spatial_forcing.grid, spatial_forcing.tap, spatial_forcing.uv\n"
        "import spatial_forcing.check, spatial_forcing.hosts\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    parts = {name.split(".")[1] for name in found if name.startswith("spatial_forcing.")}
    objective = {"align", "alignment", "diagnostics", "losses", "mixture", "on_grid", "projector"}
    assert parts == objective | {
        *("check", "control", "errors", "features", "grid", "hosts", "ranges", "registry", "site", "tap"),
        *("pull", "schedules", "target", "uv", "xyz"),
    }
    others = {name.split(".")[0] for name in found} - sys.stdlib_module_names
    assert others <= {"spatial_forcing", "torch"}


def test_reading_a_cache_needs_no_locks_and_nothing_that_writes():
    """As on Windows, which has no fcntl: only writing needs processes and locks."""
    found = run(
        "import json, sys, torch\n"
        "for name in 'fcntl filelock spatial_forcing.locks spatial_forcing.processes'.split():\n"
        "    sys.modules[name] = None  # importing it raises ImportError\n"
        "before = set(sys.modules)\n"
        "from spatial_forcing.cache.store import FeatureStore\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    cache = {name.split(".")[2] for name in found if name.startswith("spatial_forcing.cache.")}
    assert cache == {"codec", "layers", "layout", "spans", "store"}
    others = {name.split(".")[0] for name in found} - sys.stdlib_module_names
    assert others <= {"spatial_forcing", "torch", "safetensors"}


@pytest.mark.parametrize("name", [name for name in spatial_forcing.__all__ if name != "__version__"])
def test_public_names_resolve_to_where_they_are_documented(name):
    value = getattr(spatial_forcing, name)
    assert value.__module__.startswith(f"spatial_forcing.{spatial_forcing._HOME[name]}")
    assert value.__doc__


def test_public_names_are_declared_once_each():
    assert set(spatial_forcing.__all__) - {"__version__"} == spatial_forcing._HOME.keys()
    with pytest.raises(AttributeError, match="no attribute 'SpatialForcin'"):
        _ = spatial_forcing.SpatialForcin


# ---- one way -----------------------------------------------------------------------------------------------


def part_of(path: Path) -> str:
    if path.is_relative_to(PLUGIN):
        return PLUGIN.name
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(source: str, package: tuple[str, ...]) -> set[str]:
    """Parts that a file imports, at any level of nesting; `package` is where the file is."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    parts = {name.split(".")[1] for name in names if name.startswith("spatial_forcing.")}
    parts |= {PLUGIN.name for name in names if name.split(".")[0] == PLUGIN.name}
    # `from spatial_forcing import SpatialForcing` is an import of the part it lives in.
    homes = {spatial_forcing._HOME.get(part, part).partition(".")[0] for part in parts}
    return homes - {"errors", "__version__"}


def imports() -> dict[Path, set[str]]:
    """By file, the other parts it imports."""
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *PLUGIN.rglob("*.py")]):
        if part_of(path) not in ("__init__", "errors"):
            package = path.relative_to(PACKAGE.parent).parent.parts
            found[path] = imported_parts(path.read_text(), package) - {part_of(path)}
    return found


def test_every_part_has_its_place():
    strangers = {part_of(path) for path in imports()} - LINE.keys()
    assert not strangers, f"say in ORDER what {sorted(strangers)} may import"


def test_imports_point_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE.parent)} imports {part}"
        for path, parts in imports().items()
        for part in sorted(parts)
        if LINE.get(part, len(ORDER)) > LINE.get(part_of(path), -1)
    ]
    assert not wrong


def test_no_imports_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path, parts in imports().items():
        graph.setdefault(part_of(path), set()).update(parts)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_errors_import_nothing_of_the_package():
    assert imported_parts((PACKAGE / "errors.py").read_text(), ("spatial_forcing",)) == set()


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import spatial_forcing.tap", {"tap"}),
        ("from spatial_forcing import grid, SpatialForcing", {"grid", "align"}),
        ("from spatial_forcing.hosts.tiny import TinyVLA", {"hosts"}),
        ("def f():\n    from ..cache.store import x", {"cache"}),
        ("from . import render", {"sim"}),
        ("from spatial_forcing.errors import SpatialForcingError\nimport torch", set()),
        ("from spatial_forcing import __version__", set()),
        ("from lerobot_policy_spatial_forcing.forcing import X", {"lerobot_policy_spatial_forcing"}),
    ],
)
def test_the_reading_of_imports(source, parts):
    assert imported_parts(source, ("spatial_forcing", "sim")) == parts


def test_the_plug_in_is_counted_and_nothing_imports_it():
    by_part = {part_of(path): parts for path, parts in imports().items()}
    assert PLUGIN.name in by_part
    assert not [path for path, parts in imports().items() if PLUGIN.name in parts]
    # Not by another road either: LeRobot's registry has its types, once LeRobot has imported it.
    assert not [p for p in PACKAGE.rglob("*.py") if f'import_module("{PLUGIN.name}' in p.read_text()]
