"""Laws of the probe on grids of tokens that pad, overhang, mirror or crop, and of several sources on them.

Shapes: F frames, V views, H W rows and columns of tokens or pixels, h w cells of a depth map, k of them a
side of a token, N tokens of all views, C channels.
"""

from dataclasses import replace

import pytest
import torch
from painted_depth import NEAR, SPAN, TEST, TRAIN, K, episodes, errors, scene
from small_probe import judge, metrics_of
from torch import Tensor

from spatial_forcing.features import Features
from spatial_forcing.grid import Layout, compose, crop, flip, identity, rotation
from spatial_forcing.probe import DepthProbe, ProbeError, VisualTokens, metrics
from spatial_forcing.probe.depth import cell_depth

SIZE = (30, 48)
LAYOUTS = [
    Layout(2, 3, 4),
    Layout(2, 4, 4, "pad"),
    Layout(2, 4, 4, "pad", anchor=(1.0, 1.0)),
    Layout(2, 3, 3, overhang=(1.2, 1.1), offset=-0.4),
]


def laid(layout: Layout, frames: int, width: int = 5, seed: int = 0) -> VisualTokens:
    draw = torch.Generator().manual_seed(seed)
    visual_FNC = torch.randn(frames, layout.tokens, width, generator=draw)
    return VisualTokens.laid_out(visual_FNC, layout, [SIZE] * layout.views)


def depth_of(frames: int, seed: int) -> Tensor:
    return NEAR + SPAN * torch.stack([scene(frames, *SIZE, seed + i) for i in (0, 50)], dim=1)


def both(layout: Layout) -> tuple[tuple[VisualTokens, VisualTokens], tuple[Tensor, Tensor]]:
    return (laid(layout, TRAIN), laid(layout, TEST, seed=1)), (depth_of(TRAIN, 0), depth_of(TEST, 9))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cells_of_a_ramp_have_the_depth_at_their_middle(layout):
    x_W, y_H1 = (torch.arange(96) + 0.5) / 96, ((torch.arange(60) + 0.5) / 60)[:, None]
    ramp = (1 + x_W + 0.5 * y_H1).expand(1, 2, -1, -1)
    found = laid(layout, 1).depth(ramp, K)[0, 0]
    rows, cols = layout.rows * K, layout.cols * K
    (sx, _, x0), (_, sy, y0) = layout.affine_23(*SIZE).tolist()
    low_x, low_y = sx * torch.arange(cols) / cols + x0, sy * torch.arange(rows)[:, None] / rows + y0
    high_x, high_y = low_x + sx / cols, low_y + sy / rows
    whole = (low_x >= -1e-6) & (low_y >= -1e-6) & (high_x <= 1 + 1e-6) & (high_y <= 1 + 1e-6)
    whole &= layout.valid_mask(*SIZE).repeat_interleave(K, 0).repeat_interleave(K, 1)
    expected = 1 + (low_x + high_x) / 2 + 0.25 * (low_y + high_y)
    assert whole.sum() >= 6
    # Exact but for pixels that two cells share.
    torch.testing.assert_close(found[whole], expected[whole], rtol=0, atol=0.006)
    beyond = (high_x < 0) | (low_x > 1) | (high_y < 0) | (low_y > 1)
    assert found[beyond].isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_what_tokens_of_padding_hold_changes_nothing(layout):
    (train, test), depth = both(layout)
    # And of a camera that two frames lack.
    there_FV = torch.ones(TRAIN, 2, dtype=torch.bool)
    there_FV[:2, 1] = False
    train, test = (
        replace(of, valid_FVHW=of.valid_FVHW & there_FV[: of.frames, :, None, None]) for of in (train, test)
    )
    rows = []
    for filling in (0.0, 1e4, torch.nan):
        pair = tuple(
            replace(of, tokens_FVHWC=torch.where(of.valid_FVHW[..., None], of.tokens_FVHWC, filling))
            for of in (train, test)
        )
        result = judge({"x": pair}, *depth, episodes(TRAIN), episodes(TEST, 100), sub_grid=K)
        rows.append(result.record().plain()["rows"])
        assert result.predicted["x"].isnan().equal(~test.on_cells(K))
        assert result.depth_FVhw[~test.on_cells(K)].isnan().all()
    assert rows[0] == rows[1] == rows[2]


