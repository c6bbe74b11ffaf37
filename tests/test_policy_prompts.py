"""Policies whose visual tokens stand where the prompt has them, at small size: places, images, crops.

Shapes: B batch, V views, n tokens of a view, N of all views, L sequence, H W pixels, P patches, K values of a
patch.
"""

import copy
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_dataset import make_dataset
from small_policies import CAMERAS, PROMPTED, SMALL, small_batch, small_config, small_parts, small_policy
from small_prompted import prompted, tracked_crops
from torch import Tensor, nn

from spatial_forcing import patches
from spatial_forcing.cache.extract import extract
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout, compose
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.hosts.prompted import PACKED_KEY, unpatched
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.hosts.small import WORDS
from spatial_forcing.patches.crops import crop_affine
from spatial_forcing.probe.tokens import tapped_tokens
from spatial_forcing.tap import Located, Tap, TapError
from spatial_forcing.teachers import load_teacher

LEFT, RIGHT = CAMERAS
GROOT_CROP = {"image_crop_size": [116, 116], "image_target_size": [128, 128]}
PLAIN = {"shortest_image_edge": None, "crop_fraction": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4, size=SMALL)


def raw_batch(size: int, seed: int = 0, image: tuple[int, int] = SMALL) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {key: torch.rand(size, 3, *image, generator=draw) for key in CAMERAS}
    batch["observation.state"] = torch.randn(size, 4, generator=draw)
    batch["action"] = torch.randn(size, 4, 4, generator=draw)
    return batch | {"action_is_pad": torch.zeros(size, 4, dtype=torch.bool)}


# ---- places ------------------------------------------------------------------------------------------------


def stream_and_places(policy, batch: dict) -> tuple[Tensor, Located]:
    """The stream that enters the first block, with fixed noise, and where its visual tokens are."""
    host = host_of(policy)
    seen: list[Tensor] = []
    reader = host.blocks[0].get_submodule(host.entry)
    handle = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    tap = Tap(host, 1)
    torch.manual_seed(0)
    with torch.no_grad(), tap.watch():
        policy.eval()(batch)
    located = tap.located
    assert located is not None
    tap.detach()
    handle.remove()
    return seen[0], located


def keep_in_place(policy) -> None:
    """Little attention, so that with random weights too a token changes most at its own place."""
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("o_proj", "attn.proj", "projection_layer")):
            module.weight.data *= 0.01


def centres(kind: str, located: Located) -> list[tuple[int, int]]:
    """The pixel of the data set's image at the centre of each cell."""
    layout = located.layout
    affine_23 = layout.affine_23(*SMALL)
    if kind == "groot":
        affine_23 = compose(crop_affine(SMALL, keeps_aspect=False, **GROOT_CROP, **PLAIN), affine_23)
    found = []
    for cell in range(layout.rows * layout.cols):
        row, col = divmod(cell, layout.cols)
        at = torch.tensor([(col + 0.5) / layout.cols, (row + 0.5) / layout.rows, 1.0])
        x, y = (affine_23 * at).sum(-1).tolist()
        found.append((int(y * SMALL[0]), int(x * SMALL[1])))
    return found


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("kind", PROMPTED)
def test_a_change_in_a_image_shows_in_the_token_that_covers_it(folder, kind, view):
    policy = small_policy(kind, folder)
    keep_in_place(policy)
    _, located = stream_and_places(policy, small_batch(policy, 1))
    pixels = centres(kind, located)
    # Every sample has another text: GR00T pads left, so that the same token is somewhere else.
    tasks = [" ".join(WORDS[: 1 + i % 5]) for i in range(len(pixels))]
    changes = []
    for seed in range(3):  # random images, to average out what they look like
        one = raw_batch(1, seed)
        raw = {key: value.repeat(len(pixels), *[1] * (value.ndim - 1)) for key, value in one.items()}
        before, places = stream_and_places(policy, prompted(policy.config, raw, tasks))
        changed = raw[CAMERAS[view]].clone()
        for sample, (y, x) in enumerate(pixels):
            box = changed[sample, :, max(0, y - 3) : y + 3, max(0, x - 3) : x + 3]
            box += 1 - 2 * box
        raw[CAMERAS[view]] = changed
        after, same = stream_and_places(policy, prompted(policy.config, raw, tasks))
        assert torch.equal(places.token_indices_BN, same.token_indices_BN)
        changes.append((after - before).norm(dim=-1))
    change_BL = torch.stack(changes).sum(0)
    assert (len({tuple(row) for row in places.token_indices_BN.tolist()}) > 1) == (kind == "groot")
    change_BVn = change_BL.gather(1, places.token_indices_BN).unflatten(1, (places.layout.views, -1))
    assert change_BVn[:, view].argmax(-1).tolist() == list(range(len(pixels)))
    assert (change_BVn[:, 1 - view] == 0).all(), "a token of the other view changed"
    elsewhere = torch.ones_like(change_BL, dtype=torch.bool).scatter(1, places.token_indices_BN, False)
    assert (change_BL[elsewhere] == 0).all(), "text, state or actions changed"


