"""What is not stored: features of something else, in the wrong place, or that the codec cannot hold."""

from dataclasses import replace

import pytest
import torch
from small_cache import SOURCE, Teacher, frames, small_shards

from spatial_forcing.cache.claim import only_writer
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cache.write import Share, write_features
from spatial_forcing.errors import SpatialForcingError


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    small_shards(monkeypatch)


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


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match="not empty"):
        write_features(tmp_path, SOURCE, frames, Teacher())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_full_disk_fails_before_writing(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match=r"needs about .*; 10 B are free. Finished shards are kept"):
        write_features(tmp_path / "c", SOURCE, frames, Teacher())
    assert not list((tmp_path / "c").glob("shard-*"))
