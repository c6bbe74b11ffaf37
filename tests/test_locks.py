"""Folder locks: one writer, workers keep their parent's lock, nothing is left behind."""

import errno
import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from small_workers import SOON, wait_for

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.locks import LOCK, FolderBusyError, FolderLock, is_held


def hold(lock: FolderLock, mark: Path) -> None:
    mark.touch()
    time.sleep(1000)


def test_a_folder_has_one_writer_and_the_lock_leaves_nothing_there(tmp_path):
    folder = tmp_path / "new"
    with FolderLock(folder) as lock:
        with pytest.raises(FolderBusyError, match=f"writing in {folder} .*process {os.getpid()} on"):
            FolderLock(folder, wait=0.1)
        FolderLock(folder, "other").close()
    assert not list(folder.iterdir())
    lock.close()  # again
    FolderLock(folder).close()


def test_a_worker_keeps_the_lock_that_its_parent_had(tmp_path):
    lock = FolderLock(tmp_path)
    worker = get_context("spawn").Process(target=hold, args=(lock, tmp_path / "mark"))
    worker.start()
    wait_for((tmp_path / "mark").exists)
    os.close(lock.descriptor)  # as if this process had been killed, and the worker had not noticed
    with pytest.raises(FolderBusyError, match=f"process {os.getpid()} on"):
        FolderLock(tmp_path, wait=0.1)
    worker.kill()
    worker.join(SOON)
    FolderLock(tmp_path).close()


def test_a_forked_worker_keeps_the_lock_too_and_another_programs_filelock_sees_it(tmp_path):
    lock, other = FolderLock(tmp_path), FileLock(tmp_path / LOCK)
    worker = get_context("fork").Process(target=hold, args=(lock, tmp_path / "mark"))
    worker.start()
    wait_for((tmp_path / "mark").exists)
    os.close(lock.descriptor)  # as if this process had been killed
    with pytest.raises(Timeout):
        other.acquire(timeout=0)
    worker.kill()
    worker.join(SOON)
    with other.acquire(timeout=0), pytest.raises(FolderBusyError):
        FolderLock(tmp_path, wait=0)
    FolderLock(tmp_path, wait=0).close()


def test_a_file_that_a_killed_process_left_is_no_lock(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on another machine")
    with FolderLock(tmp_path, wait=0):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.iterdir())


def test_whether_a_folder_is_locked_is_seen_without_taking_the_lock(tmp_path):
    assert not is_held(tmp_path / "missing")
    (tmp_path / LOCK).write_text("process 1 on a machine that is gone")
    assert not is_held(tmp_path)
    assert (tmp_path / LOCK).read_text().startswith("process 1")
    with FolderLock(tmp_path):
        assert is_held(tmp_path)
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    assert not is_held(tmp_path)


def test_a_full_disk_is_said_to_be_one(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(SpatialForcingError, match="There is no space left for"):
        FolderLock(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_for_people(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpatialForcingError, match="Choose a folder that can be written"):
        FolderLock(tmp_path / "file" / "folder")
