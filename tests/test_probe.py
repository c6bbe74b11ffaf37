"""The depth probe: it finds what is linearly there, nothing else, and leaves the policy alone."""

import json

import pytest
import torch
from small_probe import judge, metrics_of

from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.probe import (
    DepthProbe,
    ProbeError,
    VisualTokens,
    cell_depth,
    metrics,
    tapped_tokens,
)
from spatial_forcing.probe.image import probe_image

F, V, H, W, C, K = 24, 2, 3, 4, 10, 2


def planted(seed: int = 0, frames: int = F) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a depth map on the sub-grid: linear in them, plus an offset of each cell; 0.5 to 2.5 m."""
    g = torch.Generator().manual_seed(99)
    weights, offset = torch.randn(C, K * K, generator=g) * 0.05, torch.rand(V, H * K, W * K, generator=g)
    tokens = torch.randn(frames, V, H, W, C, generator=torch.Generator().manual_seed(seed))
    linear = (tokens @ weights).view(frames, V, H, W, K, K).transpose(3, 4)
    return tokens, 1 + offset + linear.reshape(frames, V, H * K, W * K)


def whole(**sources: tuple[torch.Tensor, torch.Tensor]) -> dict[str, tuple[VisualTokens, VisualTokens]]:
    """Sources whose tokens cover their whole images."""
    return {name: (VisualTokens.whole(a), VisualTokens.whole(b)) for name, (a, b) in sources.items()}


def episodes(frames: int = F, first: int = 0) -> torch.Tensor:
    return first + torch.arange(frames) // 3


# ---- the head ----------------------------------------------------------------------------------------------


def test_depth_linear_in_tokens_plus_an_offset_of_each_cell_is_recovered_exactly():
    (train, depth), (test, true) = planted(0), planted(1)
    plain = DepthProbe(sub_grid=K, ridges=[0.0]).fit(train, depth, episodes())
    seen = true.clamp(depth.min(), depth.max())
    torch.testing.assert_close(plain.predict(test), seen, rtol=1e-5, atol=1e-5)
    chosen = metrics(DepthProbe(sub_grid=K).fit(train, depth, episodes()).predict(test), true)
    assert chosen.absrel < 1e-3
    assert chosen.delta1 == 1.0
    assert chosen.pixels == true.numel()


@pytest.mark.parametrize("missing", [False, True])
def test_tokens_that_never_change_give_the_mean_depth_exactly(missing):
    """A token of its own for every place says where it lies, which is nothing new."""
    _, depth = planted()
    g = torch.Generator().manual_seed(4)
    if missing:
        depth = torch.where(torch.rand(depth.shape, generator=g) < 0.05, torch.nan, depth)
        depth[:, 0, :K, :K] = 0.0
    place = torch.randn(V, H, W, C, generator=g).expand(F, V, H, W, C)
    probe = DepthProbe(sub_grid=K).fit(place, depth, episodes())
    mean = torch.where(depth > 0, depth, torch.nan).double().nanmean(0)
    mean = torch.where(mean.isnan(), mean.nanmean(), mean)
    torch.testing.assert_close(
        probe.predict(place[:5]), mean.float().expand(5, -1, -1, -1), rtol=1e-6, atol=0
    )
    result = judge(whole(place=(place, place)), depth, depth, episodes(), episodes(first=50), sub_grid=K)
    assert torch.equal(result.predicted["place"], result.predicted["mean depth"])


def test_a_constant_for_each_place_changes_nothing():
    (train, depth), (test, _) = planted(0), planted(1)
    place = 3 * torch.randn(V, H, W, C, generator=torch.Generator().manual_seed(4))
    depth = depth + 0.1 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(5))
    plain = DepthProbe(sub_grid=K).fit(train, depth, episodes())
    moved = DepthProbe(sub_grid=K).fit(train + place, depth, episodes())
    assert moved.ridge == plain.ridge
    torch.testing.assert_close(moved.predict(test + place), plain.predict(test), rtol=1e-5, atol=1e-5)


def test_the_head_is_ridge_regression_with_a_free_offset_for_every_place():
    """The same predictions as least squares on tokens and places, with sqrt(λN) w = 0 for each channel."""
    tokens, depth = planted()
    depth = depth + 0.1 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(5))
    probe = DepthProbe(sub_grid=K, ridges=[0.1]).fit(tokens, depth, episodes())
    x = tokens.double()
    x = (x / (x - x.mean(0)).square().mean((0, 1, 2, 3)).sqrt()).reshape(-1, C)
    y = depth.double().view(F, V, H, K, W, K).transpose(3, 4).reshape(-1, K * K)
    places = torch.eye(V * H * W).double().repeat(F, 1)
    penalty = torch.cat([(0.1 * len(x)) ** 0.5 * torch.eye(C), torch.zeros(C, V * H * W)], 1)
    known = torch.cat([x, places], 1)
    a = torch.linalg.lstsq(
        torch.cat([known, penalty.double()]), torch.cat([y, torch.zeros(C, K * K).double()])
    ).solution
    expected = (known @ a).view(F, V, H, W, K, K).transpose(3, 4).reshape(depth.shape)
    torch.testing.assert_close(probe.predict(tokens), expected.float(), rtol=1e-5, atol=1e-5)


def test_rescaling_and_shifting_channels_changes_nothing():
    (tokens, depth), (test, _) = planted(0), planted(1)
    scale, shift = torch.logspace(-3, 3, C), torch.linspace(-50, 50, C)
    plain = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    moved = DepthProbe(sub_grid=K).fit((tokens + shift) * scale, depth, episodes())
    torch.testing.assert_close(
        moved.predict((test + shift) * scale), plain.predict(test), rtol=1e-3, atol=1e-4
    )


def test_a_constant_channel_gets_no_weight_even_if_it_moves_later():
    (tokens, depth), (test, _) = planted(0), planted(1)
    tokens[..., 3] = 7.3
    probe = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    moved = test.clone()
    moved[..., 3] = -1e4
    torch.testing.assert_close(probe.predict(moved), probe.predict(test))


def test_metres_in_metres_out():
    tokens, depth = planted()
    near = DepthProbe(sub_grid=K).fit(tokens, depth, episodes()).predict(tokens)
    far = DepthProbe(sub_grid=K, far=30).fit(tokens, 10 * depth, episodes()).predict(tokens)
    torch.testing.assert_close(far, 10 * near, rtol=1e-4, atol=1e-4)


def test_images_finer_than_the_sub_grid_are_averaged_and_predictions_stay_on_it():
    tokens, depth = planted()
    fine = depth.repeat_interleave(5, 2).repeat_interleave(3, 3)
    coarse, finer = (DepthProbe(sub_grid=K).fit(tokens, d, episodes()) for d in (depth, fine))
    assert finer.predict(tokens).shape == (F, V, H * K, W * K)
    torch.testing.assert_close(finer.predict(tokens), coarse.predict(tokens))


def test_noise_asks_for_a_stronger_ridge():
    tokens, depth = planted()
    noise = torch.randn(F, V, H, W, 300, generator=torch.Generator().manual_seed(3))
    clean = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    noisy = DepthProbe(sub_grid=K).fit(noise, depth, episodes())
    assert clean.ridge is not None
    assert noisy.ridge is not None
    assert clean.ridge < noisy.ridge


def holes(depth: torch.Tensor, zero: float, beyond: float, none: float) -> torch.Tensor:
    """The same depth, out of range on whole patches and on parts of them, in all frames or in some."""
    depth = depth.clone()
    depth[:, :, 0], depth[:, :, 1, :2], depth[: F // 2, 1, 2:4, 2] = zero, beyond, none
    return depth


def test_depth_out_of_range_is_neither_fitted_nor_judged():
    (train, depth), (test, true) = planted(0), planted(1)
    fillings = (0.0, 50.0, torch.nan), (-1.0, torch.inf, 3.0)
    found, other = (
        DepthProbe(sub_grid=K).fit(train, holes(depth, *filling), episodes()).predict(test)
        for filling in fillings
    )
    assert torch.equal(found, other)
    judged = metrics(found, holes(true, *fillings[0]))
    assert judged.absrel < 1e-3
    assert judged.pixels < true.numel()
    assert judged == metrics(found, holes(true, *fillings[1]))


def test_tokens_without_any_depth_in_range_are_not_fitted():
    (train, depth), (test, _) = planted(0), planted(1)
    depth[: F // 2, 0, :K, :K] = 0.0
    moved = train.clone()
    moved[: F // 2, 0, 0, 0] = torch.nan
    fitted = [DepthProbe(sub_grid=K).fit(x, depth, episodes()).predict(test) for x in (train, moved)]
    assert torch.equal(*fitted)


# ---- maps and metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(6, 8), (12, 8), (7, 11), (28, 29)])
def test_cells_are_exact_on_ramps_at_any_resolution(height, width):
    """The mean of a + b*y + c*x over a cell is its value at the cell's centre."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    if (
        height % 6 or width % 8
    ):  # a pixel shared by two cells brings its own mean into both: exact for constants
        depth, expected = torch.full((height, width), 1.3), torch.full((6, 8), 1.3)
    else:
        cy, cx = (torch.arange(6) + 0.5) / 6, (torch.arange(8) + 0.5) / 8
        depth, expected = 1 + y[:, None] + 0.5 * x, 1 + cy[:, None] + 0.5 * cx
    torch.testing.assert_close(cell_depth(depth[None, None], 6, 8)[0, 0], expected)