@pytest.mark.parametrize("kind", PROMPTED)
def test_the_tap_reads_what_transformers_calls_the_hidden_state(folder, kind):
    policy = small_policy(kind, folder).eval()
    batch = small_batch(policy, tasks=["move", "move the hand to ball", "the puck"])
    host = host_of(policy)
    tap, states, prompts = Tap(host, 3), [], []
    handles = [
        host.blocks[2].register_forward_hook(lambda module, args, output: states.append(output)),
        host.prompt.register_forward_pre_hook(
            lambda module, args, kwargs: prompts.append(kwargs["input_ids"]), with_kwargs=True
        ),
    ]
    with torch.no_grad(), tap.watch():
        policy(batch)
    for handle in handles:
        handle.remove()
    image_BL = prompts[0] == host.prompt.config.image_token_id
    assert torch.equal(tap.visual_BND().flatten(0, 1), states[0][image_BL])


@pytest.mark.parametrize("kind", PROMPTED)
def test_the_probe_reads_the_tokens_of_a_rollout(folder, kind, request):
    if kind == "groot":
        request.getfixturevalue("tracked")
    policy = small_policy(kind, folder)
    batches = [small_batch(policy, 2, seed=seed) for seed in (1, 2)]
    rows_cols = {"groot": (4, 4), "eo1": (2, 3), "evo1": (3, 3)}[kind]
    tokens_FVHWC = tapped_tokens(policy, batches).tokens_FVHWC
    assert tokens_FVHWC.shape == (4, 2, *rows_cols, 32)
    assert not torch.equal(tokens_FVHWC[0], tokens_FVHWC[2])


@pytest.mark.parametrize("kind", PROMPTED)
def test_a_copy_of_the_policy_leaves_the_last_prompt_behind(folder, kind):
    policy = small_policy(kind, folder, forcing={})
    policy(small_batch(policy))
    tap = policy.forcing.tap
    assert tap.located is not None
    assert tap.__getstate__()["located"] is None
    policy.forcing.detach()
    assert tap.located is None


def located_by(policy, ids_BL: Tensor, grid: list[list[int]]) -> Located:
    return host_of(policy).locate({"input_ids": ids_BL, "image_grid_thw": torch.tensor(grid)})


@pytest.mark.parametrize("kind", ["groot", "eo1"])
def test_prompts_that_do_not_fit_their_images_are_errors(folder, kind):
    policy = small_policy(kind, folder)
    token = host_of(policy).prompt.config.image_token_id
    ids_BL = torch.full((2, 9), token)
    ids_BL[:, -1] = 0
    assert located_by(policy, ids_BL, [[1, 4, 4]] * 4).layout.tokens == 8
    with pytest.raises(SpatialForcingError, match=r"different grids of patches \(4 x 2, 4 x 4\).*one size"):
        located_by(policy, ids_BL, [[1, 4, 4], [1, 4, 2]])
    with pytest.raises(SpatialForcingError, match="3 images for 2 samples"):
        located_by(policy, ids_BL, [[1, 4, 4]] * 3)
    ids_BL[0, 5:] = 0
    with pytest.raises(TapError, match=r"5 to 8 image tokens, expected 8 = 2 views x 2 x 2.*cut off"):
        located_by(policy, ids_BL, [[1, 4, 4]] * 4)


def test_what_the_caller_says_of_the_tokens_goes_before_the_prompt(folder):
    policy = small_policy("eo1", folder)
    tap = Tap(host_of(policy, layout=Layout(1, 1, 2), visual=slice(3, 5)), 1)
    with tap.watch():
        policy(small_batch(policy))
    assert tap.layout == Layout(1, 1, 2)
    assert torch.equal(tap.visual_BND(), tap.hidden_BLD[:, 3:5])


def test_without_the_prompt_the_tap_says_so(folder):
    policy = small_policy("eo1", folder)
    tap = Tap(replace(host_of(policy), prompt=nn.Identity()), 1)
    with tap.watch():
        policy(small_batch(policy))
    with pytest.raises(TapError, match="did not see the prompt"):
        tap.visual_BND()


