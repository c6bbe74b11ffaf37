"""How the runs of a comparison are started: here, under accelerate, as jobs of submitit; and how they end."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from spatial_forcing.compare.arm import Arm
from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.launch import (
    LOG,
    Launch,
    _submit,
    end,
    executor_of,
    launch,
    run_logged,
    take_share,
    why_it_ended,
    workers_in,
)
from spatial_forcing.compare.plan import Comparison, Measures, Run, folder_of
from spatial_forcing.compare.run import Going, RunSpec
from spatial_forcing.compare.split import Split
from spatial_forcing.locks import FolderBusyError, FolderLock


def without_flags(folder: Path) -> Path:
    """A run that fails at once: its training command names nothing."""
    RunSpec((), (1,), (0,), 1, 1, 0, 0, ()).save(folder)
    return folder


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_run_that_fails_says_why_and_keeps_its_log(tmp_path):
    folder = without_flags(tmp_path / "run")
    with pytest.raises(CompareError, match="Say which data set"):
        run_logged(folder)
    assert "spatial-forcing: " in (folder / LOG).read_text()


@pytest.mark.system
@pytest.mark.timeout(900)
def test_jobs_of_submitit_fail_as_runs_here_do(tmp_path):
    folder = without_flags(tmp_path / "runs" / "forced-f100-s0")
    seen = []
    with pytest.raises(CompareError, match=r"The run 'forced-f100-s0' failed: .*Say which data set"):
        _submit(
            [folder], tmp_path, Launch(cluster="local", options=(("timeout_min", 3),)), lambda: seen.append(1)
        )
    assert seen


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_killed_job_is_seen(tmp_path):
    folder = without_flags(tmp_path / "runs" / "plain-f100-s0")

    def kill() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"submitit.core._submit" in words and any(
                    str(tmp_path).encode() in word for word in words
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(CompareError, match="The run 'plain-f100-s0' failed"):
        _submit([folder], tmp_path, Launch(cluster="local", options=(("timeout_min", 3),)), lambda: None)
    killer.join(1)


def test_options_that_a_cluster_does_not_know(tmp_path):
    with pytest.raises(CompareError, match="submitit cannot start jobs on 'moon'"):
        executor_of(tmp_path, Launch(cluster="moon"))
    with pytest.raises(CompareError, match=r"'local' with .*colour"):
        executor_of(tmp_path, Launch(cluster="local", options=(("colour", "red"),)))


@pytest.mark.parametrize(
    ("workers", "each", "expected"),
    [
        (4, 1, ["4", "7", "8", "9"]),
        (6, 1, ["4", "7", "8", "9", "4", "7"]),
        (2, 2, ["4,7", "8,9"]),
        (1, 3, ["4,7,8"]),
    ],
)
def test_workers_take_gpus_of_their_own_while_there_are_any(tmp_path, monkeypatch, workers, each, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    holders, found = [], []
    for _ in range(workers):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,8,9")
        take_share(tmp_path, workers, 4, each)
        holders.append(take_share.held)  # type: ignore[attr-defined]
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == expected
    for holder in holders:
        holder.close()


def test_a_run_has_a_gpu_for_each_of_its_processes():
    two = Launch(accelerate=("--num_processes=2", "--multi_gpu"))
    assert (two.gpus_each(8), two.at_a_time(8)) == (2, 4)
    assert (two.gpus_each(1), two.at_a_time(1)) == (1, 1)
    assert (two.gpus_each(0), two.at_a_time(0)) == (0, 2)
    assert Launch(accelerate=("--num_processes", "4")).at_a_time(8) == 2
    assert Launch(accelerate=("--multi_gpu",)).at_a_time(8) == 1, "accelerate takes all"
    assert Launch().at_a_time(8) == 8
    assert Launch(3).at_a_time(8) == 3


def test_a_job_on_a_cluster_needs_its_minutes(tmp_path):
    with pytest.raises(CompareError, match="--job timeout_min=600"):
        executor_of(tmp_path, Launch(cluster="slurm", options=(("slurm_partition", "gpu"),)))
    assert executor_of(tmp_path, Launch(cluster="local")).parameters["timeout_min"] > 24 * 60


def test_a_process_that_does_not_end_by_itself_is_ended(tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr("spatial_forcing.compare.launch.GRACE", 0.5)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    end(process)
    assert process.poll() == -signal.SIGKILL


def test_why_a_run_ended_is_in_our_words_if_there_are_any(tmp_path):
    earlier = "Training: 3%\rspatial-forcing: The disk is full.\nException ignored in: x\n"
    (tmp_path / LOG).write_text(earlier)
    assert why_it_ended(1, tmp_path, 0) == "The disk is full."
    assert why_it_ended(1, tmp_path, len(earlier)) == "its process ended with status 1", "of another attempt"
    assert why_it_ended(-9, tmp_path, 0) == "its process was killed by SIGKILL: out of memory?"
    (tmp_path / LOG).write_text("Traceback\nValueError: bad\n")
    assert why_it_ended(1, tmp_path, 0) == "ValueError: bad"


def test_an_evaluation_says_now_and_then_that_it_goes_on(monkeypatch, capsys):
    """Under SLURM LeRobot draws no bars, and a run that prints nothing counts as hung."""
    now = [0.0]
    monkeypatch.setattr("spatial_forcing.compare.run.time.monotonic", lambda: now[0])
    going = Going("Evaluating step 3")
    for now[0] in (1.0, 31.0, 32.0, 62.0):
        going()
    assert capsys.readouterr().out.splitlines() == [
        "Evaluating step 3: 2 batches and control steps",
        "Evaluating step 3: 4 batches and control steps",
    ]


def a_run() -> Run:
    arms = Arm("plain"), Arm("other")
    measures = Measures(evaluations=1)
    return Comparison((), arms, (0,), (1.0,), Split((0,), (1,)), steps=1, measures=measures).runs()[0]


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_run_that_prints_nothing_is_ended_and_says_so_in_its_log(tmp_path):
    folder = without_flags(folder_of(tmp_path, a_run()))
    with pytest.raises(CompareError, match=r"plain-f100-s0' failed.* made no progress for 0 s and was ended"):
        launch([a_run()], tmp_path, Launch(1, patience=0.0), lambda: None)
    assert "made no progress" in (folder / LOG).read_text()
    assert workers_in(tmp_path) == 1
    assert not multiprocessing.active_children()


def test_a_comparison_that_another_process_makes_is_left_alone(tmp_path):
    folder = without_flags(folder_of(tmp_path, a_run()))
    with FolderLock(tmp_path, ".runs"), pytest.raises(FolderBusyError, match="Another process is writing in"):
        launch([a_run()], tmp_path, Launch(1), lambda: None)
    assert not (folder / LOG).exists()
    assert workers_in(tmp_path) == 2  # as nobody said