def test_cells_keep_the_mean_of_the_image_at_any_resolution():
    depth = 0.5 + torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cell_depth(depth, 5, 6).mean((2, 3)), depth.mean((2, 3)))


def test_averaging_what_is_averaged_changes_nothing():
    depth = 4 * torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(0))
    once = cell_depth(depth, 5, 6)
    torch.testing.assert_close(cell_depth(once, 5, 6), once, equal_nan=True)


def test_a_cell_needs_depth_on_half_of_its_area():
    depth = torch.ones(1, 1, 2, 4)
    depth[..., 0, 2], depth[..., 1, 2:] = 0.0, 9.0
    cells = cell_depth(depth, 1, 2, far=3.0)[0, 0, 0]
    assert cells[0] == 1.0
    assert cells[1].isnan()


def test_metrics_have_their_known_values():
    true = torch.tensor([1.0, 2.0, 2.0, 0.0]).view(1, 1, 2, 2)
    predicted = torch.tensor([1.2, 2.0, 1.0, 9.0]).view(1, 1, 2, 2)
    found = metrics(predicted, true)
    assert found.absrel == pytest.approx((0.2 + 0 + 0.5) / 3)
    assert found.rmse_m == pytest.approx(((0.04 + 0 + 1) / 3) ** 0.5)
    assert found.delta1 == pytest.approx(2 / 3)
    assert found.pixels == 3


