"""A feature cache written by several processes, some of them killed: the bytes are the same."""

import faulthandler
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from small_cache import SOURCE, Teacher, contents, frames, small_shards

from spatial_forcing.cache.layout import MANIFEST
from spatial_forcing.cache.store import CacheError, FeatureStore, Source
from spatial_forcing.cache.write import Share, write_features
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import end_with_parent

DEADLINE = 100.0  # seconds for one cache of a process


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    small_shards(monkeypatch)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shares_add_up_to_the_same_bytes(tmp_path, order):
    write_features(tmp_path / "alone", SOURCE, frames, Teacher())
    for rank in order:
        with pytest.raises(CacheError, match=r"no feature cache|unfinished"):
            FeatureStore(tmp_path / "shared")
        write_features(tmp_path / "shared", SOURCE, frames, Teacher(), share=Share(rank, 3))
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, Share(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Share(3, 8)),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "2"},
            Share(3, 4),
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Share(1, 2)),
    ],
)
def test_the_share_is_what_the_launcher_says(variables, share):
    assert Share.from_environment(variables) == share


def test_two_writers_of_one_share_are_refused(tmp_path):
    class Nosy(Teacher):
        def __call__(self, images):
            with pytest.raises(CacheError, match="Another process is writing share 0 of 1"):
                write_features(tmp_path / "c", SOURCE, frames, Teacher())
            return super().__call__(images)

    write_features(tmp_path / "c", SOURCE, frames, Nosy())
    assert FeatureStore(tmp_path / "c").read(torch.arange(11)).valid_BVHW.all()


def test_processes_that_are_done_together_finish_one_by_one(tmp_path):
    """Each removes what killed ones left, which must not be the other's half-written manifest."""
    root = tmp_path / "c"
    write_features(root, SOURCE, frames, Teacher(), share=Share(0, 2))
    with FolderLock(root, ".finishing"):
        last = threading.Thread(target=write_features, args=(root, SOURCE, frames, Teacher()), daemon=True)
        last.start()
        last.join(0.5)
        assert len(list(root.glob("shard-*"))) == 3
        assert not (root / MANIFEST).exists()
    last.join(DEADLINE)
    assert not last.is_alive()
    assert FeatureStore(root).read(torch.arange(11)).valid_BVHW.all()
    assert not list(root.glob(".*"))


def test_killed_at_any_moment_and_started_again_the_bytes_are_the_same(tmp_path):
    """benchmarks/cache_kills.py does this a hundred times."""
    source = replace(SOURCE, frames=40)
    run_and_kill(tmp_path / "straight", source, None)
    for number, seconds in enumerate((0.02, 0.08, 0.2, 0.4)):
        run_and_kill(tmp_path / str(number), source, seconds)
        run_and_kill(tmp_path / str(number), source, None)
        assert contents(tmp_path / str(number)) == contents(tmp_path / "straight")


def run_and_kill(root, source: Source, kill_after: float | None) -> None:
    """Writes in a process of its own, which is killed after some seconds."""

    def slow_frames(indices):
        time.sleep(0.01)
        return frames(indices)

    def write():
        end_with_parent()
        faulthandler.register(signal.SIGUSR1, file=2)
        write_features(root, source, slow_frames, Teacher(), batch_size=2)

    child = get_context("fork").Process(target=write)
    child.start()
    child.join(DEADLINE if kill_after is None else kill_after)
    if kill_after is None and child.is_alive():
        os.kill(child.pid, signal.SIGUSR1)  # says where it hangs
        child.join(1)
    child.kill()
    child.join()
    assert child.exitcode == 0 or kill_after is not None
