"""The probe fits and judges a token by the depth of what it sees, on every host: padding, crops, strides.

The oracle: known depth is painted into images, the images go through the host's own preprocessing, and
"tokens" hold the mean of what then lies in their patch. A linear probe must read them without error.

Shapes: F frames, V views, H W rows and columns of tokens or pixels, h w cells of a depth map, k of them a
side of a token.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_policies import CAMERAS, PICTURE, PROMPTED, small_batch, small_policy
from small_probe import judge, metrics_of
from small_prompted import prompted, tracked_crops
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Features, Layout, compose, crop, flip, rotation
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.probe import DepthProbe, ProbeError, VisualTokens, metrics, tapped_tokens
from spatial_forcing.probe.depth import cell_depth

K = 2
LEFT, RIGHT = CAMERAS
WRIST = "observation.images.wrist"
TRAIN, TEST = 10, 6  # frames, two an episode
NEAR, SPAN = 0.5, 2.0  # metres
STRIDE = 32  # of the convolutions of ACT and X-VLA


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


def episodes(frames: int, first: int = 0) -> Tensor:
    return first + torch.arange(frames) // 2


def scene(frames: int, height: int, width: int, seed: int) -> Tensor:
    """unit_FHW: a tilted floor and two blobs, elsewhere in every frame; depth is NEAR + SPAN * unit."""
    draw = torch.Generator().manual_seed(seed)
    x_W, y_H1 = (torch.arange(width) + 0.5) / width, ((torch.arange(height) + 0.5) / height)[:, None]
    tilt_F211 = torch.rand(frames, 2, 1, 1, generator=draw)
    unit_FHW = 0.1 + 0.3 * (tilt_F211[:, 0] * x_W + tilt_F211[:, 1] * y_H1)
    for _ in range(2):
        cx, cy, size = torch.rand(3, frames, 1, 1, generator=draw)
        size = 0.15 + 0.15 * size
        unit_FHW = unit_FHW + 0.25 * torch.exp(-((x_W - cx) ** 2 + (y_H1 - cy) ** 2) / (2 * size**2))
    return unit_FHW


def painted(unit_FHW: Tensor) -> Tensor:
    """Images: depth in red, and one in green and blue, which tells them from padding."""
    return torch.stack([unit_FHW, torch.ones_like(unit_FHW), torch.ones_like(unit_FHW)], dim=1)


def seen_by_host(
    kind: str, policy: Any, batch: Mapping[str, Any], raw: Mapping[str, Any], how: Mapping[str, Any]
) -> list[Tensor]:
    """The images, F3HW in [0, 1] a view, that LeRobot's own code hands to the vision tower."""
    images = [raw[key] for key in policy.config.image_features if key in raw]
    if kind == "smolvla":
        return [(image + 1) / 2 for image in policy.prepare_images(batch)[0]][: len(images)]
    if kind.startswith("pi0"):
        return [(image + 1) / 2 for image in policy._preprocess_images(batch)[0]][: len(images)]
    if kind == "xvla":
        return list(policy._prepare_images(batch)[0].unbind(1))[: len(images)]
    if kind == "groot" and "training" in how:  # what test_policy_prompts.py has found to be those pixels
        return images_of(policy, batch).images
    if kind == "groot":
        from lerobot.policies.groot.processor_groot import _transform_n1_7_image_for_vlm_torch as transform

        options = {"image_crop_size": [116, 116], "image_target_size": [128, 128]}
        options |= {"shortest_image_edge": None, "crop_fraction": None}
        in_bytes = [(image * 255).to(torch.uint8) for image in images]
        return [torch.stack([transform(one, **options) for one in view]) / 255 for view in in_bytes]
    if kind == "evo1":
        from lerobot.policies.evo1.internvl3_embedder import _batched_resize_01

        return [_batched_resize_01(image, policy.config.image_resolution[0]) for image in images]
    if kind == "eo1":  # its processor resizes to whole tokens
        _, rows, cols = batch["image_grid_thw"][0].tolist()
        return [F.interpolate(image, (14 * rows, 14 * cols), mode="bilinear") for image in images]
    return images  # ACT takes them as they come


