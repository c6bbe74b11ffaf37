"""Launches runs in parallel: locally, one per GPU or share of the cores, or through submitit (SLURM).

A run is a process of its own, ``python -m spatial_forcing.compare.run``, or several under ``accelerate
launch``. It ends with the process that started it.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.folder import RUNS_LOCK
from spatial_forcing.compare.options import PATIENCE
from spatial_forcing.compare.plan import Comparison, Run, folder_of, training_of
from spatial_forcing.compare.run import RunSpec, is_complete
from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import read_json, write_json
from spatial_forcing.locks import FolderBusyError, FolderLock
from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs

LOG = "log.txt"
# How many runs go on at a time, for `compare status`.
LAUNCHED = "launch.json"
GRACE = 10.0
# Seconds between two looks at jobs elsewhere.
EVERY = 2.0
# Of accelerate launch.
PROCESSES, PORT = "--num_processes", "--main_process_port"
# Minutes of a job on this machine, where submitit's default is two; a cluster has limits of its own.
A_WEEK = 7 * 24 * 60
LASTS = ("timeout_min", "slurm_time")


@dataclass(frozen=True)
class Launch:
    """Launch options: how many runs at a time, and how they are started.

    Attributes:
        workers: runs at a time; None is as many as there are GPUs for, or two without any.
        accelerate: options of ``accelerate launch``; None starts one process per run.
        cluster: submitit's: "slurm", "local"; None runs here.
        options: of submitit's executor.
        patience: seconds without output after which a run is ended.
    """

    workers: int | None = None
    accelerate: tuple[str, ...] | None = None
    cluster: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    patience: float = PATIENCE

    def gpus_each(self, gpus: int) -> int:
        """GPUs of a run, of those there are: one, or one for each process of ``accelerate launch``, which
        takes all if its options do not say how many."""
        if self.accelerate is None:
            return min(1, gpus)
        return min(processes_in(self.accelerate) or gpus, gpus)

    def at_a_time(self, gpus: int) -> int:
        """Runs at a time, with so many GPUs."""
        return self.workers or (gpus // self.gpus_each(gpus) if gpus else 2)


def processes_in(options: Sequence[str]) -> int | None:
    """The number of processes that options of ``accelerate launch`` ask for; None if they do not say."""
    words = [part for option in options for part in option.split("=", 1)]
    said = [value for name, value in pairwise(words) if name == PROCESSES and value.isdigit()]
    return max(1, int(said[-1])) if said else None


def prepare(comparison: Comparison, out: Path, features: Mapping[str, Sequence[Path]]) -> list[Run]:
    """Writes the specification of every run, and returns the incomplete ones.

    Args:
        features: by name of the run, the caches that it reads.
    """
    runs = comparison.runs()
    for run in runs:
        like = [
            other
            for other in runs
            if other.name != run.name
            and (other.seed, other.fraction) == (run.seed, run.fraction)
            and not {other.arm.role, run.arm.role} & {"reference"}
        ]
        folder, measures = folder_of(out, run), comparison.measures
        RunSpec(
            flags=tuple(comparison.run_flags(run, folder, features.get(run.name, ()))),
            steps=tuple(comparison.steps_of(run)),
            # Of policies that are tested elsewhere it is known already.
            heldout=comparison.split.heldout if comparison.policies is None else (),
            heldout_frames=measures.heldout_frames,
            episodes=measures.episodes,
            eval_seed=measures.eval_seed,
            videos=measures.videos,
            siblings=tuple(other.name for other in like if other.arm.start == run.arm.start),
            started_elsewhere=tuple(other.name for other in like if other.arm.start != run.arm.start),
            trained=None if comparison.policies is None else str(training_of(comparison, out, run)),
        ).save(folder)
    return [run for run in runs if not is_complete(folder_of(out, run), comparison.steps_of(run))]


def launch(runs: Sequence[Run], out: Path, how: Launch, watch: Callable[[], None]) -> None:
    """Executes runs in parallel; see :func:`prepare`.

    Args:
        runs: those that are not complete.
        out: folder of the comparison.
        how: where, and how many at a time.
        watch: called every second or two.

    Raises:
        CompareError: a run failed; says which and where its log is. The others are stopped, and continue when
            the comparison is started again.
    """
    folders = [folder_of(out, run) for run in runs]
    if not folders:
        return
    if how.cluster is not None:
        _submit(folders, out, how, watch)
        return
    gpus = gpu_count()
    workers = min(how.at_a_time(gpus), len(folders))
    queue = deque(folders)
    try:
        with FolderLock(out, RUNS_LOCK) as lock:
            write_json(out / LAUNCHED, {"workers": workers})
            run_jobs(
                partial(run_logged, accelerate=how.accelerate),
                [queue] * workers,
                setup=partial(take_share, out, workers, gpus, how.gpus_each(gpus)),
                poll=watch,
                every=1.0,
                watch=Watch(log_size, how.patience),
                locks=[lock],
            )
    except JobFailed as failed:
        if isinstance(failed.error, WorkerLost):
            with (failed.job / LOG).open("a") as log:
                log.write(f"\n{failed.error}\n{failed.error.stacks}")
        raise failure(failed.job, str(failed.error)) from failed.error


def workers_in(out: Path) -> int:
    """How many runs of a comparison go on at a time, as it was last started; 2 before that."""
    path = out / LAUNCHED
    return read_json(path, "Give --workers.", CompareError)["workers"] if path.is_file() else 2


def gpu_count() -> int:
    """Number of GPUs visible to this process."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def take_share(out: Path, workers: int, gpus: int, each: int) -> None:
    """Assigns a worker, for the runs that it starts, GPUs and a share of the cores.

    Args:
        out: folder of the comparison.
        workers: how many there are; more than there are GPUs for share them evenly.
        gpus: there are.
        each: GPUs of a run.
    """
    threads = max(1, (os.cpu_count() or 1) // (workers * max(1, each)))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(gpus)))
    for number in range(workers if gpus else 0):
        with suppress(FolderBusyError):
            # Held until the process ends.
            take_share.held = FolderLock(out, f".gpu-{number}", wait=0)  # type: ignore[attr-defined]
            first = number % (gpus // each) * each
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + each])
            return


