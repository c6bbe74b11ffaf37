"""``spatial-forcing compare``: its options, its stages, and what it prints."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spatial_forcing.compare.arm import PLAIN, TEACHER, Arm
from spatial_forcing.compare.flags import CompareError


@dataclass
class Compare:
    """Compare arms of one training command: `compare <options> -- <flags of lerobot-train>`.

    Every arm trains with the same first weights, batches, steps and evaluations, for every seed and data
    fraction. The report says what is shown. `compare status --out <folder>` says how far it is.
    """

    out: Path
    """Folder of the comparison. The same command continues an interrupted one."""
    arms: tuple[str, ...] = ("plain", "forced")
    """Presets: plain, forced, 2d (a 2D teacher), untrained, published (the public code's numerics), shuffled,
    place."""
    arms_file: str | None = None
    """YAML or JSON file with more arms: a list of name, label, role (arm, control, reference), forcing
    (options of --policy.forcing), policy (options of the policy; references only)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and data order."""
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the training episodes, each a comparison of its own: 0.1 0.25 1."""
    controls: bool = True
    """Add the controls, targets that know nothing of the frame: features of another frame, and the place
    alone."""
    teacher: str = TEACHER
    """Of the presets: a registered teacher, or a local file or folder."""
    holdout: float = 0.1
    """Share of the episodes of each task that no arm trains on."""
    holdout_episodes: tuple[int, ...] = ()
    """These are held out instead."""
    evaluations: int = 4
    """Checkpoints that are evaluated, evenly spread over training."""
    episodes: int = 50
    """Rollouts per task and checkpoint, if the command has an --env.type; the same for all arms."""
    heldout_frames: int = 2000
    """At most so many held-out frames are looked at per evaluation, evenly spread."""
    videos: int = 2
    """Rollouts of the last checkpoint that are filmed, per task."""
    features: Literal["stored", "online"] = "stored"
    """Store the teacher's features before training, or ask it at every step."""
    workers: int | None = None
    """Runs at a time; one per GPU, or two, if None."""
    accelerate: str | None = None
    """Start each run under accelerate launch with these options, in quotes."""
    submitit: str | None = None
    """Make each run a job: slurm, or local to try it here."""
    job: tuple[str, ...] = ()
    """Options of submitit's jobs: timeout_min=600 slurm_partition=gpu gpus_per_node=1."""
    dry_run: bool = False
    """Say what would be done, how long it would take and what it could show; nothing is kept."""

    def run(self, flags: Sequence[str]) -> None:
        """Makes the comparison of a training command.

        Raises:
            SpatialForcingError: it cannot be made as it was asked for, or a run failed.
        """
        comparison, how = self.comparison(flags), self.launch()
        if self.dry_run:
            from spatial_forcing.compare.dry_run import dry_run

            dry_run(comparison, how, _console())
            return
        make(comparison, self.out.resolve(), how, _console())

    def comparison(self, flags: Sequence[str]) -> Any:
        """What the options and the flags after ``--`` ask for."""
        from spatial_forcing.compare.arm import arms_of
        from spatial_forcing.compare.plan import Measures, planned

        return planned(
            flags,
            arms_of(self.arms, self.arms_file, self.teacher, controls=self.controls),
            holdout=self.holdout,
            heldout=self.holdout_episodes,
            seeds=self.seeds,
            fractions=self.fractions,
            measures=Measures(
                self.evaluations, self.episodes, videos=self.videos, heldout_frames=self.heldout_frames
            ),
            stored=self.features == "stored",
        )

    def launch(self) -> Any:
        """How the options want runs to be started."""
        import shlex

        from spatial_forcing.compare.launch import Launch

        if self.workers is not None and self.workers < 1:
            raise CompareError(f"--workers must be at least 1; got {self.workers}.")
        return Launch(
            self.workers,
            None if self.accelerate is None else tuple(shlex.split(self.accelerate)),
            self.submitit,
            job_options(self.job),
        )


@dataclass
class CompareStatus:
    """How far a comparison is, and how much time is left."""

    out: Path
    """Folder of the comparison."""
    workers: int = 2
    """Runs at a time, for the time left."""
    watch: bool = False
    """Go on until all runs are finished."""

    def run(self) -> None:
        from rich.live import Live

        from spatial_forcing.compare.plan import comparison_in
        from spatial_forcing.compare.status import progress_of, status_table

        comparison = comparison_in(self.out)
        console = _console()
        if not self.watch:
            console.print(status_table(progress_of(comparison, self.out), self.workers))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                found = progress_of(comparison, self.out)
                live.update(status_table(found, self.workers), refresh=True)
                if all(one.state == "finished" for one in found):
                    return
                time.sleep(2)


def job_options(options: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Options of submitit's executor from ``name=value``, whole numbers as such.

    Raises:
        CompareError: one is not written like that.
    """
    found = []
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise CompareError(f"--job takes name=value, such as timeout_min=600; got {option!r}.")
        found.append((name, int(value) if value.lstrip("-").isdigit() else value))
    return tuple(found)


def make(comparison: Any, out: Path, how: Any, console: Any) -> Path:
    """Makes a comparison in its folder, stage by stage, and returns the path of its report."""
    from spatial_forcing.compare.features import stored_features
    from spatial_forcing.compare.gather import gather
    from spatial_forcing.compare.launch import launch, prepare
    from spatial_forcing.compare.plan import check_taken, folder_of, take_folder
    from spatial_forcing.compare.preflight import check_arms, small_version, what_differs
    from spatial_forcing.compare.run import is_complete
    from spatial_forcing.console import stages
    from spatial_forcing.provenance import command_line, made_with
    from spatial_forcing.report import write_report

    made, timings = made_with(command_line()), {}
    check_taken(out, comparison)
    for name, said in what_differs(comparison):
        console.print(f"[bold]{name:<12}[/]", end=" ")
        console.print(said, highlight=False, markup=False)
    device = device_of(comparison)
    steps = comparison.evaluated_steps
    begun = any(is_complete(folder_of(out, run), steps[:1]) for run in comparison.runs())
    with stages(console) as bars:
        if not begun:
            with timed(timings, "looking at every arm"), tempfile.TemporaryDirectory() as folder:
                small = small_version(comparison, steps=1, frames=64)
                odd = check_arms(small, Path(folder), bars, device)
            for name, messages in odd.items():
                for message in messages:
                    console.print(f"[yellow]{name}:[/] ", end="")
                    console.print(message, highlight=False, markup=False)
        # Not before: what was wrong at first is then tried again in the same folder.
        take_folder(out, comparison)
        with timed(timings, "teacher features"):
            features = stored_features(comparison, out, bars, device)
        with timed(timings, "training and evaluation"):
            bar = bars.add_task("runs", total=len(comparison.runs()))

            def watch() -> None:
                done = sum(is_complete(folder_of(out, run), steps) for run in comparison.runs())
                bars.update(bar, completed=done)

            launch(prepare(comparison, out, features), out, how, watch)
            watch()
    results = gather(comparison, out, made, timings, "Does it help?")
    report = write_report(results, out)
    console.print(f"Report: [bold]{report}[/]")
    return report


def device_of(comparison: Any) -> str:
    """Where the policy trains, and so the teacher looks."""
    from spatial_forcing.compare.flags import arm_flags, policy_of

    return policy_of(arm_flags(comparison.flags, Arm(PLAIN))).device or "cpu"


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 1)


def _console() -> Any:
    from rich.console import Console

    return Console()
