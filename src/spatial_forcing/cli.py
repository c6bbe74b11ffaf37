"""The command line: ``spatial-forcing demo | collect | cache | train | compare | eval | probe | ...``.

Each command is a dataclass of options with a ``run`` method, except ``train``, whose options are LeRobot's;
heavy imports wait until the command is known.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

from spatial_forcing import __version__
from spatial_forcing.cache.options import Cache, CacheVerify
from spatial_forcing.command_names import ONLY_WITH_SUBCOMMAND, check_names, parted, with_out, words
from spatial_forcing.compare.options import Compare, CompareStatus, CompareTransfer
from spatial_forcing.convert.options import Convert
from spatial_forcing.demo_settings import DemoSettings
from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.evaluation.options import Eval
from spatial_forcing.geometry.options import CalibrationCheck
from spatial_forcing.geometry.points_options import Points
from spatial_forcing.guard import guarded, terminable
from spatial_forcing.inspection.options import Inspect
from spatial_forcing.libero.options import LiberoCheck, LiberoCollect
from spatial_forcing.probe_options import ProbeOptions
from spatial_forcing.sim.spec import DemoSpec
from spatial_forcing.structure.options import Teachers
from spatial_forcing.threads import waiting_threads_sleep
from spatial_forcing.token_weights.options import Weights


@dataclass(frozen=True, kw_only=True)
class Demo(DemoSettings):
    """Run the whole pipeline on the embedded world: demonstrations, training, comparison, report."""

    out: Path = Path("outputs/demo")
    """Folder of the run. A second run with the same settings reuses what is there."""
    workers: int = 2
    """Parallel processes."""

    def run(self) -> None:
        from spatial_forcing.demo import run_demo

        settings = DemoSettings(**{one.name: getattr(self, one.name) for one in fields(DemoSettings)})
        run_demo(settings, self.out, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class Collect(DemoSpec):
    """Record demonstrations of scripted experts as a LeRobotDataset."""

    out: Path
    """Folder of the data set. An interrupted collection continues."""
    workers: int = 2
    """Parallel processes; the data do not depend on their number."""

    def run(self) -> None:
        from spatial_forcing.console import stages
        from spatial_forcing.sim.collect import collect
        from spatial_forcing.sim.folder import is_complete

        there = is_complete(self.out)
        spec = DemoSpec(**{one.name: getattr(self, one.name) for one in fields(DemoSpec)})
        with stages(_console()) as bars:
            bar = bars.add_task("demonstrations", total=self.episodes * len(self.tasks))
            root = collect(spec, self.out, workers=self.workers, progress=lambda n: bars.advance(bar, n))
        print(f"{root} already holds these demonstrations." if there else f"Wrote {root}")


@dataclass
class Train:
    """Train a policy with the flags of lerobot-train, and keep its metrics in metrics.jsonl."""

    def run(self) -> None:
        train(sys.argv[2:])


@dataclass(frozen=True, kw_only=True)
class Probe(ProbeOptions):
    """Depth probe: read depth from the frozen visual tokens of policies, site by site."""

    comparison: Path | None = None
    """Folder of a finished comparison or demo, in place of --policies and --dataset: the policies of its
    first seed, on its held-out episodes."""

    def run(self) -> None:
        from spatial_forcing.probe.command import probe

        if self.comparison is None:
            probe(self, _console())
        else:
            from spatial_forcing.compare.probing import of_comparison

            probe(of_comparison(self, self.comparison.resolve()), _console())


@dataclass
class Report:
    """Rebuild the report of a comparison from its results.json."""

    out: Path = Path("outputs/demo")
    """Folder of a comparison or a demo: any folder with a results.json."""
    step: int | None = None
    """Print the report as of this step, an earlier evaluation, as Markdown, and write nothing."""

    def run(self) -> None:
        from spatial_forcing.compare.folder import comparison_in
        from spatial_forcing.report import write_report
        from spatial_forcing.results import Results

        results = self.out / "results.json"
        if not results.is_file():
            comparison_in(self.out)  # says what was found instead of one
            raise SpatialForcingError(
                f"{self.out} has no results.json: finish the comparison with the command that began it."
            )
        advice = "Finish the comparison again with the command that began it."
        found = Results.read(results, advice)
        if self.step is None:
            print(write_report(found, self.out))
            return
        from spatial_forcing.report.as_of import as_of
        from spatial_forcing.report.markdown import markdown
        from spatial_forcing.report.summary import summarise

        print(markdown(summarise(as_of(found, self.step))), end="")


@dataclass
class Doctor:
    """Check a training command (any flags of lerobot-train) before it runs, and report what looks wrong."""

    dataset: str | None = None
    """Folder of a LeRobotDataset, or its name on the Hub; without one a few frames are rendered."""
    checkpoint: Path | None = None
    """Saved policy to check; the built-in VLA if None and without --policy.type or --policy.path."""
    teacher: str | None = None
    """Registered teacher, or a local file or folder; vggt-tiny-sim if None and without a cache."""
    teacher_checkpoint: Path | None = None
    """Local weights of the teacher."""
    layer: int | None = None
    """Layer of the teacher, negative from the end; the last (or the cache's) if None."""
    resolution: int | None = None
    """Side in pixels of the teacher's input images; its own (or the cache's) if None."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the teacher's matrix products; float32 (or the cache's) if None."""
    cache: Path | None = None
    """Folder of a feature cache, instead of a teacher."""
    site: str | None = None
    """Site where the policy's tokens are read, e.g. blocks.12; the host's recommendation if None."""
    batch_size: int = 8
    """Batch size of the trial step."""

    def run(self, lerobot: list[str] | None = None) -> None:
        from spatial_forcing.doctor import examine
        from spatial_forcing.rehearsal import training_flags

        with training_flags(lerobot or [], **vars(self)) as flags:
            if not examine(flags, _console()):
                sys.exit(1)


def train(arguments: list[str]) -> None:
    """``spatial-forcing train``: lerobot-train and its flags, plus metrics.jsonl in the output folder."""
    from spatial_forcing.train_command import TrainCommand

    command = TrainCommand()
    with terminable():
        guarded(lambda: command.run(arguments), command.stopped)


COMMANDS = {
    "demo": Demo,
    "collect": Collect,
    "teachers": Teachers,
    "cache": Cache,
    "points": Points,
    "weights": Weights,
    "train": Train,
    "compare": Compare,
    "eval": Eval,
    "probe": Probe,
    "report": Report,
    "doctor": Doctor,
    "convert": Convert,
    "inspect": Inspect,
}


SUBCOMMANDS = {
    "cache verify": CacheVerify,
    "compare status": CompareStatus,
    "calibration check": CalibrationCheck,
    "libero check": LiberoCheck,
    "libero collect": LiberoCollect,
}
# See ``command_names.WITH_LEROBOTS_FLAGS``.
WITH_FLAGS = {"compare": Compare, "compare transfer": CompareTransfer, "eval": Eval}
AGAIN = "What is finished is kept: run the same command again to continue."
# After Ctrl-C or SIGTERM; `train` looks at its folder.
KEPT = {
    "demo": AGAIN,
    "collect": AGAIN,
    "cache": AGAIN,
    "cache verify": "The cache is as it was.",
    "points": AGAIN,
    "weights": AGAIN,
    "calibration check": "No image was written: run the same command again.",
    "libero collect": AGAIN,
    "compare": AGAIN,
    "compare transfer": AGAIN,
    "eval": "With --out what is finished is kept: run the same command again to continue.",
    "probe": "No result was written: run the same command again.",
    "convert": "Remove what is in the output folder, and run the same command again.",
}


def main() -> None:
    """Entry point. Errors of ours are printed as one message, without a traceback."""
    waiting_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name need not be valid text
            stream.reconfigure(errors="backslashreplace")
    sys.argv[1:] = with_out(sys.argv[1:])
    guarded(lambda: check_names(sys.argv[1:], [*COMMANDS, *ONLY_WITH_SUBCOMMAND]), lambda: "")
    if sys.argv[1:2] == ["--version"]:
        print(f"spatial-forcing {__version__}")
        return None
    if sys.argv[1:2] == ["train"]:  # every flag after it is LeRobot's to read, --help too
        return Train().run()
    _quiet()
    name = " ".join(words(sys.argv[1:]))
    # Options are checked where they are read, too: what they raise is a message like any other.
    with terminable():
        return guarded(lambda: _command(name)(), lambda: KEPT.get(name, "Nothing was changed."))


def _command(name: str) -> Callable[[], None]:
    """The command of the command line, with its options parsed."""
    try:
        import tyro
    except ImportError as error:
        raise MissingDependencyError("tyro", "lerobot") from error
    if name in SUBCOMMANDS:
        return tyro.cli(SUBCOMMANDS[name], args=sys.argv[3:], prog=f"spatial-forcing {name}").run
    if name in WITH_FLAGS:
        ours, lerobot = parted(sys.argv[1 + len(name.split()) :])
        return partial(tyro.cli(WITH_FLAGS[name], args=ours, prog=f"spatial-forcing {name}").run, lerobot)
    if sys.argv[1:2] == ["doctor"]:  # what it does not know is LeRobot's
        doctor, lerobot = tyro.cli(
            Doctor, args=sys.argv[2:], prog="spatial-forcing doctor", return_unknown_args=True
        )
        return partial(doctor.run, lerobot)
    if sys.argv[1:2] == ["inspect"]:  # its checkpoint has no option's name
        prog, config = "spatial-forcing inspect", (tyro.conf.PositionalRequiredArgs,)
        return tyro.cli(Inspect, args=sys.argv[2:], prog=prog, config=config).run
    more = ", ".join([*SUBCOMMANDS, *(name for name in WITH_FLAGS if name not in COMMANDS)])
    description = (
        "Spatial Forcing: give vision-language-action policies a sense of 3D space while they train.\n\n"
        f"Further commands: {more}."
    )
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="spatial-forcing", description=description).run


def _quiet() -> None:
    """Silences console output of other packages during import; that of this one stays."""
    logging.getLogger().setLevel(logging.ERROR)
    ours = logging.getLogger("spatial_forcing")
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler())
    ours.propagate = False  # others put handlers on the root: a message is said once
    # For this process, and through the environment for its workers.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="spatial_forcing")  # a teacher's licence, for one
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def _console():
    from rich.console import Console

    return Console()


if __name__ == "__main__":
    main()