def log_size(folder: Path) -> int:
    """Size in bytes of a run's log; 0 before there is one."""
    try:
        return (folder / LOG).stat().st_size
    except FileNotFoundError:
        return 0


def run_logged(folder: Path, accelerate: Sequence[str] | None = None) -> None:
    """Executes one run in a process of its own, with its output in ``log.txt``.

    Raises:
        CompareError: it failed; with the last line of its output.
    """
    command = [sys.executable, "-u", "-W", "ignore", "-m"]
    if accelerate is None:
        command += ["spatial_forcing.compare.run", str(folder)]
    else:
        # Its default port is the same for all runs; 0 is a free one.
        port = [] if any(option.startswith(PORT) for option in accelerate) else [f"{PORT}=0"]
        command += ["spatial_forcing.compare.accelerated", *accelerate, *port]
        command += ["-m", "spatial_forcing.compare.run", str(folder)]
    with FolderLock(folder), (folder / LOG).open("ab") as log:
        before = log.tell()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # whatever it starts ends with it: end_group_with_leader
        )
        try:
            status = process.wait()
        finally:
            end(process)
    if status:
        raise CompareError(why_it_ended(status, folder, before))


def end(process: subprocess.Popen) -> None:
    """Terminates a process if it is still running."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    if process.poll() is None:
        process.kill()
        process.wait()


def why_it_ended(status: int, folder: Path, since: int) -> str:
    """Why a run failed: the signal that killed it, our own message, or the last line of its log.

    Args:
        status: of its process.
        folder: of the run.
        since: bytes of its log that are of earlier attempts.
    """
    if status < 0:
        name = signal.Signals(-status).name
        return f"its process was killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    with (folder / LOG).open("rb") as log:
        log.seek(since)
        lines = log.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
    ours = [line for line in lines[-20:] if line.startswith("spatial-forcing: ")]
    said = (ours or lines or [""])[-1].removeprefix("spatial-forcing: ")
    return said or f"its process ended with status {status}"


def failure(folder: Path, said: str) -> CompareError:
    return CompareError(
        f"The run {folder.name!r} failed: {said}\nIts log: {folder / LOG}. What is finished is kept: run the "
        "same command again to continue."
    )


# ---- elsewhere ---------------------------------------------------------------------------------------------


def _submit(folders: Sequence[Path], out: Path, how: Launch, watch: Callable[[], None]) -> None:
    """Submits every run as a submitit job, and waits for all."""
    executor = executor_of(out, how)
    # A cluster has a queue of its own; here everything would start at once.
    at_once = how.workers or (2 if how.cluster == "local" else len(folders))
    write_json(out / LAUNCHED, {"workers": at_once})
    waiting, running = deque(folders), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                folder = waiting.popleft()
                running[folder] = executor.submit(run_logged, folder.resolve(), how.accelerate)
            for folder in [folder for folder, job in running.items() if job.done()]:
                if (error := running.pop(folder).exception()) is not None:
                    raise failure(folder, _reason(error)) from error
            watch()
            time.sleep(EVERY)
    finally:
        for job in running.values():
            job.cancel(check=False)


def executor_of(out: Path, how: Launch) -> Any:
    """Configured executor of submitit.

    Raises:
        MissingDependencyError: submitit is not installed.
        CompareError: it does not know the cluster, or an option; or nothing says how long a job on a cluster
            may take.
    """
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError("submitit", "slurm") from error
    options = dict(how.options)
    if how.cluster == "local":
        options = {"timeout_min": A_WEEK, "gpus_per_node": gpu_count(), **options}
    elif how.cluster == "slurm" and not options.keys() & set(LASTS):
        raise CompareError(
            "Say how many minutes a run may take, --job timeout_min=600: submitit's jobs end after 5."
        )
    try:
        executor = submitit.AutoExecutor(folder=out / "jobs", cluster=how.cluster)
        executor.update_parameters(**options)
    except Exception as error:  # of several kinds
        raise CompareError(
            f"submitit cannot start jobs on {how.cluster!r} with {options or 'no options'}: {error}"
        ) from error
    return executor


def _reason(error: Exception) -> str:
    """Why a job failed: what :func:`run_logged` raised in it, or the first line of submitit's error."""
    _, ours, said = str(error).rpartition(f"{CompareError.__name__}: ")
    lines = (said if ours else str(error)).splitlines()
    return next((line.strip() for line in lines if line.strip()), repr(error))