def test_grids_of_whole_images_give_the_numbers_they_always_gave():
    """Bit for bit those of the probe that knew no places, and those it gave when it knew none."""
    tokens, depth = both(LAYOUTS[0])
    result = judge({"x": tokens}, *depth, episodes(TRAIN), episodes(TEST, 100), sub_grid=K)
    plain = DepthProbe(sub_grid=K).fit(tokens[0].tokens_FVHWC, depth[0], episodes(TRAIN))
    assert torch.equal(result.predicted["x"], plain.predict(tokens[1].tokens_FVHWC))
    assert torch.equal(result.depth_FVhw, cell_depth(depth[1], 3 * K, 4 * K))
    assert metrics_of(result.rows[0]) == metrics(result.predicted["x"], depth[1])


def test_numbers_from_before_the_probe_knew_places():
    """Measured at a180bbc."""

    def of(frames: int, first: int) -> list[Tensor]:
        t = torch.arange(first, first + frames).double()[:, None, None, None]
        v = torch.arange(2).double()[:, None, None]
        y, x = torch.arange(56).double()[:, None] / 56, torch.arange(42).double() / 42
        depth = 1.5 + 0.5 * torch.sin(3 * x + 0.7 * t + v) * torch.cos(4 * y - 0.3 * t)
        depth = depth + 0.8 * (torch.sin(9 * x * y + t) > 0.95)
        depth = torch.where(torch.cos(11 * x - 5 * y + t) > 0.97, 9.0, depth)
        c = torch.arange(6).double()
        r, q, t1, v1 = c[:4, None, None] / 4, c[:4, None] / 4, t[..., None], v[..., None]
        tokens = torch.sin((1 + c) * (q + 0.7 * t1) + v1) * torch.cos(c * (4 * r - 0.3 * t1))
        y, x = torch.arange(28).double()[:, None] / 28, torch.arange(28).double() / 28
        images = 0.5 + 0.5 * torch.sin(c[:3, None, None] + 7 * x + 3 * y + t1 + v1)
        return [map_.float() for map_ in (tokens, depth, images)]

    (train, train_depth, train_rgb), (test, test_depth, test_rgb) = of(20, 0), of(12, 50)
    result = judge(
        {"x": (VisualTokens.whole(train), VisualTokens.whole(test))},
        train_depth,
        test_depth,
        torch.arange(20) // 4,
        100 + torch.arange(12) // 4,
        images=(train_rgb, test_rgb),
    )
    before = {
        "x": (0.16443766587633385, 0.33053916114479415, 0.7293723554301833),
        "pixels": (0.16400566497478944, 0.3271981524530044, 0.7230253878702397),
        "mean depth": (0.16333069648655085, 0.33039699095947744, 0.7314880112834978),
    }
    for row in result.rows:
        assert (row.absrel, row.rmse_m, row.delta1) == pytest.approx(before[row.name], rel=1e-6)
        assert row.pixels == 5672


def test_a_mirrored_image_is_the_image_of_mirrored_depth():
    (train, test), depth = both(LAYOUTS[0])
    plain = errors((train, test), depth)
    turned = tuple(replace(of, affine_FV23=compose(flip(), of.affine_FV23)) for of in (train, test))
    mirrored = errors(turned, [of.flip(3) for of in depth])  # type: ignore[arg-type]
    assert mirrored == pytest.approx(plain, rel=1e-5)


def test_a_crop_is_the_whole_of_the_cropped_depth():
    (train, test), depth = both(LAYOUTS[0])
    inner = tuple(
        replace(of, affine_FV23=compose(crop(0.25, 0.2, 0.75, 0.8), of.affine_FV23)) for of in (train, test)
    )
    cropped = errors((train, test), [of[..., 6:24, 12:36] for of in depth])
    assert errors(inner, depth) == pytest.approx(cropped, rel=1e-5)  # type: ignore[arg-type]


def test_turned_images_are_refused():
    (train, _), depth = both(LAYOUTS[0])
    turned = replace(train, affine_FV23=compose(rotation(10), train.affine_FV23))
    with pytest.raises(ProbeError, match="without image transforms"):
        turned.depth(depth[0], K)


