"""LeRobot's real policies as hosts, at small size: the right images, masks and gradients, clear errors.

Shapes: B batch, V views, h w rows and columns of the host's grid, N = V*h*w visual tokens.
"""

import functools
import logging
from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from small_policies import CAMERAS, PICTURE, PROMPTED, small_batch, small_config, small_parts, small_policy
from torch import Tensor

from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.cache.store import CacheError
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.tap import TapError
from spatial_forcing.teachers import load_teacher
from spatial_forcing.teachers.base import stack_views

KINDS = tuple(PICTURE)
# test_policy_prompts.py has more of those that take their images in a prompt.
UNPROMPTED = tuple(kind for kind in KINDS if kind not in PROMPTED)
LEFT, RIGHT = CAMERAS
WRIST = "observation.images.wrist"
THREE = dict.fromkeys((LEFT, RIGHT, WRIST), (40, 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4, size=(40, 60))


# ---- the teacher sees what the host sees -------------------------------------------------------------------


def preprocessed(kind: str, folder: Path, dataset: Path, **options):
    """(policy, raw batch, the same batch through the policy's own preprocessor)."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    from lerobot.policies import make_policy, make_pre_post_processors

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    with small_parts(kind):
        config = small_config(kind, folder, forcing={}, **options)
        policy = make_policy(config, ds_meta=meta).train()
        if kind == "pi0_fast":  # its preprocessor wants the action tokenizer of the Hub
            config = small_config("pi0", folder, forcing={}, input_features=config.input_features)
            config.output_features = policy.config.output_features
        preprocess, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
        times = {"action": [i / 10 for i in range(policy.config.chunk_size)]}
        frames = LeRobotDataset("local/small", root=dataset, delta_timestamps=times)
        raw = next(iter(torch.utils.data.DataLoader(frames, batch_size=3)))
        return policy, raw, preprocess(dict(raw))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if RECORDS[kind].images is None])
def test_the_teacher_gets_the_pixels_of_the_data_set(folder, dataset, kind):
    policy, raw, batch = preprocessed(kind, folder, dataset)
    shown = images_of(policy, batch, policy._image_stats)
    assert (len(shown.images), shown.views, shown.sizes) == (2, 2, [(40, 60)] * 2)
    mapping = policy.config.normalization_mapping
    for key, image in zip(CAMERAS, shown.images, strict=True):
        torch.testing.assert_close(image, raw[key], atol=1e-5, rtol=0)
        normalises = RECORDS[kind].pixels == "imagenet" or "IDENTITY" not in str(mapping["VISUAL"])
        assert normalises == (not torch.allclose(batch[key], raw[key]))
    stacked_BV3HW = stack_views(shown.images)
    torch.testing.assert_close(
        stacked_BV3HW, torch.stack([raw[key] for key in CAMERAS], 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("mode", ["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"])
def test_every_normalisation_of_images_is_undone(folder, dataset, mode):
    from lerobot.configs.types import NormalizationMode

    mapping = {"VISUAL": NormalizationMode[mode], "STATE": NormalizationMode.IDENTITY}
    policy, raw, batch = preprocessed("act", folder, dataset, normalization_mapping=mapping)
    shown = images_of(policy, batch, policy._image_stats)
    for key, image in zip(CAMERAS, shown.images, strict=True):
        torch.testing.assert_close(image, raw[key], atol=1e-5, rtol=0)


def test_normalisations_that_cannot_be_undone_are_errors(folder, dataset):
    policy, _, batch = preprocessed("act", folder, dataset)
    with pytest.raises(SpatialForcingError, match=rf"statistics of {LEFT}.*missing.*there are: none"):
        images_of(policy, batch, None)
    stats = {key: {"mean": value["mean"]} for key, value in policy._image_stats.items()}
    with pytest.raises(SpatialForcingError, match=rf"statistics of {LEFT}.*missing"):
        images_of(policy, batch, stats)
    policy.config.normalization_mapping = {"VISUAL": "Z_SCORE"}
    with pytest.raises(SpatialForcingError, match=r"with Z_SCORE.*Known: IDENTITY, MEAN_STD"):
        images_of(policy, batch, policy._image_stats)


def test_of_a_history_of_images_the_last_is_seen(folder):
    policy = small_policy("smolvla", folder)
    batch = small_batch(policy)
    older = batch | {key: torch.stack([torch.rand_like(batch[key]), batch[key]], dim=1) for key in CAMERAS}
    for now, last in zip(images_of(policy, batch).images, images_of(policy, older).images, strict=True):
        assert torch.equal(now, last)


# ---- missing cameras, masks, sizes -------------------------------------------------------------------------


def aligned(policy, batch: dict):
    """(loss, valid_BVhw, |gradient of the alignment| of each visual token, same shape) of one forward."""
    loss, logs = policy(batch)
    shown = policy.feature_source.shown(policy, batch, None)
    how = {"image_hw": shown.sizes, "present_BV": shown.present_BV, "views": shown.view_indices}
    images = policy.feature_source(batch, shown)
    _, valid_BN = policy.forcing.target(images, **how)
    tap = policy.forcing.tap
    (gradient,) = torch.autograd.grad(policy.forcing(images, **how), tap.hidden_BLD)
    shape = (tap.layout.views, tap.layout.rows, tap.layout.cols)
    gradient_BN = tap.visual_of(gradient).norm(dim=-1)
    assert torch.isfinite(loss)
    assert logs["valid_fraction"] == pytest.approx(valid_BN.float().mean().item())
    return loss, valid_BN.unflatten(1, shape), gradient_BN.unflatten(1, shape)


MISSING = [
    # kind, options, cameras missing, views with tokens
    ("smolvla", {"empty_cameras": 0}, (LEFT,), 2),
    ("smolvla", {"empty_cameras": 0}, (LEFT, WRIST), 1),
    ("smolvla", {"empty_cameras": 1}, (RIGHT,), 3),
    ("smolvla", {"empty_cameras": 1}, (), 4),
    ("pi0", {}, (RIGHT,), 3),
    ("pi0", {}, (LEFT, RIGHT), 3),
    ("pi05", {"empty_cameras": 1}, (), 4),
    ("xvla", {"resize_imgs_with_padding": (64, 64)}, (LEFT,), 3),
    ("evo1", {"max_views": 5, "empty_cameras": 1}, (), 5),
    ("evo1", {"max_views": 3}, (), 3),
]


@pytest.mark.parametrize(("kind", "options", "without", "views"), MISSING)
def test_missing_cameras_have_no_target_and_no_gradient(folder, kind, options, without, views):
    policy = small_policy(kind, folder, forcing={}, sizes=THREE, **options)
    there = [key for key in THREE if key not in without]
    loss, valid_BVhw, gradient_BVhw = aligned(policy, small_batch(policy, without=without))
    assert policy.forcing.host.layout.views == views
    inside_hw = policy.forcing.host.layout.valid_mask(40, 60)
    assert (valid_BVhw[:, : len(there)] == inside_hw).all()
    assert not valid_BVhw[:, len(there) :].any()
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_cameras_may_come_and_go_from_batch_to_batch(folder):
    policy = small_policy("smolvla", folder, forcing={})
    for without, views in (((), 2), ((RIGHT,), 1), ((), 2)):
        _, valid_BVhw, _ = aligned(policy, small_batch(policy, without=without))
        assert valid_BVhw.shape[1] == views


def test_padding_masks_of_single_samples(folder):
    policy = small_policy("smolvla", folder, forcing={})
    mask = torch.tensor([True, False, True])
    batch = small_batch(policy) | {f"{RIGHT}_padding_mask": mask}
    _, valid_BVhw, gradient_BVhw = aligned(policy, batch)
    inside_hw = policy.forcing.host.layout.valid_mask(40, 60)
    assert (valid_BVhw[:, 0] == inside_hw).all()
    assert torch.equal(valid_BVhw[:, 1], mask[:, None, None] & inside_hw)
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_cameras_of_different_sizes_are_padded_each_in_its_way(folder, kind):
    policy = small_policy(kind, folder, forcing={}, sizes={LEFT: (40, 60), RIGHT: (64, 20)})
    _, valid_BVhw, _ = aligned(policy, small_batch(policy))
    layout = policy.forcing.host.layout
    assert (valid_BVhw[:, 0] == layout.valid_mask(40, 60)).all()
    assert (valid_BVhw[:, 1] == layout.valid_mask(64, 20)).all()
    assert not torch.equal(valid_BVhw[0, 0], valid_BVhw[0, 1])


@pytest.mark.parametrize("kind", ["act", "xvla"])
def test_hosts_that_do_not_resize_want_cameras_of_one_size(folder, kind):
    with pytest.raises(SpatialForcingError, match="different sizes"):
        small_policy(kind, folder, forcing={}, sizes={LEFT: (40, 60), RIGHT: (64, 20)})


def test_smolvla_wants_square_images(folder):
    # Its connector cuts the tokens as if they were a square: 4 x 16 patches would be shuffled as 8 x 8.
    with pytest.raises(SpatialForcingError, match="square"):
        small_policy("smolvla", folder, forcing={}, resize_imgs_with_padding=(64, 16))


# ---- what trains -------------------------------------------------------------------------------------------

FROZEN = [
    ("smolvla", {"train_expert_only": True}, r"--policy\.train_expert_only=false.*LoRA.*--peft"),
    ("pi0", {"train_expert_only": True}, r"--policy\.train_expert_only=false.*LoRA.*--peft"),
    (
        "xvla",
        {
            "train_policy_transformer": False,
            "freeze_vision_encoder": True,
            "freeze_language_encoder": True,
        },
        r"--policy\.train_policy_transformer=true",
    ),
    ("evo1", {"training_stage": "stage1"}, r"--policy\.training_stage=stage2"),
    ("groot", {"tune_llm": False}, r"--policy\.tune_top_llm_layers=4.*tune_llm=true.*LoRA.*--peft"),
]


@pytest.mark.parametrize(("kind", "options", "says"), FROZEN)
def test_frozen_hosts_stop_before_the_first_step(folder, kind, options, says):
    policy = small_policy(kind, folder, forcing={}, **options)
    if kind == "xvla":  # the projection of its vision tower has no flag of its own
        policy.model.vlm.requires_grad_(False)
    with pytest.raises(TapError, match=says):
        policy(small_batch(policy))


def test_smolvlas_own_defaults_are_frozen_though_the_state_token_trains(folder):
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    assert SmolVLAConfig().train_expert_only, "LeRobot's default has changed: the advice must, too"
    policy = small_policy("smolvla", folder, train_expert_only=True)
    host = host_of(policy)
    seen: list[Tensor] = []
    host.reader(3).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    policy(small_batch(policy))
    (gradient,) = torch.autograd.grad(seen[0][:, -1].sum(), policy.model.state_proj.weight, retain_graph=True)
    assert gradient.abs().sum() > 0, "the tapped stream carries a gradient ..."
    (gradient,) = torch.autograd.grad(
        host.visual(seen[0]).sum(), policy.model.state_proj.weight, allow_unused=True
    )
    assert gradient is None or (gradient == 0).all(), "... but not its visual tokens"


@pytest.mark.parametrize(("kind", "options", "says"), FROZEN)
def test_weight_zero_trains_frozen_hosts(folder, kind, options, says):
    policy = small_policy(kind, folder, forcing={"loss_weight": 0.0}, **options)
    loss, logs = policy(small_batch(policy))
    loss.backward()
    assert logs["align_loss"] > 0
    assert "gradient_ratio" not in logs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretrained", [False, True])
def test_training_a_whole_pretrained_language_model_is_warned_of_once(folder, caplog, kind, pretrained):
    policy = small_policy(kind, folder, forcing={})
    if pretrained:
        policy.config.pretrained_path = str(folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            policy(small_batch(policy))
    warnings = [r for r in caplog.records if "full fine-tuning" in r.getMessage()]
    record = RECORDS[kind]
    assert len(warnings) == (record.language_model and record.pretrained(policy.config))


def test_which_policies_have_a_language_model_and_which_load_its_weights_themselves(folder):
    without = {kind for kind in KINDS if not RECORDS[kind].language_model}
    assert {"act", "xvla"} <= without
    assert not without & {"smolvla", "pi0", "pi05", "pi0_fast", "groot", "eo1", "evo1"}
    for kind, loads in (("groot", True), ("eo1", True), ("evo1", True), ("pi0", False), ("smolvla", False)):
        assert RECORDS[kind].pretrained(small_config(kind, folder)) == loads


def test_language_model_weights_that_smolvla_loads_itself_are_pretrained():
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    pretrained = RECORDS["smolvla"].pretrained
    assert not pretrained(SmolVLAConfig())
    assert pretrained(SmolVLAConfig(load_vlm_weights=True))


def test_lora_on_the_language_model_is_not_warned_of(folder, caplog):
    from peft import LoraConfig, inject_adapter_in_model

    policy = small_policy("smolvla", folder, forcing={}, train_expert_only=True)
    lora = LoraConfig(r=2, target_modules=r".*\.text_model\.layers\..*\.(q|v)_proj")
    inject_adapter_in_model(lora, policy.model)
    with caplog.at_level(logging.WARNING):
        policy(small_batch(policy))
    assert not [r for r in caplog.records if "full fine-tuning" in r.getMessage()]


# ---- the host does not notice ------------------------------------------------------------------------------


def step(policy, batch: dict) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(loss, gradients of the host, state of the random numbers after it)."""
    torch.manual_seed(11)
    loss, _ = policy(batch)
    loss.backward()
    named = {name: p.grad for name, p in policy.named_parameters() if not name.startswith("forcing.")}
    return loss.detach(), named, torch.get_rng_state()


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_the_plain_policy_bit_for_bit(folder, kind):
    plain = small_policy(kind, folder)
    forced = small_policy(kind, folder, forcing={"loss_weight": 0.0})
    loss, gradients, after = step(plain, small_batch(plain))
    same_loss, same_gradients, same_after = step(forced, small_batch(forced))
    assert torch.equal(loss, same_loss)
    assert torch.equal(after, same_after), "forcing drew random numbers of the host"
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        same = same_gradients[name]
        # A zero where the host has none is what multiplying by the weight leaves.
        assert (same is None or not same.any()) if gradient is None else torch.equal(gradient, same), name


@pytest.mark.parametrize("kind", KINDS)
def test_forcing_changes_neither_the_action_loss_nor_what_the_policy_does(folder, kind):
    plain, forced = small_policy(kind, folder), small_policy(kind, folder, forcing={"loss_weight": 3.0})
    batch = small_batch(plain)
    losses = []
    for policy in (plain, forced):
        torch.manual_seed(5)
        losses.append(policy(batch))
    assert losses[0][0].item() == losses[1][1]["action_loss"]
    outputs = []
    for policy in (plain.eval(), forced.eval()):
        torch.manual_seed(5)
        with torch.no_grad():
            loss, logs = policy(dict(batch))
        assert "align_loss" not in logs
        # pi0-FAST decodes words with its tokenizer, of which the small one knows nothing.
        actions = loss if kind == "pi0_fast" else policy.predict_action_chunk(dict(batch))
        outputs.append((loss, actions))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


# ---- bad input ---------------------------------------------------------------------------------------------


@functools.cache
def deepest_tap(kind: str, folder: Path) -> int:
    """Four blocks, the last of which can be read where a norm follows it (X-VLA's reads the actions only)."""
    host = host_of(small_policy(kind, folder))
    return len(host.blocks) - (host.final_norm is None)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_beyond_the_hosts_layers(folder, kind):
    deepest = deepest_tap(kind, folder)
    with pytest.raises(TapError, match=rf"has no site .* It has blocks.0 to blocks.{deepest}"):
        small_policy(kind, folder, forcing={"site": f"blocks.{deepest + 1}"})


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_depth_can_be_tapped(folder, kind, layer):
    layer = min(layer, deepest_tap(kind, folder))
    policy = small_policy(kind, folder, forcing={"site": f"blocks.{layer}"})
    _, valid_BVhw, gradient_BVhw = aligned(policy, small_batch(policy))
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)


