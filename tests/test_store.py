"""The feature store: what is read is what was computed, interruptions continue, mix-ups are refused."""

import faulthandler
import json
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
import torch.nn.functional as F

from spatial_forcing.cache import shards
from spatial_forcing.cache.claim import only_writer
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import MANIFEST
from spatial_forcing.cache.store import CacheError, FeatureStore, Source
from spatial_forcing.cache.verify import broken_files, recompute, repair
from spatial_forcing.cache.write import Share, Watch, write_features
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import checksum
from spatial_forcing.grid import Features
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import end_with_parent

DEADLINE = 100.0  # seconds for one cache of a process
SOURCE = Source("t", "f1", "Apache-2.0", "d1", ("left", "right"), frames=11)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "MOST_SHARD_FRAMES", 4)
    monkeypatch.setattr(shards, "LEAST_SHARDS", 1)


def frames(indices: list[int]) -> torch.Tensor:
    return torch.tensor(indices).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4) / 100


class Teacher:
    """Features that say which frame and view they are of; fails after ``limit`` frames."""

    def __init__(self, limit: int = 10**9):
        self.seen, self.limit = 0, limit

    def __call__(self, images: torch.Tensor) -> Features:
        self.seen += len(images)
        if self.seen > self.limit:
            raise KeyboardInterrupt
        view_V = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
        tokens = images[:, :, :1, :2, :2].permute(0, 1, 3, 4, 2) * 100 + view_V / 2
        return Features(tokens.expand(-1, -1, -1, -1, 5), torch.ones(len(images), 2, 2, 2, dtype=torch.bool))


def test_reads_what_the_teacher_said(tmp_path):
    done = []
    write_features(tmp_path / "c", SOURCE, frames, Teacher(), batch_size=3, watch=Watch(advance=done.append))
    features = FeatureStore(tmp_path / "c").read(torch.tensor([10, 0, 5, 5]))
    assert features.tokens_BVHWC.shape == (4, 2, 2, 2, 5)
    assert features.tokens_BVHWC[:, 0, 0, 0, 0].tolist() == [10, 0, 5, 5]
    assert features.tokens_BVHWC[:, 1, 1, 1, 4].tolist() == [10.5, 0.5, 5.5, 5.5]
    assert features.valid_BVHW.all()
    assert sum(done) == SOURCE.frames


# SHA-256 of what version 0.1.0 of November 2026 wrote before caches could hold several layers.
EARLIER = {
    "codec.safetensors": "b32590c7412546a7",
    "manifest.json": "c2ac9733fc47a962",
    "shard-00000.safetensors": "e4d60df4ead65cd6",
    "shard-00001.safetensors": "9e3e15df9ddadc42",
    "shard-00002.safetensors": "49327df81eeb2a88",
    "shard-00003.safetensors": "0924722e840257f3",
    "source.json": "224a2b7d86969e3a",
}


def test_a_cache_of_one_layer_has_the_bytes_that_earlier_versions_wrote(tmp_path):
    root = write_features(tmp_path / "c", SOURCE, frames, Teacher(), batch_size=3)
    manifest = json.loads((root / MANIFEST).read_text())
    assert list(manifest)[-1] == "checksum", "the one addition"
    del manifest["checksum"]
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1))
    assert {path.name: checksum(path)[:16] for path in root.iterdir()} == EARLIER
    assert FeatureStore(root).read(torch.tensor([10])).tokens_BVHWC[0, 0, 0, 0, 0] == 10, "as it was then"


def test_statistics_are_those_of_all_tokens(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    opened = FeatureStore(tmp_path / "c")
    tokens = opened.read(torch.arange(SOURCE.frames)).tokens_BVHWC.flatten(0, -2).double()
    mean_C, std_C = opened.stats
    torch.testing.assert_close(mean_C.double(), tokens.mean(0))
    torch.testing.assert_close(std_C.double(), tokens.std(0, correction=0))


def test_interrupted_extraction_continues_and_equals_an_undisturbed_one(tmp_path):
    write_features(tmp_path / "straight", SOURCE, frames, Teacher(), batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / "broken", SOURCE, frames, Teacher(limit=SOURCE.frames + 6), batch_size=2)
    with pytest.raises(CacheError, match="unfinished"):
        FeatureStore(tmp_path / "broken")
    again = Teacher()
    write_features(tmp_path / "broken", SOURCE, frames, again, batch_size=2)
    assert again.seen == SOURCE.frames - 4, "the finished shard was computed again"
    for path in sorted((tmp_path / "straight").iterdir()):
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes()


def test_an_error_leaves_no_decoding_thread_behind(tmp_path):
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt) as held:
        write_features(tmp_path / "c", SOURCE, frames, Teacher(limit=SOURCE.frames + 6), batch_size=2)
    assert threading.active_count() == before, held.traceback[-1]