def test_cameras_of_different_sizes_have_no_common_grid(folder):
    policy = small_policy("eo1", folder, forcing={}, sizes={LEFT: (40, 60), RIGHT: (80, 30)})
    with pytest.raises(SpatialForcingError, match=r"different grids of patches.*Give the cameras"):
        policy(small_batch(policy))


# ---- what trains -------------------------------------------------------------------------------------------

REACHED = [
    ({"tune_llm": True}, 3),
    ({"tune_llm": False, "tune_visual": True}, 3),
    ({"tune_llm": False, "tune_top_llm_layers": 3}, 3),
    ({"tune_llm": False, "tune_top_llm_layers": 2}, 4),
    ({"tune_llm": False, "tune_top_llm_layers": 1}, 4),
]


@pytest.mark.parametrize(("options", "layer"), REACHED)
def test_the_default_tap_of_groot_is_where_a_gradient_comes_from(folder, options, layer):
    policy = small_policy("groot", folder, forcing={}, **options)
    assert policy.forcing.tap.layer == layer
    _, logs = policy(small_batch(policy))
    assert logs["gradient_ratio"] > 0
    policy.zero_grad()
    policy.forcing(torch.rand(3, 2, 3, 128, 128)).backward()
    assert any(p.grad is not None and p.grad.any() for p in policy._groot_model.parameters())


def test_a_tap_before_what_trains_in_groot_stops_with_an_error(folder):
    forcing = {"site": "blocks.2"}
    policy = small_policy("groot", folder, forcing=forcing, tune_llm=False, tune_top_llm_layers=2)
    with pytest.raises(TapError, match=r"after block 2.*tune_top_llm_layers"):
        policy(small_batch(policy))


@pytest.mark.parametrize("kind", ["groot", "eo1"])
def test_the_lora_of_the_advice_trains_the_blocks_before_the_tap(folder, kind):
    from peft import LoraConfig, inject_adapter_in_model

    (pattern,) = re.findall(r"target_modules='(.*)'", RECORDS[kind].unfreeze)
    policy = small_policy(kind, folder, forcing={}, **{"tune_llm": False} if kind == "groot" else {})
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.startswith("forcing."))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=pattern), policy)
    assert policy.forcing.tap.layer == 3
    policy(small_batch(policy))
    policy.forcing(torch.rand(3, 2, 3, 128, 128)).backward()
    reached = [name for name, p in policy.named_parameters() if "lora_B" in name and p.grad is not None]
    layers = [name.split(".layers.")[1].partition(".")[0] for name in reached]
    assert layers == ["0", "0", "1", "1", "2", "2"]
    assert all(policy.get_parameter(name).grad.any() for name in reached)


# ---- images ----------------------------------------------------------------------------------------------


@given(
    views=st.integers(1, 3),
    batch=st.integers(1, 3),
    rows=st.integers(2, 4),
    cols=st.integers(2, 5),
    merge=st.sampled_from([1, 2]),
)
def test_unpatching_is_the_inverse_of_the_image_processor(views, batch, rows, cols, merge):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    patch, side = 4, 4 * merge
    size = {"shortest_edge": 1, "longest_edge": 10**9}
    processor = Qwen2VLImageProcessor(patch_size=patch, merge_size=merge, size=size)
    shown = torch.randint(0, 256, (batch * views, 3, rows * side, cols * side), dtype=torch.uint8)
    made = processor(list(shown), return_tensors="pt", do_normalize=False)
    grid = views, *made["image_grid_thw"][0, 1:].tolist()
    again_BV3HW = unpatched(made["pixel_values"], grid, patch, merge)
    torch.testing.assert_close(again_BV3HW.flatten(0, 1) * 255, shown.float(), atol=1e-3, rtol=0)


HOW = [
    {"use_albumentations": False},
    {"use_albumentations": False, "letter_box_transform": True, "shortest_image_edge": 140},
    {"use_albumentations": True, "training": True},
    {"use_albumentations": True, "training": True, "letter_box_transform": True, "crop_fraction": 0.6},
]


