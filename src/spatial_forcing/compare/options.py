"""The options of ``compare``, ``compare transfer`` and ``compare status``.

Nothing heavy is imported before one of them runs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spatial_forcing.errors import SpatialForcingError

# The teacher of arms that name none.
TEACHER = "vggt-1b"
# Seconds in which a run prints something: training logs, and evaluations say how far they are.
PATIENCE = 1800.0


class CompareError(SpatialForcingError):
    """A comparison cannot be run as requested."""


@dataclass
class Compare:
    """Compare arms of one training command, all else equal: `compare <options> -- <its flags>`."""

    out: Path
    """Folder of the comparison. The same command continues an interrupted one."""
    arms: tuple[str, ...] = ()
    """Presets: plain, forced, 2d (a 2D teacher), untrained, published (the public code's numerics), shuffled,
    place. If empty, plain and forced, or plain beside those of --arms-file."""
    arms_file: str | None = None
    """YAML or JSON file with more arms: a list of name, label, role (arm, control, reference), forcing
    (options of --policy.forcing), start (a checkpoint whose policy it goes on training), policy (options of
    the policy; references only)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and data order."""
    fractions: tuple[float, ...] = (1.0,)
    """Fractions of the training episodes, each a comparison of its own: 0.1 0.25 1."""
    controls: bool = True
    """Add the two controls, whose targets carry no information about the frame: features of another frame,
    and the position embedding alone."""
    controls_of: str | None = None
    """Arm whose forcing options (site, weight, ...) the controls have; the first forced one if None."""
    teacher: str = TEACHER
    """Teacher of the presets, and of arms that name none: a registered one, or a local file or folder."""
    holdout: float = 0.1
    """Fraction of each task's episodes to hold out from training, in all arms."""
    holdout_episodes: tuple[int, ...] = ()
    """Episodes to hold out, instead of the fraction --holdout."""
    evaluations: int = 4
    """Number of checkpoints to evaluate, evenly spread over training."""
    episodes: int = 50
    """Rollouts per task and checkpoint, if the command has an --env.type; the same for all arms."""
    heldout_frames: int = 2000
    """Maximum number of held-out frames per evaluation, evenly spread."""
    videos: int = 2
    """Rollouts of the last checkpoint to record as videos, per task."""
    probe: str = "auto"
    """Depth probe of the trained policies: auto (recorded depth, if the data set has any), none, recorded, or
    pseudo:<model> as in the command probe."""
    probe_frames: int = 2000
    """Number of frames for the depth probe."""
    features: Literal["stored", "online"] = "stored"
    """Store the teacher's features before training, or run it at every step."""
    workers: int | None = None
    """Number of runs in parallel; as many as there are GPUs for, or two without a GPU, if None."""
    patience: float = PATIENCE
    """Seconds without any output after which a run counts as hung and is ended."""
    accelerate: str | None = None
    """Options of accelerate launch, which starts each run then: --accelerate="--num_processes=2"."""
    submitit: str | None = None
    """Submit each run as a job through submitit: slurm, or local to try it here."""
    job: tuple[str, ...] = ()
    """Options of the submitit jobs: timeout_min=600 slurm_partition=gpu gpus_per_node=1. On SLURM
    timeout_min, the minutes that a run may take, is needed."""
    anyway: bool = False
    """Go on even if the guards find something wrong."""
    dry_run: bool = False
    """Print the runs, their duration and the smallest detectable difference; nothing is kept."""

    def run(self, flags: Sequence[str]) -> None:
        """Runs the comparison of a training command.

        Raises:
            SpatialForcingError: it cannot be run as requested, or a run failed.
        """
        from rich.console import Console

        from spatial_forcing.files import check_folder

        check_folder(self.out, CompareError)
        how, comparison = self.launch(), self.comparison(flags)
        if self.dry_run:
            from spatial_forcing.compare.dry_run import dry_run

            dry_run(comparison, self.out.resolve(), how, Console(), anyway=self.anyway)
            return
        from spatial_forcing.compare.command import make

        make(comparison, self.out.resolve(), how, Console(), anyway=self.anyway)

    def comparison(self, flags: Sequence[str]) -> Any:
        """The comparison specified by the options and the flags after ``--``."""
        from spatial_forcing.compare.arm import arms_of
        from spatial_forcing.compare.plan import Measures, planned

        return planned(
            flags,
            arms_of(
                self.arms or (("plain", "forced") if self.arms_file is None else ("plain",)),
                self.arms_file,
                self.teacher,
                controls=self.controls,
                controls_of=self.controls_of,
            ),
            holdout=self.holdout,
            heldout=self.holdout_episodes,
            seeds=self.seeds,
            fractions=self.fractions,
            measures=Measures(
                self.evaluations,
                self.episodes,
                videos=self.videos,
                heldout_frames=self.heldout_frames,
                probe=self.probe,
                probe_frames=self.probe_frames,
            ),
            stored=self.features == "stored",
        )

    def launch(self) -> Any:
        """Launch options from the command's options."""
        import shlex

        from spatial_forcing.compare.launch import Launch

        check_workers(self.workers, self.patience)
        return Launch(
            self.workers,
            None if self.accelerate is None else tuple(shlex.split(self.accelerate)),
            self.submitit,
            job_options(self.job),
            self.patience,
        )


@dataclass
class CompareStatus:
    """Show the progress of a comparison and the time left."""

    out: Path
    """Folder of the comparison."""
    workers: int | None = None
    """Number of runs in parallel, to estimate the time left. Default: as the comparison was started."""
    watch: bool = False
    """Keep updating until all runs are finished, or one failed."""

    def run(self) -> None:
        from rich.console import Console
        from rich.live import Live

        from spatial_forcing.compare.folder import comparison_in
        from spatial_forcing.compare.launch import workers_in
        from spatial_forcing.compare.status import is_over, progress_of, status_table

        comparison = comparison_in(self.out)
        workers = self.workers or workers_in(self.out)
        console = Console()
        if not self.watch:
            console.print(status_table(progress_of(comparison, self.out), workers))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                found = progress_of(comparison, self.out)
                live.update(status_table(found, workers), refresh=True)
                if is_over(found):
                    return
                time.sleep(2)


@dataclass
class CompareTransfer:
    """Test the policies of a finished comparison in another environment, without training:
    `compare transfer <options> -- <its --env flags>`."""

    of: Path
    """Folder of the comparison that trained them."""
    out: Path
    """Folder of the results, another one. The same command continues an interrupted test."""
    episodes: int | None = None
    """Rollouts per task and policy; as many as in the comparison if None."""
    videos: int | None = None
    """Rollouts to record as videos, per task; as many as in the comparison if None."""
    workers: int | None = None
    """Number of policies in parallel; one per GPU, or two without a GPU, if None."""
    patience: float = PATIENCE
    """Seconds without any output after which a rollout counts as hung and is ended."""
    anyway: bool = False
    """Go on even if the guards find something wrong."""

    def run(self, flags: Sequence[str]) -> None:
        """Rolls the policies out in the environment that the flags describe.

        Raises:
            SpatialForcingError: it cannot be done as requested, or a run failed.
        """
        from rich.console import Console

        from spatial_forcing.compare.launch import Launch
        from spatial_forcing.compare.transfer import transfer, transferred
        from spatial_forcing.files import check_folder

        check_folder(self.out, CompareError)
        check_workers(self.workers, self.patience)
        comparison = transferred(self.of, flags, episodes=self.episodes, videos=self.videos)
        how = Launch(self.workers, patience=self.patience)
        transfer(comparison, self.out.resolve(), how, Console(), anyway=self.anyway)


def check_workers(workers: int | None, patience: float) -> None:
    """Raises :class:`CompareError` for fewer than one run at a time, or no time for it."""
    if workers is not None and workers < 1:
        raise CompareError(f"--workers must be at least 1; got {workers}.")
    if not patience > 0:
        raise CompareError(f"--patience is a number of seconds above 0; got {patience:g}.")


def job_options(options: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Parses options of submitit's executor from ``name=value``, integers as such.

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