def test_finished_cache_is_reused(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    write_features(tmp_path / "c", SOURCE, frames, Teacher(limit=0))


@pytest.mark.parametrize(
    "change", [{"teacher": "u"}, {"teacher_fingerprint": "f2"}, {"cameras": ("right", "left")}]
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_features_are_refused_and_nothing_is_lost(tmp_path, change, finished):
    teacher = Teacher(10**9 if finished else SOURCE.frames + 6)
    try:
        write_features(tmp_path / "c", SOURCE, frames, teacher, batch_size=2)
    except KeyboardInterrupt:
        assert not finished
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    with pytest.raises(CacheError, match=next(iter(change))):
        write_features(tmp_path / "c", replace(SOURCE, **change), frames, Teacher())
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


def test_a_finished_cache_with_a_file_missing_is_not_called_finished(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    (tmp_path / "c" / "shard-00001.safetensors").unlink()
    with pytest.raises(CacheError, match=r"shard-00001.* is missing .*--repair"):
        write_features(tmp_path / "c", SOURCE, frames, Teacher())


def test_files_have_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "any").write_text("")
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    assert {path.stat().st_mode for path in (tmp_path / "c").iterdir()} == {(tmp_path / "any").stat().st_mode}


@pytest.mark.parametrize("standardized", [False, True])
def test_coefficients_have_the_geometry_of_the_tokens_they_stand_for(tmp_path, standardized):
    torch.manual_seed(0)
    mixing, offset = torch.randn(8, 20) * torch.logspace(0, 1, 20), torch.randn(20)

    def look(images: torch.Tensor) -> Features:
        generator = torch.Generator().manual_seed(int(images[0, 0, 0, 0, 0] * 100))
        tokens = torch.randn(len(images), 2, 4, 4, 8, generator=generator) @ mixing + offset
        return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool))

    write_features(tmp_path / "c", SOURCE, frames, look, options=CodecOptions("pca-int8", components=8))
    index, whole = torch.arange(SOURCE.frames), FeatureStore(tmp_path / "c")
    narrow = FeatureStore(tmp_path / "c", pca_targets=True, standardized=standardized)
    tokens = whole.read(index).tokens_BVHWC
    mean_C, std_C = whole.stats if standardized else (whole.codec.mean_C, torch.ones(20))
    tokens_NC = ((tokens - mean_C) / std_C).flatten(0, -2)
    codes_NK = narrow.read(index).tokens_BVHWC.flatten(0, -2)
    assert codes_NK.shape[1] == narrow.width == 8
    ours = F.cosine_similarity(codes_NK[:-1], codes_NK[1:], dim=-1)
    theirs = F.cosine_similarity(tokens_NC[:-1], tokens_NC[1:], dim=-1)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("codec", ["float16", "pca-int8", "raw"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_not_stored(tmp_path, codec, poison):
    def look(images):
        features = Teacher()(images)
        tokens = torch.where(features.tokens_BVHWC == 7, poison, features.tokens_BVHWC)  # frame 7, left view
        return features._replace(tokens_BVHWC=tokens)

    with pytest.raises(
        CacheError, match=r"Frames \d+ to \d+ cannot be stored: 4 of .*view 0, row 0, column 0"
    ):
        write_features(tmp_path / "c", SOURCE, frames, look, options=CodecOptions(codec), batch_size=3)


def test_features_that_half_precision_cannot_hold_are_not_stored_in_it(tmp_path):
    def look(images):
        features = Teacher()(images)
        return features._replace(tokens_BVHWC=features.tokens_BVHWC * 1e5)

    with pytest.raises(CacheError, match=r"reach 3.5e\+05, which half precision cannot hold.*--codec raw"):
        write_features(tmp_path / "c", SOURCE, frames, look)
    write_features(tmp_path / "raw", SOURCE, frames, look, options=CodecOptions("raw"))


def test_marks_of_what_is_not_valid_are_not_lost(tmp_path):
    def look(images):
        features = Teacher()(images)
        return features._replace(valid_BVHW=features.tokens_BVHWC[..., 0] != 7)

    with pytest.raises(CacheError, match="keeps no such marks"):
        write_features(tmp_path / "c", SOURCE, frames, look)


def broken_camera(indices: list[int]) -> torch.Tensor:
    raise RuntimeError("no image")


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ({"options": CodecOptions("pca-int8", components=9999)}, SpatialForcingError),
        ({"batch_size": 0}, CacheError),
        ({"source": replace(SOURCE, grid=(0, -2))}, CacheError),
        ({"source": replace(SOURCE, grid=(3, 2))}, CacheError),
        ({"teacher": Teacher(limit=0)}, KeyboardInterrupt),
        ({"frames": broken_camera}, RuntimeError),
    ],
)
def test_what_a_failed_start_wrote_goes_away(tmp_path, failing, error):
    given = {"source": SOURCE, "frames": frames, "teacher": Teacher()} | failing
    for folder in (tmp_path / "new" / "folder", tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(error):
            write_features(folder, **given)
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    write_features(tmp_path / "there", SOURCE, frames, Teacher())


def test_a_grid_larger_than_the_teachers_is_refused_and_the_teachers_is_said(tmp_path):
    for grid in ((3, 2), (2, 3), (50, 50)):
        with pytest.raises(
            CacheError, match=f"{grid[0]} x {grid[1]} is larger than the teacher's, which is 2 x 2"
        ):
            write_features(tmp_path / "c", replace(SOURCE, grid=grid), frames, Teacher())
    for grid in ((2, 2), (1, 2)):
        write_features(tmp_path / str(grid), replace(SOURCE, grid=grid), frames, Teacher())
        assert FeatureStore(tmp_path / str(grid)).grid[1:3] == grid


def test_a_claim_beside_which_nothing_was_finished_gives_way(tmp_path):
    root, other = tmp_path / "c", replace(SOURCE, teacher="u")
    root.mkdir()
    for left in ('{"teacher": "t"}', "cut o"):  # of a process that was killed at once
        (root / "source.json").write_text(left)
        with only_writer(root, Share(1, 2)), pytest.raises(CacheError, match=r"teacher|damaged"):
            write_features(root, other, frames, Teacher(), share=Share(0, 2))
        assert (root / "source.json").read_text() == left, "somebody is at work here"
        with pytest.raises(KeyboardInterrupt):
            write_features(root, other, frames, Teacher(limit=0))
        assert not list(root.iterdir())
    write_features(root, other, frames, Teacher())


def test_a_repair_that_fails_changes_nothing(tmp_path):
    root = tmp_path / "c"
    write_features(root, SOURCE, frames, Teacher())
    every = sorted(path.name for path in root.glob("*.safetensors"))
    for names, limits in ((["shard-00001.safetensors"], [0]), (every, [0, SOURCE.frames + 6])):
        (root / names[0]).write_bytes(b"damaged")
        before = {path.name: path.read_bytes() for path in root.iterdir()}
        for fails in map(Teacher, limits):
            with pytest.raises(KeyboardInterrupt):
                repair(root, names, lambda fails=fails: write_features(root, SOURCE, frames, fails))
            assert {path.name: path.read_bytes() for path in root.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match="not empty"):
        write_features(tmp_path, SOURCE, frames, Teacher())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "format", "json"])