def oracle(kind: str, seen_F3HW: Tensor, rows: int, cols: int) -> Tensor:
    """oracle_FHWC: mean depth of each of the k x k parts of a token's patch; noise in padding."""
    depth_FHW, there_FHW = NEAR * seen_F3HW[:, 1] + SPAN * seen_F3HW[:, 0], seen_F3HW[:, 1]
    if kind in ("act", "xvla"):  # a convolution looks around the first pixel of its cell, not at its middle
        height, width = depth_FHW.shape[1:]
        around = (STRIDE // 2, cols * STRIDE - width, STRIDE // 2, rows * STRIDE - height)
        depth_FHW, there_FHW = F.pad(depth_FHW, around), F.pad(there_FHW, around)
        depth_FHW, there_FHW = (of[:, : rows * STRIDE, : cols * STRIDE] for of in (depth_FHW, there_FHW))
    cells = [F.adaptive_avg_pool2d(of[:, None], (rows * K, cols * K)) for of in (depth_FHW, there_FHW)]
    known_F1hw = torch.where(cells[1] > 0.05, cells[0] / cells[1].clamp(min=0.05), torch.nan)
    cut_FHWC = known_F1hw[:, 0].unflatten(2, (-1, K)).unflatten(1, (-1, K)).transpose(2, 3).flatten(3)
    padding_FHW1 = cut_FHWC.isnan().all(-1, keepdim=True)
    return torch.where(padding_FHW1, 1e3 * torch.randn_like(cut_FHWC), cut_FHWC.nan_to_num(0.0))


def probed(
    kind: str,
    folder: Path,
    *,
    sizes: dict[str, tuple[int, int]] | None = None,
    without: tuple[str, ...] = (),
    how: Mapping[str, Any] = {},
    **options: Any,
) -> tuple[tuple[VisualTokens, VisualTokens], tuple[list[Tensor], list[Tensor]], tuple[list, list]]:
    """Of training and test frames: oracle tokens in the places of the policy's, depth and images a view.

    ``how``: options of GR00T's preprocessor.
    """
    sizes = dict.fromkeys(CAMERAS, PICTURE[kind]) if sizes is None else sizes
    policy = small_policy(kind, folder, sizes=sizes, **options).eval()
    tokens, depth, images = [], [], []
    for frames, seed in ((TRAIN, 0), (TEST, 100)):
        units = {key: scene(frames, *sizes[key], seed + i) for i, key in enumerate(sizes)}
        units = {key: unit for key, unit in units.items() if key not in without}
        raw = {key: painted(unit) for key, unit in units.items()}
        if kind in PROMPTED:
            plain = small_batch(small_stand_in(policy), frames)
            batch = prompted(policy.config, {k: v for k, v in plain.items() if k not in without} | raw, **how)
        else:
            batch = small_batch(policy, frames, without=without) | raw
        if kind == "pi0_fast":  # the small tokenizer cannot make actions of words: only the loss is left
            policy.predict_action_chunk = policy.forward
        found = tapped_tokens(policy, [batch])
        rows, cols = found.tokens_FVHWC.shape[2:4]
        views = seen_by_host(kind, policy, batch, raw, how)
        held = torch.stack([oracle(kind, seen, rows, cols) for seen in views], dim=1)
        tokens.append(replace(found, tokens_FVHWC=held))
        depth.append([NEAR + SPAN * unit for unit in units.values()])
        # Patches of 32 pixels per side are thousands of channels to fit; half the resolution shows the same.
        images.append(
            [F.avg_pool2d(image, 2) if kind in ("act", "xvla") else image for image in raw.values()]
        )
    return tuple(tokens), tuple(depth), tuple(images)  # type: ignore[return-value]


def small_stand_in(policy: Any) -> Any:
    """A policy of the same cameras whose batches are not put into a prompt yet."""
    from types import SimpleNamespace

    config = policy.config
    plain = SimpleNamespace(image_features=config.image_features, chunk_size=config.chunk_size, type="act")
    return SimpleNamespace(config=plain)


def errors(tokens: tuple[VisualTokens, VisualTokens], depth: Any, **options: Any) -> dict[str, float]:
    """AbsRel by row."""
    result = judge({"oracle": tokens}, *depth, episodes(TRAIN), episodes(TEST, 100), sub_grid=K, **options)
    return {row.name: row.absrel for row in result.rows}


HOSTS = [
    *((kind, {}) for kind in PICTURE),
    ("xvla", {"resize_imgs_with_padding": (128, 128)}),
    ("smolvla", {"resize_imgs_with_padding": (48, 48)}),
]


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_tokens_that_hold_the_depth_of_what_they_see_are_read_without_error(folder, kind, options):
    with tracked_crops():
        tokens, depth, images = probed(kind, folder, **options)
    found = errors(tokens, depth, images=images)
    assert found["mean depth"] > 0.08
    assert found["oracle"] < 0.01
    # Red is the depth, and the patches are of what the tokens see.
    assert found["pixels"] < 0.5 * found["mean depth"]
    # As if the grid covered the whole image.
    blind = errors(tuple(VisualTokens.whole(of.tokens_FVHWC) for of in tokens), depth)  # type: ignore[arg-type]
    layout = host_of(small_policy(kind, folder, **options)).layout
    if layout != Layout(layout.views, layout.rows, layout.cols) or RECORDS[kind].images is not None:
        assert blind["oracle"] > 5 * found["oracle"]


def test_tokens_of_images_that_were_cropped_at_random_are_read_too(folder):
    how = {"use_albumentations": True, "training": True, "crop_fraction": 0.6}
    with tracked_crops():
        tokens, depth, _ = probed("groot", folder, how=how)
    assert len(tokens[0].affine_FV23[:, 0].flatten(1).unique(dim=0)) == TRAIN
    assert errors(tokens, depth)["oracle"] < 0.01


def test_images_that_do_not_say_how_they_were_cropped_are_an_error(folder):
    policy = small_policy("groot", folder)
    with pytest.raises(SpatialForcingError, match=r"does not say how.*track_groot_crops\(\)"):
        tapped_tokens(policy, [small_batch(policy, 2)])


# ---- cameras -----------------------------------------------------------------------------------------------

SIZES = {LEFT: (40, 60), RIGHT: (64, 20), WRIST: (50, 50)}


@pytest.mark.parametrize(
    ("kind", "without", "options"),
    [("smolvla", (LEFT,), {}), ("pi0", (LEFT,), {}), ("evo1", (), {"max_views": 4})],
)
def test_cameras_of_different_sizes_of_which_some_are_missing(folder, kind, without, options):
    tokens, depth, images = probed(kind, folder, sizes=SIZES, without=without, **options)
    assert tokens[0].cameras == tuple(name for name in SIZES if name not in without)
    found = errors(tokens, depth, images=images)
    assert found["oracle"] < 0.01
    assert found["pixels"] < 0.02


@pytest.mark.parametrize(
    ("kind", "options"), [("smolvla", {}), ("smolvla", {"empty_cameras": 1}), ("pi0", {})]
)
def test_cameras_may_come_and_go_from_batch_to_batch(folder, kind, options):
    """Tokens of all views, those of a missing one masked; the others are what they are without company."""
    policy = small_policy(kind, folder, sizes=dict.fromkeys(SIZES, (40, 60)), **options)
    batches = [small_batch(policy, 2, without=of) for of in ((), (LEFT,), (RIGHT, WRIST))]
    found = tapped_tokens(policy, batches)
    assert found.cameras == tuple(SIZES)
    inside_HW = found.valid_FVHW[0, 0]
    assert 0 < inside_HW.float().mean() < 1
    there_FV = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]]).repeat_interleave(2, 0).bool()
    assert torch.equal(found.valid_FVHW, there_FV[:, :, None, None] & inside_HW)
    for frames, batch in zip(found.tokens_FVHWC.split(2), batches, strict=True):
        alone = tapped_tokens(policy, [batch])
        for view, name in enumerate(alone.cameras):
            assert torch.equal(frames[:, tuple(SIZES).index(name)], alone.tokens_FVHWC[:, view])


