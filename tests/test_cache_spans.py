"""Caches of some episodes of a data set: only their frames, and statistics of these alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_dataset import make_dataset

from spatial_forcing.cache.command import verify_cache, write_cache
from spatial_forcing.cache.spans import Spans, spans_of_episodes
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cli import Cache, CacheVerify
from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import SpatialForcingError


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6))
def test_rows_are_the_frames_of_the_spans_in_order(pieces):
    spans, at = [], 0
    for gap, length in pieces:
        spans.append((at + gap, at + gap + length))
        at += gap + length
    frames = [frame for start, stop in spans for frame in range(start, stop)]
    rows = Spans(0, spans)
    assert rows.frames == len(frames)
    assert [rows.frame_of(row) for row in range(rows.frames)] == frames
    assert [rows.row_of(frame) for frame in frames] == list(range(rows.frames))
    outside = {*range(-2, at + 3)} - {*frames}
    assert {rows.row_of(frame) for frame in outside} == {None}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("spans") / "data")


@pytest.fixture(scope="module")
def episodes(dataset):
    """(first frame, end) of each."""
    return [
        (row["dataset_from_index"], row["dataset_to_index"]) for row in open_dataset(dataset).meta.episodes
    ]


def cached(dataset, out, *episodes: int) -> FeatureStore:
    options = {"teacher": "untrained-tiny", "codec": "raw", "episodes": episodes, "batch": 2}
    write_cache(Cache(out=out, dataset=str(dataset), **options))
    return FeatureStore(out)


def test_a_cache_of_some_episodes_holds_theirs_and_no_others(tmp_path, dataset, episodes):
    whole, some = cached(dataset, tmp_path / "whole"), cached(dataset, tmp_path / "some", 2, 0)
    (start, stop), (later, end) = episodes[0], episodes[2]
    frames = torch.tensor([*range(later, end), *range(start, stop)])
    assert some.source.frames == len(frames) < whole.source.frames
    torch.testing.assert_close(
        some.read(frames).tokens_BVHWC, whole.read(frames).tokens_BVHWC, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(
        CacheError, match=r"of some episodes of the data set, which do not have it.*--episodes"
    ):
        some.read(torch.tensor([episodes[1][0]]))
    # Standardising with frames that are held out would tell of them.
    tokens_NC = whole.read(frames).tokens_BVHWC.flatten(0, -2)
    assert some.stats is not None
    torch.testing.assert_close(some.stats[0].float(), tokens_NC.mean(0), atol=1e-4, rtol=1e-4)
    assert (some.stats[0].float() - whole.stats[0].float()).abs().max() > 1e-3


def test_it_is_verified_and_repaired_as_others_are(tmp_path, dataset, capsys):
    out = tmp_path / "some"
    cached(dataset, out, 1)
    shard = out / "shard-00000.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(before[:-8] + bytes(8))
    verify_cache(CacheVerify(out=out, dataset=str(dataset), repair=True))
    assert shard.read_bytes() == before
    assert "computed again: mean cosine 1.0000" in capsys.readouterr().out


def test_another_choice_of_episodes_is_another_cache(tmp_path, dataset):
    cached(dataset, tmp_path / "some", 0, 1)
    with pytest.raises(CacheError, match=r"another feature cache.*spans"):
        cached(dataset, tmp_path / "some", 1, 2)


@pytest.mark.parametrize(
    ("episodes", "says"),
    [
        ([], "at least one"),
        ([1, 1], "none twice"),
        ([0, 9], "0 to 2; there is no episode 9"),
        ([-1], "no episode -1"),
    ],
)
def test_episodes_that_are_not_there(dataset, episodes, says):
    with pytest.raises(SpatialForcingError, match=says):
        spans_of_episodes(open_dataset(dataset).meta, episodes)