def test_ratios_ignore_the_unit_and_metres_do_not():
    _, true = planted()
    predicted = true * torch.exp(0.2 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1)))
    metres, tens = metrics(predicted, true), metrics(10 * predicted, 10 * true, far=30)
    assert (tens.absrel, tens.delta1) == pytest.approx((metres.absrel, metres.delta1))
    assert tens.rmse_m == pytest.approx(10 * metres.rmse_m)


# ---- sources -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, d, e: (t[0], d, e), "frames, views, rows, columns, channels"),
        (lambda t, d, e: (t.long(), d, e), "torch.int64"),
        (lambda t, d, e: (t, d[:, :1], e), "same frames and views"),
        (lambda t, d, e: (t, d, e[:-1]), "one episode a frame"),
        (lambda t, d, e: (t, d, e * 0), "at least two episodes"),
        (lambda t, d, e: (t / 0, d, e), "NaN or infinite"),
        (lambda t, d, e: (t, d * 0, e), "in metres"),
        (lambda t, d, e: (t, d[..., :4], e), "cannot fill 8 cells"),
    ],
)
def test_what_does_not_fit_is_said(spoil, message):
    with pytest.raises(ProbeError, match=message):
        DepthProbe(sub_grid=K).fit(*spoil(*planted(), episodes()))


def test_predicting_from_broken_tokens_or_before_the_fit_is_an_error():
    tokens, depth = planted()
    with pytest.raises(ProbeError, match="not been fitted"):
        DepthProbe(sub_grid=K).predict(tokens)
    probe = DepthProbe(sub_grid=K).fit(tokens, depth, episodes())
    with pytest.raises(ProbeError, match="predict from are NaN"):
        probe.predict(tokens / 0)
    with pytest.raises(ProbeError, match=r"\(F, 2, 3, 4, 10\)"):
        probe.predict(tokens[..., :4])
    with pytest.raises(ProbeError, match=r"\(F, 2, 3, 4, 10\)"):
        probe.predict(tokens[:, :1])


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


