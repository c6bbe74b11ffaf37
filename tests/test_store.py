"""The feature store: what is read is what was computed, interruptions continue, mix-ups are refused."""

import json
from dataclasses import replace

import pytest
import torch

from spatial_forcing.cache import store
from spatial_forcing.cache.store import CacheError, FeatureStore, Source, write_features
from spatial_forcing.grid import Features

SOURCE = Source("t", "f1", "Apache-2.0", "d1", ("left", "right"), frames=11)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_FRAMES", 4)


def frames(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4) / 100


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
    write_features(tmp_path / "c", SOURCE, frames, Teacher(), batch_size=3, advance=done.append)
    features = FeatureStore(tmp_path / "c").read(torch.tensor([10, 0, 5, 5]))
    assert features.tokens_BVHWC.shape == (4, 2, 2, 2, 5)
    assert features.tokens_BVHWC[:, 0, 0, 0, 0].tolist() == [10, 0, 5, 5]
    assert features.tokens_BVHWC[:, 1, 1, 1, 4].tolist() == [10.5, 0.5, 5.5, 5.5]
    assert features.valid_BVHW.all()
    assert sum(done) == SOURCE.frames


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
        write_features(tmp_path / "broken", SOURCE, frames, Teacher(limit=6), batch_size=2)
    with pytest.raises(CacheError, match="unfinished"):
        FeatureStore(tmp_path / "broken")
    again = Teacher()
    write_features(tmp_path / "broken", SOURCE, frames, again, batch_size=2)
    assert again.seen == SOURCE.frames - 4, "the finished shard was computed again"
    for path in sorted((tmp_path / "straight").iterdir()):
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes()


def test_finished_cache_is_reused(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    write_features(tmp_path / "c", SOURCE, frames, Teacher(limit=0))


@pytest.mark.parametrize(
    "change", [{"teacher": "u"}, {"teacher_fingerprint": "f2"}, {"cameras": ("right", "left")}]
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_features_are_refused_and_nothing_is_lost(tmp_path, change, finished):
    teacher = Teacher(10**9 if finished else 6)
    try:
        write_features(tmp_path / "c", SOURCE, frames, teacher, batch_size=2)
    except KeyboardInterrupt:
        assert not finished
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    with pytest.raises(CacheError, match=next(iter(change))):
        write_features(tmp_path / "c", replace(SOURCE, **change), frames, Teacher())
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match="not empty"):
        write_features(tmp_path, SOURCE, frames, Teacher())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("damage", ["truncate", "missing", "format", "json"])
def test_damage_is_named(tmp_path, damage):
    root = write_features(tmp_path / "c", SOURCE, frames, Teacher())
    shard, manifest = root / "shard-00001.safetensors", root / "manifest.json"
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif damage == "missing":
        shard.unlink()
    elif damage == "format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    else:
        manifest.write_text("{")
    with pytest.raises(CacheError, match="shard-00001" if damage in ("truncate", "missing") else "manifest"):
        FeatureStore(root)


def test_full_disk_fails_before_writing(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match="GiB free"):
        write_features(tmp_path / "c", SOURCE, frames, Teacher())
    assert not list((tmp_path / "c").glob("shard-*"))


def test_frames_beyond_the_cache_are_refused(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    with pytest.raises(CacheError, match="another data set"):
        FeatureStore(tmp_path / "c").read(torch.tensor([11]))


def test_no_cache_there(tmp_path):
    with pytest.raises(CacheError, match="no feature cache"):
        FeatureStore(tmp_path)
