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
from painted_depth import NEAR, SPAN, TEST, TRAIN, K, errors, painted, scene
from small_policies import CAMERAS, LEFT, PICTURE, PROMPTED, SIZES, small_batch, small_policy
from small_prompted import prompted, tracked_crops
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.probe import VisualTokens, tapped_tokens

STRIDE = 32  # of the convolutions of ACT and X-VLA


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
    if kind == "groot" and "training" in how:  # what test_policy_prompts_images.py found to be those pixels
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