def transformed(image_3HW: Tensor, how: dict[str, Any], position: Any) -> Tensor:
    """An image of the data set as LeRobot transforms it, (3, H, W) in [0, 1]."""
    from lerobot.policies.groot import processor_groot as groot

    options = GROOT_CROP | PLAIN | how
    kept = options.pop("use_albumentations")
    options.pop("training", None)
    pixels = (image_3HW.clamp(0, 1) * 255).to(torch.uint8)
    if not kept:
        return groot._transform_n1_7_image_for_vlm_torch(pixels, **options) / 255
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    image = groot._transform_n1_7_image_for_vlm_albumentations(image, crop_position=position, **options)
    return torch.from_numpy(image).permute(2, 0, 1) / 255


@pytest.mark.parametrize("how", HOW)
def test_the_teacher_gets_the_pixels_that_groot_sees(folder, how):
    policy = small_policy("groot", folder)
    raw = raw_batch(2, image=(128, 192))  # whose resized copy is a multiple of 32 pixels per side
    random.seed(5)
    batch = prompted(policy.config, raw, **how)
    random.seed(5)
    positions = [(random.random(), random.random()) if how.get("training") else None for _ in range(2)]
    shown = images_of(policy, batch)
    assert (len(shown.images), shown.views, shown.present_BV) == (2, 2, None)
    for key, images in zip(CAMERAS, shown.images, strict=True):
        for sample, position in enumerate(positions):
            expected = transformed(raw[key][sample], how, position)
            torch.testing.assert_close(images[sample], expected, atol=1e-5, rtol=0)


def test_batches_without_images_are_errors(folder):
    policy = small_policy("groot", folder, forcing={})
    with pytest.raises(
        SpatialForcingError, match=r"no input_ids, pixel_values.*preprocessor of groot.*It has"
    ):
        policy(small_batch(policy, without=CAMERAS))


# ---- stored features ---------------------------------------------------------------------------------------


def ramp(height: int, width: int, axis: int) -> Tensor:
    """An image (3, H, W): how far along an axis a pixel is, 0.25 to 0.75, and 1 to tell it from padding."""
    at = (torch.arange((width, height)[axis]) + 0.5) / (width, height)[axis]
    at = at[None, :].expand(height, width) if axis == 0 else at[:, None].expand(height, width)
    return torch.stack([0.25 + 0.5 * at, torch.ones_like(at), torch.ones_like(at)])


@pytest.mark.parametrize("size", [(120, 180), (180, 120), (150, 150)])
@pytest.mark.parametrize("how", HOW)
def test_the_affine_of_a_crop_is_what_it_does_to_a_ramp(how, size):
    position = (0.1, 0.8) if how.get("training") else None
    options = {key: value for key, value in how.items() if key not in ("use_albumentations", "training")}
    affine_23 = crop_affine(
        size,
        keeps_aspect=how["use_albumentations"],
        crop_position=position,
        **GROOT_CROP | PLAIN | options,
    )
    for axis in (0, 1):
        moved_HW, full_HW, _ = transformed(ramp(*size, axis), how, position)
        H, W = moved_HW.shape
        y_H, x_W = (torch.arange(H) + 0.5) / H, (torch.arange(W) + 0.5) / W
        scale_x, scale_y, shift = affine_23[axis]
        says_HW = scale_x * x_W + scale_y * y_H[:, None] + shift
        inside = full_HW > 0.999  # neither padding nor mixed with it
        assert inside.float().mean() > 0.4
        torch.testing.assert_close((moved_HW[inside] - 0.25) * 2, says_HW[inside], atol=0.02, rtol=0)


@pytest.fixture
def tracked(folder):
    """GR00T's preprocessor says what it cropped, until the test ends."""
    small_config("groot", folder)  # skips where GR00T cannot be built
    with tracked_crops() as groot:
        yield groot


@pytest.mark.usefixtures("tracked")
def test_tracking_changes_nothing_and_says_what_was_cropped(folder):
    policy = small_policy("groot", folder)
    raw = raw_batch(3, image=(120, 180))
    how = {"use_albumentations": True, "training": True}
    random.seed(5)
    batch = prompted(policy.config, raw, **how)
    packed = batch.pop(PACKED_KEY)
    patches.undo_all()
    random.seed(5)
    plain = prompted(policy.config, raw, **how)
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[key], value) for key, value in plain.items() if isinstance(value, Tensor))
    assert packed.cameras == list(CAMERAS)
    random.seed(5)
    for sample in range(3):
        position = random.random(), random.random()
        expected = crop_affine((120, 180), keeps_aspect=True, crop_position=position, **GROOT_CROP, **PLAIN)
        assert torch.equal(packed.affine_BV23[sample], expected.expand(2, 2, 3))


