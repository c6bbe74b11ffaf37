"""The options of ``libero check`` and ``libero collect``; ``check.py`` and ``collect.py`` do it."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from spatial_forcing.libero.spec import LiberoSpec


@dataclass(frozen=True, kw_only=True)
class LiberoCheck:
    """Check LIBERO's installation: packages, configuration, assets, renderer; and say what to do about it.

    The exit status is 1 if something is missing.
    """

    suites: tuple[str, ...] = ("libero_spatial", "libero_object")
    """Suites whose scenes, initial states and assets are checked."""
    write_config: bool = False
    """Write LIBERO's configuration file where there is none: its first import asks for it on the console."""
    draw: bool = True
    """Also make the first scene of each suite, and draw it (half a minute each)."""

    def run(self) -> None:
        from rich.console import Console

        from spatial_forcing.libero.check import check_libero

        if not check_libero(self, Console()):
            sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class LiberoCollect(LiberoSpec):
    """Record demonstrations of a scripted expert in LIBERO as a LeRobotDataset, with depth and cameras."""

    out: Path
    """Folder of the data set. An interrupted collection continues."""
    workers: int = 2
    """Parallel processes; the data do not depend on their number."""

    def run(self) -> None:
        from rich.console import Console

        from spatial_forcing.console import stages
        from spatial_forcing.libero.collect import collect, failures_in
        from spatial_forcing.libero.suites import task_count

        spec = LiberoSpec(**{one.name: getattr(self, one.name) for one in fields(LiberoSpec)})
        with stages(Console()) as bars:
            total = self.episodes * (len(self.tasks) or task_count(self.suite))
            bar = bars.add_task("demonstrations", total=total)
            root = collect(spec, self.out, workers=self.workers, progress=lambda n: bars.advance(bar, n))
        print(f"Wrote {root}: {total} demonstrations; {failures_in(root)}")
