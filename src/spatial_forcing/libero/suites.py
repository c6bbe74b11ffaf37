"""LIBERO's suites and tasks, read from the files of the installed package without importing it.

Its first import asks on the console for a folder (``install.py``); what tasks there are needs none of that.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.libero.install import LiberoError, libero_folder

MOST_STEPS = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Steps of an episode in LeRobot's evaluation, by suite."""
SUITES = tuple(MOST_STEPS)
REINSTALL = "pip install --force-reinstall --no-deps hf-libero"
EXPERT_SUITES = ("libero_spatial", "libero_object")
"""Suites whose tasks the scripted expert solves."""


@dataclass(frozen=True)
class Task:
    """A task of LIBERO.

    Attributes:
        suite: its suite.
        number: within the suite, as LeRobot's ``--env.task_ids``.
        name: its files' name.
    """

    suite: str
    number: int
    name: str

    @property
    def instruction(self) -> str:
        """What a policy is told: LIBERO's own words, which come from the file's name."""
        return re.sub(r"^[A-Z_]*SCENE\d+_", "", self.name).replace("_", " ")

    @property
    def bddl(self) -> Path:
        """The file that describes scene and goal."""
        return libero_folder() / "bddl_files" / self.suite / f"{self.name}.bddl"

    @property
    def states(self) -> Path:
        """The file of its fixed initial states, fifty."""
        return libero_folder() / "init_files" / self.suite / f"{self.name}.pruned_init"

    def __str__(self) -> str:
        return f"task {self.number} of {self.suite}"


def check_suite(suite: str, known: Sequence[str] = SUITES) -> None:
    """Raises :class:`SpatialForcingError` unless a suite is one of those ``known``."""
    if suite in known:
        return
    if suite in SUITES:
        raise SpatialForcingError(
            f"The scripted expert solves the tasks of {' and '.join(known)}, not those of {suite}."
        )
    raise UnknownNameError("suite of LIBERO", suite, known)


def check_numbers(suite: str, numbers: Sequence[int]) -> None:
    """Raises :class:`SpatialForcingError` unless these are numbers of a suite's tasks, none twice."""
    count = task_count(suite)
    if wrong := [str(number) for number in numbers if not 0 <= number < count]:
        raise SpatialForcingError(
            f"The tasks of {suite} are numbered 0 to {count - 1}; got {', '.join(wrong)}."
        )
    if twice := sorted({str(number) for number in numbers if list(numbers).count(number) > 1}):
        raise SpatialForcingError(f"Task {', '.join(twice)} of {suite} is named twice.")


def task_count(suite: str) -> int:
    """How many tasks a suite has."""
    return 90 if suite == "libero_90" else 10


def tasks_of(suite: str, numbers: Sequence[int] = ()) -> list[Task]:
    """Tasks of a suite, in LIBERO's order.

    Args:
        suite: one of ``SUITES``.
        numbers: of those wanted; all if empty.

    Raises:
        UnknownNameError: no such suite.
        SpatialForcingError: no such task.
        LiberoError: LIBERO is not installed.
    """
    check_suite(suite)
    check_numbers(suite, numbers)
    names = _names(suite)
    return [Task(suite, number, names[number]) for number in numbers or range(len(names))]


def _names(suite: str) -> list[str]:
    """The table of tasks in the package: a file of data."""
    path = libero_folder() / "benchmark" / "libero_suite_task_map.py"
    spec = spec_from_file_location("_libero_suite_task_map", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LiberoError(f"{path} is missing: this LIBERO is not whole. Install it anew: {REINSTALL}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.libero_task_map[suite])
