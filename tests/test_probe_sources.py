"""Sources of tokens compared by the probe: rows, intervals, paired differences, the drawing."""

import json

import pytest
import torch
from small_probe import F, H, K, V, W, episodes, judge, metrics_of, planted, whole

from spatial_forcing.probe import ProbeError, metrics
from spatial_forcing.probe.image import probe_image


def world(frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens that hold what of the depth changes from frame to frame, and images that hold nothing."""
    tokens, depth = planted(seed, frames)
    images = torch.rand(frames, V, 3, 6 * H, 6 * W, generator=torch.Generator().manual_seed(seed + 50))
    return tokens, depth, images


def test_knowing_tokens_beat_the_mean_depth_and_random_tokens_do_not():
    (train, train_depth, train_rgb), (test, test_depth, test_rgb) = world(F, 0), world(12, 1)
    noise = torch.randn(F + 12, V, H, W, 40, generator=torch.Generator().manual_seed(7))
    result = judge(
        whole(policy=(train, test), noise=(noise[:F], noise[F:])),
        train_depth,
        test_depth,
        episodes(),
        episodes(12, first=100),
        images=(train_rgb, test_rgb),
        sub_grid=K,
    )
    rows = {row.name: row for row in result.rows}
    assert list(rows) == ["policy", "noise", "pixels", "mean depth"]
    assert rows["policy"].absrel < 0.8 * rows["mean depth"].absrel
    for blind in ("noise", "pixels"):
        assert rows[blind].absrel > 0.98 * rows["mean depth"].absrel
    assert len({row.pixels for row in rows.values()}) == 1


def test_mean_depth_is_the_mean_of_the_training_frames():
    (train, depth, _), (test, test_depth, _) = world(F, 0), world(12, 1)
    result = judge(whole(x=(train, test)), depth, test_depth, episodes(), episodes(12, 100), sub_grid=K)
    mean = depth.double().mean(0).float()
    torch.testing.assert_close(result.predicted["mean depth"][5], mean)
    assert metrics_of(result.rows[-1]) == metrics(mean.expand(12, -1, -1, -1), test_depth)
    assert result.rows[-1].ridge is None


def test_the_result_is_plain_json_and_draws_a_image(tmp_path):
    (train, depth, _), (test, test_depth, images) = world(F, 0), world(12, 1)
    result = judge(whole(x=(train, test)), depth, test_depth, episodes(), episodes(12, 100), sub_grid=K)
    record = json.loads(json.dumps(result.record("probe.png").plain(), allow_nan=False))
    assert record["rows"][0]["absrel"] == result.rows[0].absrel
    assert (record["train_frames"], record["test_frames"], record["image"]) == (F, 12, "probe.png")

    from PIL import Image

    with Image.open(result.draw(images, tmp_path / "probe.png", frames=2)) as drawn:
        assert drawn.width > 300
        assert len(set(drawn.convert("RGB").resize((50, 50)).getdata())) > 100
    assert [p.name for p in tmp_path.iterdir()] == ["probe.png"]
    with pytest.raises(ProbeError, match="12 test frames"):
        result.draw(images[:5], tmp_path / "other.png")


def test_intervals_are_over_test_episodes_and_differences_are_paired():
    (train, depth, _), (test, test_depth, _) = world(F, 0), world(30, 1)
    # Some episodes are harder than others, for all sources alike.
    test_depth = test_depth + 0.3 * (episodes(30) % 3)[:, None, None, None]
    noise = torch.randn(F + 30, V, H, W, 5, generator=torch.Generator().manual_seed(7))
    result = judge(
        whole(x=(train, test), noise=(noise[:F], noise[F:])),
        depth,
        test_depth,
        episodes(),
        episodes(30, 100),
        baseline="noise",
        sub_grid=K,
    )
    rows = {row.name: row for row in result.rows}
    assert result.test_episodes == 10
    for row in result.rows:
        assert row.intervals is not None
        for name, (low, high) in row.intervals.items():
            assert low < getattr(row, name) < high
    assert {name: list(row.differences) for name, row in rows.items()} == {
        "x": ["noise", "mean depth"],
        "noise": ["mean depth"],
        "mean depth": ["noise"],
    }
    gain = rows["x"].differences["mean depth"]
    assert gain.absrel == pytest.approx(rows["x"].absrel - rows["mean depth"].absrel)
    assert gain.low < gain.absrel < gain.high < 0
    low, high = rows["mean depth"].intervals["absrel"]
    nothing = rows["noise"].differences["mean depth"]
    assert nothing.high - nothing.low < 0.3 * (high - low)
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    again = judge(
        whole(x=(train, test[shuffled])),
        depth,
        test_depth[shuffled],
        episodes(),
        episodes(30, 100)[shuffled],
        sub_grid=K,
    )
    assert again.rows[0].intervals["absrel"] == pytest.approx(rows["x"].intervals["absrel"], rel=1e-6)


def test_one_test_episode_has_no_interval():
    (train, depth, _), (test, test_depth, _) = world(F, 0), world(3, 1)
    result = judge(whole(x=(train, test)), depth, test_depth, episodes(), episodes(3, 100), sub_grid=K)
    record = json.loads(json.dumps(result.record().plain(), allow_nan=False))
    assert record["test_episodes"] == 1
    assert record["rows"][0]["intervals"] is None
    difference = record["rows"][0]["differences"]["mean depth"]
    assert (difference["low"], difference["high"]) == (None, None)
    assert difference["absrel"] < 0


def test_what_is_predicted_where_nothing_is_true_is_not_drawn(tmp_path):
    _, depth = planted(frames=2)
    depth = depth[:, 0]
    depth[:, :3] = torch.nan
    drawn = []
    for i, beyond in enumerate((0.1, 9.0)):
        predicted = torch.where(depth.isnan(), beyond, depth + 0.1)
        path = probe_image(torch.full((2, 3, 6, 8), 0.5), depth, {"x": predicted}, tmp_path / f"{i}.png")
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]


def test_overlapping_episodes_are_refused():
    tokens, depth = planted()
    with pytest.raises(ProbeError, match=r"2 episodes are in both training and test: 6, 7\."):
        judge(whole(x=(tokens, tokens)), depth, depth, episodes(), episodes(first=6), sub_grid=K)


def test_sources_on_different_grids_are_not_compared():
    tokens, depth = planted()
    with pytest.raises(ProbeError, match="share one grid"):
        judge(
            whole(a=(tokens, tokens), b=(tokens[:, :, :2], tokens[:, :, :2])),
            depth,
            depth,
            episodes(),
            episodes(first=100),
            sub_grid=K,
        )
