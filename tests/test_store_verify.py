"""Damaged feature caches: the broken file is named, and exactly it is computed again."""

import json

import pytest
import torch
from small_cache import SOURCE, Teacher, contents, flip_a_bit, frames, small_shards

from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cache.verify import broken_files, recompute, repair
from spatial_forcing.cache.write import write_features


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    small_shards(monkeypatch)


def test_a_finished_cache_with_a_file_missing_is_not_called_finished(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    (tmp_path / "c" / "shard-00001.safetensors").unlink()
    with pytest.raises(CacheError, match=r"shard-00001.* is missing .*--repair"):
        write_features(tmp_path / "c", SOURCE, frames, Teacher())


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