def cached_policy(folder: Path, cache: Path, **options: Any) -> Any:
    return small_policy("groot", folder, forcing={"cache": str(cache)}, **options)


def test_stored_features_of_groot_move_with_the_crop_and_the_cameras(folder, dataset, tmp_path, tracked):
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = cached_policy(folder, cache)
    raw = raw_batch(2) | {"index": torch.tensor([1, 6])}
    batch = prompted(policy.config, raw)
    loss, logs = policy(batch)
    assert torch.isfinite(loss)
    assert logs["valid_fraction"] == 1
    source = policy.feature_source

    def packed(*cameras: str) -> dict[str, Any]:
        return batch | {PACKED_KEY: batch[PACKED_KEY]._replace(cameras=list(cameras))}

    shown = source.shown(policy, batch, None)
    crop_23 = crop_affine(SMALL, keeps_aspect=False, **GROOT_CROP, **PLAIN)
    assert torch.equal(source.affine_BV23(batch, shown), crop_23.expand(2, 2, 2, 3))
    stored = source.store.read(raw["index"])
    assert torch.equal(source(batch, shown).tokens_BVHWC, stored.tokens_BVHWC)
    # The same batch, its cameras packed in the other order.
    turned = packed(RIGHT, LEFT)
    shown = source.shown(policy, turned, None)
    assert torch.equal(source(turned, shown).tokens_BVHWC, stored.tokens_BVHWC.flip(1))
    another = packed(LEFT, "front")
    with pytest.raises(SpatialForcingError, match=r"shows front, of which nothing is stored.*left"):
        source(another, source.shown(policy, another, None))


def test_image_transforms_come_before_the_crop(folder, dataset, tmp_path, tracked):
    from spatial_forcing.patches.transforms import AFFINE_KEY

    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = cached_policy(folder, cache)
    moved = torch.tensor([[0.5, 0.0, 0.1], [0.0, 0.7, 0.2]]).expand(2, 2, 3)
    raw = raw_batch(2) | {"index": torch.tensor([1, 6]), AFFINE_KEY + RIGHT: moved}
    batch, source = prompted(policy.config, raw), policy.feature_source
    affine_BV23 = source.affine_BV23(batch, source.shown(policy, batch, None))
    crop_23 = crop_affine(SMALL, keeps_aspect=False, **GROOT_CROP, **PLAIN)
    torch.testing.assert_close(affine_BV23[:, 0], crop_23.expand(2, 2, 3))
    torch.testing.assert_close(affine_BV23[:, 1], compose(moved, crop_23))


def test_stored_features_without_the_crop_are_refused(folder, dataset, tmp_path, tracked):
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = cached_policy(folder, cache)
    batch = prompted(policy.config, raw_batch(2) | {"index": torch.tensor([1, 6])})
    del batch[PACKED_KEY]
    with pytest.raises(SpatialForcingError, match=r"images the policy's preprocessor packed.*teacher online"):
        policy(batch)


@pytest.mark.usefixtures("tracked")
def test_the_second_step_alone_does_what_it_does_without_the_patch(folder):
    from lerobot.lerobot_types import TransitionKey
    from lerobot.processor.converters import batch_to_transition

    pack, encode = RECORDS["groot"].small.steps(small_policy("groot", folder).config)
    packed = pack(batch_to_transition(raw_batch(2) | {"task": ["move", "move"]}))
    del packed[TransitionKey.COMPLEMENTARY_DATA][PACKED_KEY]
    tracked_alone = encode(copy.deepcopy(packed))[TransitionKey.COMPLEMENTARY_DATA]
    patches.undo_all()
    plain = encode(packed)[TransitionKey.COMPLEMENTARY_DATA]
    assert tracked_alone.keys() == plain.keys()
    assert all(torch.equal(tracked_alone[key], plain[key]) for key in ("input_ids", "pixel_values"))


@pytest.mark.parametrize("kind", PROMPTED)
def test_training_with_stored_features(folder, dataset, tmp_path, kind, request):
    from spatial_forcing.train import read_metrics, train_config, train_or_continue

    if kind == "groot":
        request.getfixturevalue("tracked")
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    with small_parts(kind):
        config = small_config(kind, folder, forcing={"cache": str(cache)})
        run = train_config(
            config, dataset, tmp_path / "run", steps=2, batch_size=2, seed=3, save_every=2, log_every=1
        )
        rows = read_metrics(train_or_continue(run))
    assert [0 < row["align_loss"] < 2 for row in rows] == [True, True]
    assert [row["valid_fraction"] for row in rows] == [1, 1]
