"""Launches runs in parallel: locally, one per GPU or share of the cores, or through submitit (SLURM).

A run is a process of its own, ``python -m spatial_forcing.compare.run``, or several under ``accelerate
launch``. It ends with the process that started it.
"""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.plan import Comparison, Run, folder_of, training_of
from spatial_forcing.compare.run import RunSpec, is_complete
from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import read_json, write_json
from spatial_forcing.locks import FolderBusyError, FolderLock
from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs

LOG = "log.txt"
# How many runs go on at a time, for `compare status`.
LAUNCHED = "launch.json"
# Seconds in which a run prints something: training and rollouts both draw a bar.
PATIENCE = 1800.0
GRACE = 10.0
# Seconds between two looks at jobs elsewhere.
EVERY = 2.0


@dataclass(frozen=True)
class Launch:
    """Launch options: how many runs at a time, and how they are started.

    Attributes:
        workers: runs at a time; None is one per GPU, or two.
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
    workers = max(1, min(how.workers or gpus or 2, len(folders)))
    queue = deque(folders)
    try:
        with FolderLock(out, ".runs") as lock:
            write_json(out / LAUNCHED, {"workers": workers})
            run_jobs(
                partial(run_logged, accelerate=how.accelerate),
                [queue] * workers,
                setup=partial(take_share, out, workers, gpus if how.accelerate is None else 0),
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


def take_share(out: Path, workers: int, gpus: int) -> None:
    """Assigns a worker, for the runs that it starts, a GPU of its own or a share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for number in range(gpus):
        with suppress(FolderBusyError):
            # Held until the process ends.
            take_share.held = FolderLock(out, f".gpu-{number}", wait=0)  # type: ignore[attr-defined]
            os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
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
        command += ["spatial_forcing.compare.accelerated", *accelerate]
        command += ["-m", "spatial_forcing.compare.run", str(folder)]
    with FolderLock(folder), (folder / LOG).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            status = process.wait()
        finally:
            end(process)
    if status:
        raise CompareError(last_words(folder) or f"its process ended with status {status}")


def end(process: subprocess.Popen) -> None:
    """Terminates a process if it is still running."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    if process.poll() is None:
        process.kill()
        process.wait()


def last_words(folder: Path) -> str:
    """Error message of a failed run from its log: our own message, or the last line."""
    lines = (folder / LOG).read_text(errors="replace").replace("\r", "\n").strip().splitlines()
    ours = [line for line in lines[-20:] if line.startswith("spatial-forcing: ")]
    return (ours or lines or [""])[-1].removeprefix("spatial-forcing: ")


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
    at_once = how.workers or 2 if how.cluster == "local" else len(folders)
    write_json(out / LAUNCHED, {"workers": how.workers or at_once})
    waiting, running = deque(folders), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                folder = waiting.popleft()
                running[folder] = executor.submit(run_logged, folder.resolve(), how.accelerate)
            for folder in [folder for folder, job in running.items() if job.done()]:
                if (error := running.pop(folder).exception()) is not None:
                    raise failure(folder, _reason(folder, error)) from error
            watch()
            time.sleep(EVERY)
    finally:
        for job in running.values():
            job.cancel(check=False)


def executor_of(out: Path, how: Launch) -> Any:
    """Configured executor of submitit.

    Raises:
        MissingDependencyError: submitit is not installed.
        CompareError: it does not know the cluster, or an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError("submitit", "slurm") from error
    options = dict(how.options)
    if how.workers is not None and how.cluster == "slurm":
        options.setdefault("slurm_array_parallelism", how.workers)
    try:
        executor = submitit.AutoExecutor(folder=out / "jobs", cluster=how.cluster)
        executor.update_parameters(**options)
    except Exception as error:  # of several kinds
        raise CompareError(
            f"submitit cannot start jobs on {how.cluster!r} with {options or 'no options'}: {error}"
        ) from error
    return executor


def _reason(folder: Path, error: Exception) -> str:
    """Why a job failed: the last message of the run, or the first line of submitit's error."""
    said = last_words(folder) if log_size(folder) else ""
    return said or next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