# ---- tokens of a policy ------------------------------------------------------------------------------------


@pytest.fixture
def policy():
    """A real TinyPolicy in training mode, one module of it frozen in evaluation mode, with actions queued."""
    pytest.importorskip("lerobot")
    from lerobot.configs import FeatureType, PolicyFeature

    from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy

    config = TinyConfig(image_size=28, patch=14, width=16, depth=4, heads=2, device="cpu")
    cameras = {f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, 28, 28)) for n in ("a", "b")}
    config.input_features = cameras | {"observation.state": PolicyFeature(FeatureType.STATE, (4,))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (4,))}
    torch.manual_seed(0)
    policy = TinyPolicy(config).train()
    policy.model.blocks[1].eval()
    policy._queue.extend([torch.ones(1, 4), torch.zeros(1, 4)])
    return policy


def frames(count: int, seed: int = 0) -> list[dict]:
    """Batches of at most three frames."""
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "observation.images.a": torch.rand(n, 3, 28, 28, generator=g),
            "observation.images.b": torch.rand(n, 3, 28, 28, generator=g),
            "observation.state": torch.randn(n, 4, generator=g),
            "task": ["reach the red ball"] * n,
        }
        for n in [3] * (count // 3) + [count % 3] * bool(count % 3)
    ]


def test_tokens_are_the_residual_stream_after_the_chosen_block(policy):
    batches = frames(5)
    for depth in (1, 2, 3):
        found = tapped_tokens(policy, batches, depth).tokens_FVHWC
        assert (tuple(found.shape), found.dtype) == ((5, 2, 2, 2, 16), torch.float32)
        assert not found.requires_grad
        torch.testing.assert_close(found[:3], stream(policy.model, batches[0], depth))
    default, third = (tapped_tokens(policy, batches, depth).tokens_FVHWC for depth in (None, 3))
    torch.testing.assert_close(default, third)


def stream(model: TinyVLA, batch: dict, depth: int) -> torch.Tensor:
    """The visual tokens of TinyVLA after ``depth`` blocks, by running it block by block."""
    kept = {}
    handle = model.blocks[depth - 1].register_forward_hook(lambda m, args, out: kept.update(out=out))
    images = torch.stack([batch["observation.images.a"], batch["observation.images.b"]], 1)
    with torch.no_grad():
        from spatial_forcing.hosts.tiny import hash_words

        model(
            images, hash_words(batch["task"], model.vocabulary, model.max_words), batch["observation.state"]
        )
    handle.remove()
    return kept["out"][:, model.max_words : model.max_words + 8].view(-1, 2, 2, 2, 16)


def test_the_policy_is_untouched(policy):
    def state() -> tuple:
        return (
            {k: v.clone() for k, v in policy.state_dict().items()},
            [m.training for m in policy.modules()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.modules()],
            [p.requires_grad for p in policy.parameters()],
            [a.clone() for a in policy._queue],
            torch.random.get_rng_state(),
        )

    before = state()
    tapped_tokens(policy, frames(5))
    with pytest.raises(KeyError):  # in the middle of the forward
        tapped_tokens(policy, [{k: v for k, v in frames(2)[0].items() if k != "observation.state"}])
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert policy.training
    assert not policy.model.blocks[1].training


def test_a_model_that_is_no_lerobot_policy_is_called():
    model = TinyVLA(views=1, image_size=28, width=16, depth=3, heads=2)

    class Caller(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return self.model(*batch)

    batch = (torch.rand(2, 1, 3, 28, 28), torch.ones(2, 12).long(), torch.zeros(2, 4))
    assert tapped_tokens(Caller(), [batch]).tokens_FVHWC.shape == (2, 1, 2, 2, 16)


def test_progress_is_counted_in_frames_and_no_batches_is_an_error(policy):
    done = []
    tapped_tokens(policy, frames(7), advance=done.append)
    assert done == [3, 3, 1]
    with pytest.raises(ProbeError, match="no batches"):
        tapped_tokens(policy, [])
