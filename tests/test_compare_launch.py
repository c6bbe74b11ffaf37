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
    last_words,
    launch,
    run_logged,
    take_share,
    workers_in,
)
from spatial_forcing.compare.plan import Comparison, Measures, Run, folder_of
from spatial_forcing.compare.run import RunSpec
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


def test_workers_take_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    holders = []
    for expected in ("4", "7"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        take_share(tmp_path, 2, 2)
        holders.append(take_share.held)  # type: ignore[attr-defined]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    for holder in holders:
        holder.close()


def test_a_process_that_does_not_end_by_itself_is_ended(tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr("spatial_forcing.compare.launch.GRACE", 0.5)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    end(process)
    assert process.poll() == -signal.SIGKILL


def test_the_last_words_are_ours_if_there_are_any(tmp_path):
    (tmp_path / LOG).write_text("Training: 3%\rspatial-forcing: The disk is full.\nException ignored in: x\n")
    assert last_words(tmp_path) == "The disk is full."
    (tmp_path / LOG).write_text("Traceback\nValueError: bad\n")
    assert last_words(tmp_path) == "ValueError: bad"


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
