"""The feature store: what is read is what was computed, and an interrupted extraction continues."""

import json
import threading

import pytest
import torch
import torch.nn.functional as F
from small_cache import SOURCE, Teacher, frames, small_shards

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import MANIFEST
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cache.write import Watch, write_features
from spatial_forcing.features import Features
from spatial_forcing.files import checksum


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    small_shards(monkeypatch)


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


def test_frames_beyond_the_cache_are_refused(tmp_path):
    write_features(tmp_path / "c", SOURCE, frames, Teacher())
    with pytest.raises(CacheError, match="another data set"):
        FeatureStore(tmp_path / "c").read(torch.tensor([11]))


def test_no_cache_there(tmp_path):
    with pytest.raises(CacheError, match="no feature cache"):
        FeatureStore(tmp_path)