def test_unknown_types_are_answered_with_the_known_ones():
    from lerobot.policies.factory import get_policy_class

    with pytest.raises(ValueError, match=r"sf_nothing.*sf_smolvla"):
        get_policy_class("sf_nothing")


@pytest.mark.parametrize("kind", UNPROMPTED)
def test_batches_without_any_camera(folder, kind):
    policy = small_policy(kind, folder, forcing={})
    with pytest.raises(SpatialForcingError, match=rf"none of the cameras.*{LEFT}.*It has: action"):
        policy(small_batch(policy, without=CAMERAS))


def test_caches_of_something_else_are_refused(folder, dataset, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    teacher = load_teacher("untrained-tiny")
    how = Extraction(cameras=[RIGHT, LEFT])
    turned = extract(dataset, teacher, "untrained-tiny", tmp_path / "turned", how)
    other = make_dataset(tmp_path / "other", episodes=1, frames=3, size=(40, 60), seed=5)
    elsewhere = extract(other, teacher, "untrained-tiny", tmp_path / "elsewhere")
    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    for cache, name, says in (
        (turned, "untrained-tiny", "cameras"),
        (elsewhere, "untrained-tiny", "of data set"),
        (elsewhere, "pixels", "is of teacher"),
    ):
        config = small_config("smolvla", folder, forcing={"cache": str(cache), "teacher": name})
        with pytest.raises(CacheError, match=says):
            make_policy(config, ds_meta=meta)


def test_stored_features_need_to_know_their_frames(folder, dataset, tmp_path):
    cache = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    policy = small_policy("smolvla", folder, forcing={"cache": str(cache)})
    batch = small_batch(policy)
    with pytest.raises(SpatialForcingError, match="frame `index`"):
        policy(batch)
    loss, logs = policy(batch | {"index": torch.tensor([0, 3, 7])})
    assert torch.isfinite(loss)
    assert logs["valid_fraction"] == 0.75