def test_samples_without_a_camera_are_masked(folder):
    policy = small_policy("smolvla", folder)
    there = torch.tensor([True, False, True])
    found = tapped_tokens(policy, [small_batch(policy) | {f"{RIGHT}_padding_mask": there}])
    assert torch.equal(found.valid_FVHW[:, 1].flatten(1).any(1), there)
    assert found.valid_FVHW[:, 0].flatten(1).any(1).all()


def test_batches_with_different_grids_are_an_error(folder):
    policy = small_policy("eo1", folder)
    other = small_policy("eo1", folder, sizes=dict.fromkeys(CAMERAS, (80, 30)))
    with pytest.raises(ProbeError, match="different grids of tokens"):
        tapped_tokens(policy, [small_batch(policy, 1), small_batch(other, 1)])


class Padding(TinyVLA):
    """A host that is no LeRobot policy and pads its images."""

    def spatial_forcing_host(self):
        host = super().spatial_forcing_host()
        return replace(host, layout=replace(host.layout, fit="pad"))

    def forward(self, batch):
        return super().forward(*batch)


def test_hosts_that_pad_must_be_told_the_size_of_their_images():
    model = Padding(views=2, image_size=56, width=16, depth=3, heads=2)
    batch = (torch.rand(2, 2, 3, 56, 56), torch.ones(2, 12).long(), torch.zeros(2, 4))
    with pytest.raises(ProbeError, match=r"TinyVLA pads.*image_hw=\(height, width\)"):
        tapped_tokens(model, [batch])
    wide = tapped_tokens(model, [batch], image_hw=(20, 40))
    layout = Layout(2, 4, 4, "pad")
    assert torch.equal(wide.valid_FVHW, layout.valid_mask(20, 40).expand(2, 2, -1, -1))
    each = tapped_tokens(model, [batch], image_hw=[(20, 40), (40, 20)])
    assert torch.equal(each.valid_FVHW[:, 1], layout.valid_mask(40, 20).expand(2, -1, -1))
    with pytest.raises(ProbeError, match="3 views for a host with tokens for 2"):
        tapped_tokens(model, [batch], image_hw=[(20, 40)] * 3)


# ---- laws --------------------------------------------------------------------------------------------------

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