def test_views_one_by_one_are_views_together():
    tokens, depth = both(LAYOUTS[1])
    images = [torch.rand(of.frames, 2, 3, *SIZE) for of in tokens]
    together = errors(tokens, depth, images=images)
    one_by_one = errors(tokens, [of.unbind(1) for of in depth], images=[of.unbind(1) for of in images])
    assert one_by_one == pytest.approx(together, rel=1e-6)


# ---- several sources ---------------------------------------------------------------------------------------


def test_features_of_whole_images_are_carried_to_the_hosts_grid():
    """On an equal grid bit for bit; a teacher that holds the depth is read on a padded one."""
    (train, test), depth = both(LAYOUTS[0])
    features = Features(torch.randn(TRAIN, 2, 3, 4, 7), torch.ones(TRAIN, 2, 3, 4, dtype=torch.bool))
    features.valid_BVHW[2, 1, 0] = False
    same = train.carry(features)
    assert torch.equal(same.valid_FVHW, features.valid_BVHW)
    assert torch.equal(
        same.masked(same.valid_FVHW).tokens_FVHWC,
        features.tokens_BVHWC.where(features.valid_BVHW[..., None], torch.zeros(())),
    )
    (train, test), depth = both(LAYOUTS[1])
    teacher = []
    for of, known in zip((train, test), depth, strict=True):
        cells = cell_depth(known, 30, 48)[..., None]
        teacher.append(of.carry(Features(cells, torch.ones(cells.shape[:4], dtype=torch.bool))))
    result = judge(
        {"host": (train, test), "teacher": tuple(teacher)},  # type: ignore[dict-item]
        *depth,
        episodes(TRAIN),
        episodes(TEST, 100),
        baseline="host",
        sub_grid=1,
    )
    rows = {row.name: row for row in result.rows}
    assert rows["teacher"].absrel < 0.02 < 0.1 < rows["mean depth"].absrel
    assert list(rows["teacher"].differences) == ["host", "mean depth"]
    assert list(rows["host"].differences) == ["mean depth"]


def test_all_sources_are_judged_where_all_can_see():
    (train, test), depth = both(LAYOUTS[1])
    blinded = replace(test, valid_FVHW=test.valid_FVHW & (torch.arange(TEST) > 2)[:, None, None, None])
    result = judge(
        {"a": (train, test), "b": (train, blinded)}, *depth, episodes(TRAIN), episodes(TEST, 100), sub_grid=K
    )
    assert len({row.pixels for row in result.rows}) == 1
    assert result.depth_FVhw[:3].isnan().all()


def test_sources_that_see_other_parts_of_the_images_are_not_compared():
    tokens, depth = both(LAYOUTS[1])
    others, _ = both(LAYOUTS[2])
    how = (*depth, episodes(TRAIN), episodes(TEST, 100))
    with pytest.raises(ProbeError, match=r"a and b do not.*VisualTokens.carry"):
        judge({"a": tokens, "b": others}, *how)
    with pytest.raises(ProbeError, match=r"a: expected VisualTokens, got Tensor.*VisualTokens\.whole"):
        judge({"a": tuple(of.tokens_FVHWC for of in tokens)}, *how)  # type: ignore[dict-item]
    with pytest.raises(ProbeError, match=r"no source 'base' to compare with. There are: a"):
        judge({"a": tokens}, *how, baseline="base")
    with pytest.raises(ProbeError, match=r"depth of the same 10 frames and 2 views.*got \[\(10, 30, 48\)\]"):
        judge({"a": tokens}, [depth[0][:, 0]], *how[1:])


def test_patches_of_large_images_are_averaged_to_few_pixels():
    tokens = VisualTokens(
        torch.zeros(2, 1, 2, 3, 4), identity().expand(2, 1, 2, 3), torch.ones(2, 1, 2, 3).bool()
    )
    images = torch.rand(2, 1, 3, 2 * 64, 3 * 64)
    found = tokens.patches(images).tokens_FVHWC
    assert found.shape == (2, 1, 2, 3, 3 * 16 * 16)
    small = torch.nn.functional.avg_pool2d(images[:, 0], 4)
    torch.testing.assert_close(found, tokens.patches(small[:, None]).tokens_FVHWC)
