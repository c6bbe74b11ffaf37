"""Laws of the alignment loss: it equals the published one, what it is, where its gradient goes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference
from safetensors import safe_open
from safetensors.torch import load_file
from small_alignment import CHANNELS, SIDE, VIEWS, Setting, assert_same
from torch import nn

from spatial_forcing.align import SpatialForcing
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import Layout, compose, crop, flip, resample
from spatial_forcing.losses.cosine import cosine_distance
from spatial_forcing.tap import Host

# ---- the published objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sf_objective", "sf_objective_nope", "sf_objective_37to16"])
def test_equals_the_published_objective(name):
    path = reference(f"spatial_forcing/{name}.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    B, V, _, C = tensors["input.teacher_tokens"].shape
    H, W = (int(n) for n in metadata["teacher_grid"].split("x"))
    h, w = (int(n) for n in metadata["student_grid"].split("x"))
    visual_BND = tensors["input.visual_tokens"].requires_grad_()

    final_norm = nn.Identity()
    layout = Layout(V, h, w)
    host = Host("reference", [nn.Identity()], final_norm, visual_BND.shape[-1], layout, lambda hidden: hidden)
    teacher = type("Width", (), {"width": C})
    embedding = 0.1 if metadata["position_embedding"] == "True" else 0.0
    sf = SpatialForcing(host, teacher, 1.0, site="blocks.1", published=True, position_embedding=embedding)
    names = {"vlm_norm": "norm", "fc1": "fc1", "fc2": "fc2"}
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    sf.projector.load_state_dict(
        {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in weights.items()}
    )
    tokens_BVHWC = tensors["input.teacher_tokens"].view(B, V, H, W, C)
    features = Features(tokens_BVHWC, torch.ones(B, V, H, W, dtype=torch.bool))

    with sf.watch():
        final_norm(visual_BND)
    loss = sf(features)
    loss.backward()
    target_BNC, valid_BN = sf.target(features)
    torch.testing.assert_close(loss, tensors["output.loss"].squeeze(), atol=1e-6, rtol=0)
    torch.testing.assert_close(visual_BND.grad, tensors["output.grad_visual_tokens"], atol=1e-8, rtol=0)
    projected_BNC = sf.projector(visual_BND, valid_BN)
    torch.testing.assert_close(projected_BNC, tensors["output.projected"], atol=1e-6, rtol=1e-6)
    # Both sides place their sample points in float32, 3e-6 of a token apart at 37 tokens.
    torch.testing.assert_close(target_BNC, tensors["output.target"], atol=2e-5, rtol=0)


# ---- the whole objective -----------------------------------------------------------------------------------


scales = st.floats(1e-3, 1e3)


@settings(max_examples=10)
@given(scale=scales)
def test_the_objective_ignores_the_teachers_scale(scale):
    setting = Setting()
    loss = setting.loss()
    gradients = setting.gradients(loss)
    setting.teacher.scale = scale
    scaled = setting.loss()
    assert scaled.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same(setting.gradients(scaled), gradients, atol=1e-6)


def test_the_published_position_embedding_does_depend_on_the_teachers_scale():
    setting = Setting(published=True)
    loss = setting.loss()
    setting.teacher.scale = 100.0
    assert abs(setting.loss() - loss) > 1e-4


@settings(max_examples=10)
@given(weight=st.floats(0, 10))
def test_the_weight_scales_loss_and_gradients(weight):
    one, other = Setting(weight=1.0), Setting(weight=weight)
    loss, weighted = one.loss(), other.loss()
    assert weighted.item() == pytest.approx(weight * loss.item(), rel=1e-5)
    scaled = {name: g if g is None else weight * g for name, g in one.gradients(loss).items()}
    assert_same(other.gradients(weighted), scaled, atol=1e-6)


def test_the_objective_is_the_distance_of_projected_tokens_to_the_resampled_teacher():
    setting = Setting(position_embedding=0.0)
    loss = setting.loss()
    visual_BND = setting.sf.tap.visual_BND()
    target_BNC = resample(setting.features(), SIDE, SIDE).tokens_BVHWC.flatten(1, 3)
    valid_BN = torch.ones(3, VIEWS * SIDE * SIDE, dtype=torch.bool)
    projected_BNC = setting.sf.projector(visual_BND, valid_BN)
    assert loss.item() == pytest.approx(
        0.5 * cosine_distance(projected_BNC, target_BNC, valid_BN).item(), abs=1e-6
    )
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    logs = setting.sf.logs
    assert logs["align_loss"].item() == pytest.approx(2 * loss.item(), abs=1e-6)
    assert logs["cosine"].item() == pytest.approx(1 - 2 * loss.item(), abs=1e-6)
    assert logs["valid_fraction"] == 1
    assert not any(value.requires_grad for value in logs.values())


def test_targets_carry_no_gradient_and_the_teacher_gets_none():
    setting = Setting()
    target_BNC, valid_BN = setting.sf.target(setting.images_BV3HW)
    assert target_BNC.dtype == torch.float32
    assert valid_BN.dtype == torch.bool
    assert not target_BNC.requires_grad
    assert not valid_BN.requires_grad
    setting.loss().backward()
    assert all(parameter.grad is None for parameter in setting.teacher.parameters())


def test_the_gradient_reaches_the_host_up_to_the_tap_and_no_further():
    setting = Setting()
    gradients = setting.gradients(setting.loss())
    touched = {name for name, g in gradients.items() if g is not None and g.abs().max() > 0}
    assert {"vla.patches.weight", "vla.blocks.0.attention.qkv.weight", "sf.projector.fc1.weight"} <= touched
    assert not any(name.startswith(("vla.blocks.3", "vla.final_norm", "vla.actions")) for name in touched)


def test_standardising_removes_what_all_tokens_share():
    features = Setting().features()
    tokens_NC = features.tokens_BVHWC.flatten(0, 3)
    mean_C, std_C = tokens_NC.mean(0), tokens_NC.std(0)
    plain_BNC, _ = Setting(position_embedding=0.0).sf.target(features)
    target_BNC, _ = Setting(position_embedding=0.0, standardize=(mean_C, std_C)).sf.target(features)
    torch.testing.assert_close(target_BNC, (plain_BNC - mean_C) / std_C, atol=1e-5, rtol=0)
    # A teacher with another offset and gain in each channel gives the same targets.
    gain_C, offset_C = torch.rand(CHANNELS) + 0.5, 10 * torch.randn(CHANNELS)
    other = Features(features.tokens_BVHWC * gain_C + offset_C, features.valid_BVHW)
    statistics = (mean_C * gain_C + offset_C, std_C * gain_C)
    other_BNC, _ = Setting(standardize=statistics).sf.target(other)
    expected_BNC, _ = Setting(standardize=(mean_C, std_C)).sf.target(features)
    torch.testing.assert_close(other_BNC, expected_BNC, atol=1e-4, rtol=0)


def test_the_affine_moves_the_target_with_the_hosts_image():
    # Mirror or crop the host's image: the target on its grid is the mirrored, cropped target.
    setting = Setting(position_embedding=0.0)
    features = setting.features()
    plain_BVhwC = setting.sf.target(features)[0].view(3, VIEWS, SIDE, SIDE, CHANNELS)
    mirrored = setting.sf.target(features, affine_BV23=flip())[0].view_as(plain_BVhwC)
    torch.testing.assert_close(mirrored, plain_BVhwC.flip(3), atol=1e-6, rtol=0)
    # One sample and one view cropped to its right half and the other left alone.
    affine_BV23 = torch.eye(2, 3).repeat(3, VIEWS, 1, 1)
    affine_BV23[1, 0] = compose(crop(0.5, 0.0, 1.0, 1.0), torch.eye(2, 3))
    moved = setting.sf.target(features, affine_BV23=affine_BV23)[0].view_as(plain_BVhwC)
    half = resample(features, SIDE, SIDE, crop(0.5, 0.0, 1.0, 1.0)).tokens_BVHWC
    torch.testing.assert_close(moved[1, 0], half[1, 0], atol=1e-6, rtol=0)
    others = torch.ones(3, VIEWS, dtype=torch.bool)
    others[1, 0] = False
    torch.testing.assert_close(moved[others], plain_BVhwC[others], atol=1e-6, rtol=0)


def test_a_host_that_pads_gets_no_loss_on_its_padding():
    setting = Setting()
    layout = Layout(VIEWS, 4, 4, fit="pad")
    sf = SpatialForcing(replace(setting.sf.host, layout=layout), setting.teacher)
    valid_BVhw = sf.target(torch.rand(1, VIEWS, 3, 28, 56))[1].view(1, VIEWS, 4, 4)  # twice as wide as high
    assert valid_BVhw[0, 0].tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


def test_the_published_resampling_refuses_images_that_the_host_pads():
    setting = Setting()
    host = replace(setting.sf.host, layout=Layout(VIEWS, 4, 4, fit="pad"))
    sf = SpatialForcing(host, setting.teacher, published=True)
    assert sf.target(torch.rand(1, VIEWS, 3, 28, 28))[1].all()
    with pytest.raises(SpatialForcingError, match=r"pads images of 28 x 56 .* knows no padding"):
        sf.target(torch.rand(1, VIEWS, 3, 28, 56))


def test_stored_features_of_a_host_that_pads_need_the_images_shape():
    setting = Setting()
    layout = Layout(VIEWS, 4, 4, fit="pad")
    sf = SpatialForcing(replace(setting.sf.host, layout=layout), setting.teacher)
    images_BV3HW = torch.rand(1, VIEWS, 3, 28, 56)
    stored = setting.teacher(images_BV3HW)
    with pytest.raises(SpatialForcingError, match="image_hw"):
        sf.target(stored)
    for a, b in zip(sf.target(stored, image_hw=(28, 56)), sf.target(images_BV3HW), strict=True):
        assert torch.equal(a, b)


def test_a_cropped_host_image_is_padded_after_the_crop():
    # The padding stays where the host puts it; what is between shows the crop.
    setting = Setting(position_embedding=0.0)
    layout = Layout(VIEWS, 4, 4, fit="pad", anchor=(0.5, 0.0))
    sf = SpatialForcing(replace(setting.sf.host, layout=layout), setting.teacher, position_embedding=0.0)
    images_BV3HW, window = torch.rand(1, VIEWS, 3, 28, 56), crop(0.5, 0.25, 1.0, 0.75)
    target_BNC, valid_BN = sf.target(images_BV3HW, affine_BV23=window)
    valid_BVhw = valid_BN.view(1, VIEWS, 4, 4)
    assert valid_BVhw[:, :, :2].all()
    assert not valid_BVhw[:, :, 2:].any()
    with torch.no_grad():
        seen = resample(setting.teacher(images_BV3HW), 2, 4, window).tokens_BVHWC
    torch.testing.assert_close(target_BNC.view(1, VIEWS, 4, 4, CHANNELS)[:, :, :2], seen, atol=1e-6, rtol=0)


def test_it_describes_itself():
    sf = Setting().sf
    params = sum(parameter.numel() for parameter in sf.parameters())
    says = sf.describe()
    assert "TinyVLA after block 3 of 4 (8 visual tokens, width 16) -> teacher width 8" in says
    assert f"projector {params:,} parameters; weight 0.5" in says


def test_what_is_not_the_papers_objective_is_said():
    of_two = (torch.zeros(CHANNELS), torch.ones(CHANNELS))
    for options, words in (
        ({}, ""),
        ({"standardize": of_two}, "; features standardised"),
        ({"projector": "conv", "spatial_norm": True}, "tokens; projector conv"),
        ({"norm": "batch", "position_embedding": 0.0}, "; position embedding 0; batch norm"),
        ({"published": True}, "; numerics of the public code"),
        ({"control": "place"}, "; control: place"),
        ({"control": "place", "standardize": of_two}, "; control: place"),
        (
            {"control": "place", "spatial_norm": True, "token_weights": True, "projector": "conv"},
            "weight 0.5; control: place; projector conv; "
            "without effect on this target: spatial_norm, token_weights",
        ),
        (
            {"points": "alone", "position_embedding": 0.0, "norm": "batch"},
            "3D points alone; projector 10,976 parameters; weight 0.5; batch norm; "
            "without effect on this target: position_embedding",
        ),
        ({"points": "added", "position_embedding": 0.2}, "; position embedding 0.2"),
    ):
        says = Setting(**options).sf.describe()
        assert says.endswith(words or "; weight 0.5"), says