def test_damage_is_named(tmp_path, damage):
    root = write_features(tmp_path / "c", SOURCE, frames, Teacher())
    shard, manifest = root / "shard-00001.safetensors", root / "manifest.json"
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif damage == "flip":
        flip_a_bit(shard)
    elif damage == "missing":
        shard.unlink()
    elif damage == "format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    else:
        manifest.write_text("{")
    with pytest.raises(CacheError, match="manifest" if damage in ("format", "json") else "shard-00001"):
        FeatureStore(root).read(torch.arange(SOURCE.frames))


def test_full_disk_fails_before_writing(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match=r"needs about .*; 10 B are free. Finished shards are kept"):
        write_features(tmp_path / "c", SOURCE, frames, Teacher())
    assert not list((tmp_path / "c").glob("shard-*"))


def test_frames_beyond_the_cache_are_refused(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    with pytest.raises(CacheError, match="another data set"):
        FeatureStore(tmp_path / "c").read(torch.tensor([11]))


def test_no_cache_there(tmp_path):
    with pytest.raises(CacheError, match="no feature cache"):
        FeatureStore(tmp_path)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


# ---- several processes
# ----------------------------------------------------------------------------------------------------------


def contents(root) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


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


# ---- verifying
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["shard-00001.safetensors", "codec.safetensors"])
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_verify_names_the_broken_file_and_repair_restores_exactly_it(tmp_path, victim, how):
    root = write_features(tmp_path / "c", SOURCE, frames, Teacher())
    before = contents(root)
    assert broken_files(root) == {}
    flip_a_bit(root / victim) if how == "flip" else (root / victim).unlink()
    assert list(broken_files(root)) == [victim]
    again = Teacher()
    repair(root, [victim], lambda: write_features(root, SOURCE, frames, again))
    assert contents(root) == before
    assert again.seen == (4 if "shard" in victim else SOURCE.frames)


def test_recomputing_a_sample_notices_another_teacher(tmp_path):
    def teacher(images):
        features = Teacher()(images)
        return features._replace(tokens_BVHWC=features.tokens_BVHWC + torch.arange(1.0, 6.0))

    root = write_features(tmp_path / "c", SOURCE, frames, teacher)
    assert recompute(root, frames, teacher) > 0.999

    def other(images):
        features = teacher(images)
        return features._replace(tokens_BVHWC=torch.randn(features.tokens_BVHWC.shape))

    with pytest.raises(CacheError, match="not what the teacher says now"):
        recompute(root, frames, other)
