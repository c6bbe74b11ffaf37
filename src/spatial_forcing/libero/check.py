"""The command ``libero check``: what of LIBERO is here, what is missing, and what to do about it.

Nothing is imported, and no environment made, before all that it would ask for or fail without is there.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.libero.assets import fault_of, files_of
from spatial_forcing.libero.install import (
    DRAWS_DARKER,
    GET_ASSETS,
    INSTALL,
    assets_folder,
    config_file,
    draws_darker,
    installed_versions,
    libero_folder,
    missing_packages,
    read_config,
    write_config,
)
from spatial_forcing.libero.suites import Task, check_suite, tasks_of
from spatial_forcing.libero.world import LiberoWorld, fixed_states

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAMED = 5  # faulty files that are named one by one
SIZE = 128


class State(StrEnum):
    """What is said of a part."""

    OK = "ok"
    LOOK = "look"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """What was found of one part.

    Attributes:
        part: which.
        found: what is there.
        state: whether that will do.
        advice: what to do, if there is something.
    """

    part: str
    found: str
    state: State = State.OK
    advice: str = ""


def check_libero(options: Any, console: "Console") -> bool:
    """Checks the installation, and prints a table and what to do.

    Args:
        options: of :class:`spatial_forcing.libero.options.LiberoCheck`.
        console: for both.

    Returns:
        Whether nothing is missing.

    Raises:
        UnknownNameError: no such suite.
        SpatialForcingError: the configuration cannot be written.
    """
    for suite in options.suites:
        check_suite(suite)
    if options.write_config:
        there = config_file().is_file()
        print(f"{'Already there, left as it is' if there else 'Wrote'}: {write_config()}")
    findings = list(_findings(options))
    console.print(_table(findings))
    for one in findings:
        if one.advice:
            console.print(f"{one.part}: {one.advice}", highlight=False, markup=False, soft_wrap=True)
    return all(one.state is not State.MISSING for one in findings)


def _findings(options: Any) -> Iterator[Finding]:
    """Part by part, until one is missing without which the next cannot be looked at."""
    packages = _packages()
    yield packages
    if packages.state is State.MISSING:
        return
    yield _mujoco()
    config = _looked("configuration", lambda: f"{config_file()}" if read_config() else "")
    renderer = _looked("renderer", _renderer)
    yield config
    yield renderer
    whole = True
    for suite in options.suites:
        of_suite = _suite(suite)
        whole = whole and all(one.state is State.OK for one in of_suite)
        yield from of_suite
    ready = whole and config.state is renderer.state is State.OK
    for suite in options.suites if options.draw else ():
        part = f"{suite}, drawn"
        if ready:
            yield _looked(part, partial(_drawn, tasks_of(suite, (0,))[0]))
        else:
            yield Finding(part, "not tried, for want of the above", State.LOOK)


def _looked(part: str, look: Any) -> Finding:
    """What a look says; what it raises is the advice."""
    try:
        return Finding(part, look())
    except SpatialForcingError as error:
        return Finding(part, "", State.MISSING, str(error))


def _packages() -> Finding:
    versions = installed_versions()
    found = ", ".join(f"{name} {of}" for name, of in versions.items())
    absent = missing_packages()
    try:
        libero_folder()
    except SpatialForcingError as error:
        return Finding("packages", found, State.MISSING, str(error))
    if absent:
        advice = f"{', '.join(absent)} cannot be imported. Install with: {INSTALL}"
        return Finding("packages", found, State.MISSING, advice)
    return Finding("packages", found)


def _mujoco() -> Finding:
    version, last = installed_versions().get("mujoco", ""), ".".join(map(str, DRAWS_DARKER))
    if not version:
        return Finding("mujoco", "", State.MISSING, f'Install it with: pip install "mujoco=={last}"')
    if draws_darker(version):
        advice = (
            f"MuJoCo {version} draws LIBERO's floors darker than {last}, the last that draws them as its "
            "benchmark does; that shifts success rates. Numbers to compare with others: pip install "
            f'"mujoco<={last}" (Meta-World here needs 3.3.0).'
        )
        return Finding("mujoco", version, State.LOOK, advice)
    return Finding("mujoco", version)


def _renderer() -> str:
    from spatial_forcing.sim.render import load_mujoco

    load_mujoco()
    return f"MUJOCO_GL={os.environ.get('MUJOCO_GL') or '(unset)'}"


def _suite(suite: str) -> list[Finding]:
    """Scenes, initial states and assets of a suite."""
    tasks = tasks_of(suite)
    absent = [task.bddl.name for task in tasks if not task.bddl.is_file()]
    if absent:
        advice = f"{', '.join(absent[:NAMED])}: install hf-libero anew."
        return [Finding(f"{suite}, scenes", f"{len(absent)} missing", State.MISSING, advice)]
    scenes = Finding(f"{suite}, scenes", f"{len(tasks)} tasks")
    return [scenes, _looked(f"{suite}, initial states", lambda: _states(tasks)), _assets(suite, tasks)]


def _states(tasks: list[Task]) -> str:
    counts = {len(fixed_states(task)) for task in tasks}
    return f"{' or '.join(map(str, sorted(counts)))} per task"


def _assets(suite: str, tasks: list[Task]) -> Finding:
    part = f"{suite}, assets"
    try:
        folder = assets_folder()
    except SpatialForcingError as error:
        return Finding(part, "", State.MISSING, str(error))
    if not (folder / "scenes").is_dir():
        return Finding(part, f"{folder}", State.MISSING, _no_assets(folder))
    files = sorted(files_of(tasks, folder))
    faults = {path: fault for path in files if (fault := fault_of(path))}
    if not faults:
        return Finding(part, f"{len(files)} files in {folder}")
    named = "; ".join(f"{_short(path, folder)} {fault}" for path, fault in list(faults.items())[:NAMED])
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    found = f"{len(faults)} of {len(files)} files are missing or damaged"
    return Finding(part, found, State.MISSING, f"In {folder}: {named}{more}. {_anew(folder)}")


def _no_assets(folder: Path) -> str:
    """What to do about a folder that is there and is not that of the assets."""
    inside = next((one for one in folder.iterdir() if (one / "scenes").is_dir()), None)
    hint = f" Link {inside}, which has one." if inside is not None else ""
    return f"{folder} holds no folder scenes, as LIBERO's assets do.{hint} {_anew(folder)}"


def _anew(folder: Path) -> str:
    """How to replace a folder of assets. The one in the package is taken before the one in the cache."""
    if folder.is_relative_to(libero_folder()):
        return f"Remove {folder}, which is looked at first, and get them: {GET_ASSETS}"
    return f"Get them again: {GET_ASSETS}"


def _short(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _drawn(task: Task) -> str:
    """Makes a scene and draws it, as evaluations do."""
    start = time.perf_counter()
    world = LiberoWorld(task, SIZE, "stock")
    try:
        world.reset(seed=0, state=0)
        made = time.perf_counter() - start
        start = time.perf_counter()
        rgb_VHW3 = world.draw()["rgb_VHW3"]
        drawn = time.perf_counter() - start
    finally:
        world.close()
    grey = " and ".join(f"{of:.0f}" for of in rgb_VHW3.mean(axis=(1, 2, 3)))
    black = "black is 0, these scenes 90 to 150"
    return f"made in {made:.0f} s, drawn in {1000 * drawn:.0f} ms; mean grey {grey} ({black})"


def _table(findings: list[Finding]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in ("part", "found", ""):
        table.add_column(name, overflow="fold")
    for one in findings:
        table.add_row(one.part, one.found, one.state)
    return table
