"""Laws of the alignment loss: what it is, ignores and leaves alone, and that it equals the published one."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spatial_forcing.align import SpatialForcing
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Features, Layout, compose, crop, flip, resample
from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.losses.cosine import cosine_distance
from spatial_forcing.projector import Projector
from spatial_forcing.tap import Host, TapError
from spatial_forcing.uv import uv_position_embedding

VIEWS, SIDE, WIDTH, CHANNELS = (
    2,
    2,
    16,
    8,
)  # of the policy: 2 views of 2 x 2 tokens; of the teacher: 8 channels


class ConvTeacher(nn.Module):
    """A real, if small, teacher: one convolution with a patch of 7 pixels; every token valid unless told."""

    def __init__(self):
        super().__init__()
        self.width = CHANNELS
        self.conv = nn.Conv2d(3, CHANNELS, 7, 7)
        self.scale = 1.0

    def forward(self, images_BV3HW: Tensor) -> Features:
        maps_BVChw = self.conv(images_BV3HW.flatten(0, 1)).unflatten(0, images_BV3HW.shape[:2])
        tokens_BVhwC = self.scale * maps_BVChw.movedim(2, -1)
        return Features(tokens_BVhwC, torch.ones(tokens_BVhwC.shape[:-1], dtype=torch.bool))


class Setting:
    """A policy, a teacher, an observation, and Spatial Forcing between them."""

    def __init__(self, **options):
        torch.manual_seed(0)
        self.vla = TinyVLA(views=VIEWS, image_size=28, width=WIDTH, depth=4, heads=2, max_words=3, chunk=2)
        self.teacher = ConvTeacher()
        self.sf = SpatialForcing(self.vla.spatial_forcing_host(), self.teacher, **options)
        self.images_BV3HW = torch.rand(3, VIEWS, 3, 28, 28)
        self.inputs = (self.images_BV3HW, torch.randint(1, 512, (3, 3)), torch.randn(3, 4))

    def act(self) -> Tensor:
        """A watched forward; the action loss."""
        with self.sf.watch():
            return self.vla(*self.inputs).square().mean()

    def loss(self, target: Tensor | Features | None = None, **options) -> Tensor:
        self.act()
        return self.sf(self.images_BV3HW if target is None else target, **options)

    def features(self) -> Features:
        with torch.no_grad():
            return self.teacher(self.images_BV3HW)

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        modules = nn.ModuleDict({"vla": self.vla, "sf": self.sf})
        modules.zero_grad()
        loss.backward()
        return {name: parameter.grad for name, parameter in modules.named_parameters()}


def assert_same(a: dict[str, Tensor | None], b: dict[str, Tensor | None], atol: float = 1e-7) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


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


# ---- the position embedding --------------------------------------------------------------------------------


@given(H=st.integers(1, 40), W=st.integers(1, 40), quarter=st.integers(1, 16))
def test_the_position_embedding_turns_with_the_image(H, W, quarter):
    uv_HWC = uv_position_embedding(H, W, 4 * quarter, dtype=torch.float64)
    vu_WHC = uv_position_embedding(W, H, 4 * quarter, dtype=torch.float64)
    u, v = uv_HWC.chunk(2, dim=-1)
    v_turned, u_turned = vu_WHC.transpose(0, 1).chunk(2, dim=-1)
    torch.testing.assert_close((u, v), (u_turned, v_turned))
    # Sine is odd and cosine even in each coordinate, which is zero at the centre.
    sign = torch.cat([-torch.ones(quarter), torch.ones(quarter)])
    torch.testing.assert_close(u.flip(1), u * sign)
    torch.testing.assert_close(v.flip(0), v * sign)


def test_the_position_embedding_spans_the_unit_circle():
    H, W = 30, 40
    uv_HWC = uv_position_embedding(H, W, 4, dtype=torch.float64)  # one wavelength: sin u, cos u, sin v, cos v
    u_HW, v_HW = uv_HWC[..., 0].asin(), uv_HWC[..., 2].asin()
    step_u, step_v = u_HW[0, 1] - u_HW[0, 0], v_HW[1, 0] - v_HW[0, 0]
    torch.testing.assert_close(step_u, step_v)  # square cells
    corner = torch.stack([u_HW[-1, -1] + step_u / 2, v_HW[-1, -1] + step_v / 2])
    assert corner.norm().item() == pytest.approx(1.0)
    assert uv_HWC.abs().max() <= 1


@pytest.mark.parametrize(("size", "says"), [((0, 4, 8), "one row"), ((4, 4, 6), "multiple of 4")])
def test_position_embeddings_that_cannot_be(size, says):
    with pytest.raises(ValueError, match=says):
        uv_position_embedding(*size)


# ---- the distance ------------------------------------------------------------------------------------------

scales = st.floats(1e-3, 1e3)
seeds = st.integers(0, 10_000)


def random_pair(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """projected_BNC, target_BNC, valid_BN with at least one valid token."""
    generator = torch.Generator().manual_seed(seed)
    projected, target = torch.randn(2, 2, 5, 4, generator=generator).unbind(0)
    valid = torch.rand(2, 5, generator=generator) < 0.6
    valid[0, 0] = True
    return projected, target, valid


@given(seed=seeds)
def test_the_distance_is_the_mean_of_one_minus_cosine(seed):
    projected, target, valid = random_pair(seed)
    p, y = projected[valid].double(), target[valid].double()
    expected = (1 - (p * y).sum(-1) / (p.norm(dim=-1) * y.norm(dim=-1))).mean()
    distance = cosine_distance(projected, target, valid)
    assert distance.item() == pytest.approx(expected.item(), abs=1e-6)
    assert 0 <= distance <= 2


@given(seed=seeds, scale=scales)
def test_the_distance_is_zero_iff_parallel_and_two_iff_opposite(seed, scale):
    _, target, valid = random_pair(seed)
    each_BN1 = scale * torch.rand(2, 5, 1) + 1e-3
    assert cosine_distance(each_BN1 * target, target, valid).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(-each_BN1 * target, target, valid).item() == pytest.approx(2, abs=1e-6)
    # Turning one valid token by a hundredth is already seen.
    turned = target.clone()
    turned[0, 0] += (
        0.01 * target[0, 0].norm() * F.normalize(target[0, 0].roll(1) * torch.tensor([1, -1, 1, -1]), dim=0)
    )
    assert cosine_distance(turned, target, valid) > 1e-6


@given(seed=seeds, a=scales, b=scales)
def test_the_distance_ignores_the_scale_of_either_side(seed, a, b):
    projected, target, valid = random_pair(seed)
    expected = cosine_distance(projected, target, valid).item()
    assert cosine_distance(a * projected, b * target, valid).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 0.0])
@given(seed=seeds)
def test_the_distance_ignores_what_is_not_valid(poison, seed):
    projected, target, valid = random_pair(seed)
    dirty = torch.where(valid[..., None], projected, poison).requires_grad_()
    dirty_target = torch.where(valid[..., None], target, poison)
    distance = cosine_distance(dirty, dirty_target, valid)
    distance.backward()
    assert torch.equal(distance, cosine_distance(projected, target, valid))
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~valid] == 0).all()


def test_the_distance_is_computed_in_float32():
    projected, target, valid = random_pair(0)
    distance = cosine_distance(projected.half(), target.double(), valid)
    assert distance.dtype == torch.float32
    assert distance.item() == pytest.approx(cosine_distance(projected, target, valid).item(), abs=1e-3)


# ---- the whole objective -----------------------------------------------------------------------------------


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


# ---- masks -------------------------------------------------------------------------------------------------


def masked(features: Features, seed: int) -> Features:
    """About a third of the views missing, and a few tokens more."""
    generator = torch.Generator().manual_seed(seed)
    view_BV11 = torch.rand(*features.valid_BVHW.shape[:2], 1, 1, generator=generator) < 0.67
    token_BVHW = torch.rand(features.valid_BVHW.shape, generator=generator) < 0.9
    return Features(features.tokens_BVHWC, view_BV11 & token_BVHW)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@settings(max_examples=8)
@given(seed=seeds)
def test_masked_tokens_change_nothing_and_get_no_gradient(norm, poison, seed):
    # Through the whole objective, for a leaf that stands in for the residual stream.
    sf = Setting(norm=norm).sf
    setting = Setting()
    features = masked(setting.features(), seed)
    dirty_teacher = Features(
        torch.where(features.valid_BVHW[..., None], features.tokens_BVHWC, poison), features.valid_BVHW
    )
    valid_BN = sf.target(features)[1]
    hidden_BLD = torch.randn(3, 14, WIDTH)
    dirty_hidden = hidden_BLD.clone()
    dirty_hidden[:, 3:11][~valid_BN] = poison
    state = copy.deepcopy(sf.state_dict())

    results = []
    for hidden, target in ((hidden_BLD, features), (dirty_hidden, dirty_teacher)):
        sf.load_state_dict(state)
        leaf = hidden.clone().requires_grad_()
        with sf.watch():
            sf.host.reader(sf.tap.layer)(leaf)
        sf.zero_grad()
        loss = sf(target)
        loss.backward()
        of_sf = {name: parameter.grad.clone() for name, parameter in sf.named_parameters()}
        results.append((loss.detach(), leaf.grad, of_sf, copy.deepcopy(sf.state_dict())))
    (clean_loss, clean_grad, *clean), (loss, grad, *rest) = results
    assert torch.equal(loss, clean_loss)
    assert torch.equal(grad, clean_grad)
    for a, b in zip(rest, clean, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert grad.isfinite().all()
    assert (grad[:, 3:11][~valid_BN] == 0).all()
    assert (grad[:, :3] == 0).all()
    assert (grad[:, 11:] == 0).all()
    if valid_BN.sum() > 1:
        assert (grad[:, 3:11][valid_BN].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("poison", [0.0, math.nan])
def test_all_views_masked_gives_zero_loss_and_zero_gradient_everywhere(norm, poison):
    setting = Setting(norm=norm)
    tokens = torch.full_like(setting.features().tokens_BVHWC, poison)
    loss = setting.loss(Features(tokens, torch.zeros(tokens.shape[:4], dtype=torch.bool)))
    assert loss == 0
    gradients = setting.gradients(loss)
    # Zero, not absent: under DistributedDataParallel the other processes wait for every parameter of the
    # projector.
    assert all((gradients[name] == 0).all() for name in gradients if name.startswith("sf."))
    reached = {name for name, g in gradients.items() if g is not None}
    assert "vla.patches.weight" in reached
    assert all((gradients[name] == 0).all() for name in reached)
    assert setting.sf.logs["valid_fraction"] == 0
    assert setting.sf.logs["cosine"].isnan(), "nothing was compared"


def test_a_batch_without_valid_tokens_leaves_lerobots_metrics_in_order():
    """LeRobot averages over processes by position: each must log the same names in the same order."""
    tracker = pytest.importorskip("lerobot.utils.logging_utils").MetricsTracker
    setting, trackers = Setting(), [tracker(4, 100, 10, {}) for _ in range(2)]
    features = setting.features()
    nothing = Features(features.tokens_BVHWC, torch.zeros_like(features.valid_BVHW))
    for metrics, batches in zip(trackers, [(nothing, features), (features, features)], strict=True):
        for batch in batches:
            setting.loss(batch)
            metrics.update_metrics({name: value.item() for name, value in setting.sf.logs.items()})
    assert list(trackers[0].metrics) == list(trackers[1].metrics) == list(setting.sf.logs)
    assert math.isnan(trackers[0].to_dict()["cosine"])
    assert trackers[0].to_dict()["valid_fraction"] == 0.5
    assert trackers[1].to_dict()["cosine"] == pytest.approx(setting.sf.logs["cosine"].item())
    assert "cosine:nan" in str(trackers[0])


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_fewer_views_than_the_host_has_is_masking_the_last(norm):
    one, other = Setting(norm=norm), Setting(norm=norm)
    features = one.features()
    valid = features.valid_BVHW.clone()
    valid[:, 1] = False
    fewer = one.loss(Features(features.tokens_BVHWC[:, :1], features.valid_BVHW[:, :1]))
    last_masked = other.loss(Features(features.tokens_BVHWC, valid))
    torch.testing.assert_close(fewer, last_masked, atol=1e-6, rtol=0)
    assert one.sf.logs["valid_fraction"] == 0.5
    assert_same(one.gradients(fewer), other.gradients(last_masked), atol=1e-6)


@pytest.mark.parametrize("views", [[1], [1, 0], [0, 1]])
def test_the_views_given_are_aligned_in_their_places_and_the_others_are_not(views):
    # Against the views in the host's order, the others masked. Position embeddings weigh by the views given.
    setting, other = Setting(position_embedding=0.0), Setting(position_embedding=0.0)
    turned_BV23 = torch.stack([flip(), torch.eye(2, 3)]).expand(3, VIEWS, 2, 3)
    present_BV = torch.tensor([[True, True], [True, False], [False, True]])
    features = masked(other.features(), 5)
    some = Features(*(part[:, views] for part in features))
    loss = setting.loss(some, affine_BV23=turned_BV23[:, views], present_BV=present_BV[:, views], views=views)
    valid_BVHW = features.valid_BVHW.clone()
    valid_BVHW[:, [view for view in range(VIEWS) if view not in views]] = False
    whole = other.loss(
        features._replace(valid_BVHW=valid_BVHW), affine_BV23=turned_BV23, present_BV=present_BV
    )
    assert loss > 0
    torch.testing.assert_close(loss, whole, atol=1e-6, rtol=0)
    assert_same(setting.gradients(loss), other.gradients(whole), atol=1e-6)


def test_the_teacher_sees_the_views_given_and_no_others():
    setting = Setting()
    seen = []
    setting.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    setting.loss(setting.images_BV3HW[:, 1:], views=[1])
    assert [tuple(images.shape[:2]) for images in seen] == [(3, 1)]
    assert setting.sf.logs["valid_fraction"] == 0.5


@pytest.mark.parametrize("views", [[0, 0], [0, 2], [-1, 0], [0], [0, 1, 1]])
def test_views_that_the_host_does_not_have(views):
    with pytest.raises(SpatialForcingError, match=r"which of the 2 views of TinyVLA, 0 to 1, the 2 given"):
        Setting().loss(views=views)


# ---- the projector -----------------------------------------------------------------------------------------


@given(seed=seeds)
def test_batch_statistics_are_those_of_the_valid_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    visual_BND = 3 + 2 * torch.randn(2, 6, 4, generator=generator)
    valid_BN = torch.rand(2, 6, generator=generator) < 0.5
    valid_BN[0, :2] = True
    projector = Projector(4, 8, "batch")
    projected_BNC = projector(visual_BND, valid_BN)
    tokens_ND = visual_BND[valid_BN]
    normed_ND = (tokens_ND - tokens_ND.mean(0)) / (
        tokens_ND.var(0, unbiased=False) + projector.norm.eps
    ).sqrt()
    expected_NC = projector.fc2(F.gelu(projector.fc1(normed_ND)))
    torch.testing.assert_close(projected_BNC[valid_BN], expected_NC, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(projector.norm.running_mean, 0.1 * tokens_ND.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_tokens_leave_the_batch_statistics_alone(count):
    projector = Projector(4, 8, "batch")
    projector(3 + torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool))
    before = copy.deepcopy(projector.state_dict())
    visual_BND, valid_BN = torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    valid_BN[0, :count] = True
    in_training = projector(visual_BND, valid_BN)
    after = projector.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # Then the running statistics serve, as in evaluation.
    assert torch.equal(in_training, projector.eval()(visual_BND, valid_BN))
    normed_ND = projector.norm(visual_BND[0, :count])
    torch.testing.assert_close(in_training[0, :count], projector.fc2(F.gelu(projector.fc1(normed_ND))))


def test_projectors_have_a_norm_that_exists():
    with pytest.raises(SpatialForcingError, match="'layer' or 'batch', got 'group'"):
        Projector(4, 8, "group")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_projector_keeps_its_precision_whatever_the_hosts(dtype, norm):
    # A handful of numbers: LeRobot loads language models in bfloat16.
    projector = Projector(4, 4, norm)
    visual_BND = torch.randn(1, 3, 4).to(dtype).requires_grad_()
    valid_BN = torch.tensor([[True, True, False]])
    projected_BNC = projector(visual_BND, valid_BN)
    assert projected_BNC.dtype == torch.float32
    torch.testing.assert_close(projected_BNC, projector(visual_BND.float(), valid_BN), atol=1e-5, rtol=1e-5)
    projected_BNC.sum().backward()
    assert visual_BND.grad.dtype == dtype
    assert projector.fc1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_autocast_leaves_the_target_and_the_loss_in_float32(norm):
    sf = SpatialForcing(
        Host(
            "one token",
            [nn.Identity()],
            end := nn.Identity(),
            4,
            Layout(1, 1, 2),
            lambda hidden: hidden,
            layer=1,
        ),
        type("Width", (), {"width": 4}),
        norm=norm,
    )
    features = Features(torch.randn(1, 1, 2, 3, 4), torch.ones(1, 1, 2, 3, dtype=torch.bool))
    hidden_BLD = torch.randn(1, 2, 4, requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        with sf.watch():
            end(hidden_BLD)
        return sf(features), sf.target(features)[0]

    loss, target_BNC = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_autocast, target_autocast = run()
    assert torch.equal(target_autocast, target_BNC)
    assert loss_autocast.dtype == torch.float32
    assert loss_autocast.item() == pytest.approx(loss.item(), abs=0.02)
    loss_autocast.backward()
    assert hidden_BLD.grad.isfinite().all()


# ---- what it leaves alone ----------------------------------------------------------------------------------


def hooks_of(model: nn.Module) -> dict:
    """Every hook of every module, by module and kind."""
    return {
        (name, kind): dict(value)
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if "hook" in kind and isinstance(value, dict)
    }


def test_attach_and_detach_leave_the_host_as_it_was():
    vla = TinyVLA(views=VIEWS, image_size=28, width=WIDTH, depth=4, heads=2, max_words=3, chunk=2)
    state = copy.deepcopy(vla.state_dict())
    modules, hooks, kind = list(vla.named_modules()), hooks_of(vla), type(vla)
    sf = SpatialForcing(vla.spatial_forcing_host(), ConvTeacher())
    assert list(vla.named_modules()) == modules
    assert type(vla) is kind
    assert vla.state_dict().keys() == state.keys()
    attached = {place for place, found in hooks_of(vla).items() if found != hooks[place]}
    assert {module for module, _ in attached} == {"blocks.3.norm1"}  # one module is touched
    sf.detach()
    assert hooks_of(vla) == hooks
    assert list(vla.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in vla.state_dict().items())
    with sf.watch():
        vla(torch.rand(1, VIEWS, 3, 28, 28), torch.ones(1, 3, dtype=torch.long), torch.randn(1, 4))
    with pytest.raises(TapError, match="never fired"):
        sf(torch.rand(1, VIEWS, 3, 28, 28))


def test_the_hosts_loss_and_gradients_are_the_same_bits_under_watch():
    setting = Setting()
    plain = setting.vla(*setting.inputs).square().mean()
    expected = setting.gradients(plain)
    watched = setting.act()
    assert torch.equal(watched, plain)
    actual = setting.gradients(watched)
    assert all(g is None or torch.equal(actual[name], g) for name, g in expected.items())


def test_the_teacher_is_not_part_of_it():
    setting = Setting()
    sf, teacher = setting.sf, setting.teacher
    assert [name for name, _ in sf.named_parameters()] == [
        f"projector.{module}.{kind}" for module in ("norm", "fc1", "fc2") for kind in ("weight", "bias")
    ]
    assert sf.state_dict().keys() == {name for name, _ in sf.named_parameters()}
    assert teacher not in list(sf.modules())
    assert setting.vla not in list(sf.modules())
    sf.to(torch.float64).train()
    teacher.eval()
    sf.train()
    assert teacher.conv.weight.dtype == torch.float32
    assert not teacher.training
    assert sf.teacher is teacher


def test_the_projector_is_made_where_the_hosts_blocks_are():
    vla = TinyVLA(views=VIEWS, image_size=28, width=WIDTH).to("meta")
    sf = SpatialForcing(vla.spatial_forcing_host(), ConvTeacher())
    assert {tensor.device.type for tensor in [*sf.parameters(), *sf.buffers()]} == {"meta"}


# ---- gradient ratio, description ---------------------------------------------------------------------------


def test_gradient_ratio_is_that_of_gradients_at_the_tap():
    setting = Setting()
    action = setting.act()
    align = setting.sf(setting.images_BV3HW)
    ratio = setting.sf.gradient_ratio(action, align)
    hidden = setting.sf.tap.hidden_BLD
    by_action, by_align = (
        torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (action, align)
    )
    assert ratio.item() == pytest.approx((by_align.norm() / by_action.norm()).item(), rel=1e-5)
    assert 0 < ratio < math.inf
    # Twice the alignment pulls twice as hard; and the graph is still there for the step itself.
    assert setting.sf.gradient_ratio(action, 2 * align).item() == pytest.approx(2 * ratio.item(), rel=1e-5)
    (action + align).backward()


def test_gradient_ratio_is_nan_where_there_is_none():
    setting = Setting()
    assert setting.sf.gradient_ratio(torch.ones(()), torch.ones(())).isnan()  # nothing watched
    action = setting.act()
    unrelated = torch.ones((), requires_grad=True) * 2
    assert setting.sf.gradient_ratio(action, unrelated).isnan()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_ratio_under_checkpointing_is_the_same_or_refused_in_words(monkeypatch, reentrant):
    setting = Setting()
    expected = setting.sf.gradient_ratio(setting.act(), setting.sf(setting.images_BV3HW))
    block = setting.vla.blocks[3]
    plain = block.forward
    monkeypatch.setattr(block, "forward", lambda x: checkpoint(plain, x, use_reentrant=reentrant))
    action = setting.act()
    align = setting.sf(setting.images_BV3HW)
    if reentrant:
        with pytest.raises(TapError, match=r"use_reentrant=False"):
            setting.sf.gradient_ratio(action, align)
    else:
        assert setting.sf.gradient_ratio(action, align).item() == pytest.approx(expected.item(), rel=1e-5)


def test_other_errors_of_the_gradient_ratio_are_told_as_they_are():
    setting = Setting()
    action, align = setting.act(), setting.sf(setting.images_BV3HW)
    (action + align).backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        setting.sf.gradient_ratio(action, align)


def test_it_describes_itself():
    sf = Setting().sf
    params = sum(parameter.numel() for parameter in sf.parameters())
    says = sf.describe()
    assert "TinyVLA after block 3 of 4 (8 visual tokens, width 16) -> teacher width 8" in says
    assert f"projector {params:,} parameters; weight 0.5" in says


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, VIEWS + 1, 4, 4, CHANNELS), "Got 3 views, but TinyVLA has tokens for 2"),
        ((2, VIEWS, 4, 4, CHANNELS), "batch of 2, but the watched forward had a batch of 3"),
        ((3, VIEWS, 4, 4, CHANNELS + 4), "12 wide, the teacher of this SpatialForcing is 8 wide"),
        ((3, 16, CHANNELS), r"tokens \(B, V, H, W, C\)"),
        ((3, CHANNELS), r"tokens \(B, V, H, W, C\)"),
    ],
)
def test_features_that_do_not_fit(shape, says):
    setting = Setting()
    with pytest.raises(SpatialForcingError, match=says):
        setting.loss(Features(torch.randn(shape), torch.ones(shape[:-1], dtype=torch.bool)))


def test_images_of_too_many_views_or_another_batch():
    setting = Setting()
    with pytest.raises(SpatialForcingError, match="Got 3 views"):
        setting.loss(torch.rand(3, 3, 3, 28, 28))
    with pytest.raises(SpatialForcingError, match="batch of 1"):
        setting.loss(torch.rand(1, VIEWS, 3, 28, 28))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -1}, "0 or more, got -1"),
        ({"weight": math.nan}, "finite number, 0 or more, got nan"),
        ({"weight": math.inf}, "finite number, 0 or more, got inf"),
        ({"position_embedding": 5}, r"0 \(none\) to 1.*got 5"),
        ({"position_embedding": -0.1}, r"0 \(none\) to 1.*got -0.1"),
        ({"position_embedding": math.nan}, r"0 \(none\) to 1.*got nan"),
        ({"standardize": (torch.zeros(4), torch.ones(8))}, r"8 channels, got shapes \(4,\) and \(8,\)"),
        ({"standardize": (torch.zeros(8), torch.full((8,), math.nan))}, "not finite.*in 8 of 8 channels"),
        ({"standardize": (torch.full((8,), math.inf), torch.ones(8))}, "not finite.*in 8 of 8 channels"),
        ({"standardize": (torch.zeros(8), -torch.eye(8)[0])}, "negative deviation, in 1 of 8"),
    ],
)
def test_numbers_that_cannot_be(options, says):
    with pytest.raises(SpatialForcingError, match=says):
        Setting(**options)


@pytest.mark.parametrize("options", [{}, {"published": True}, {"weight": 0.0}, {"position_embedding": 0.0}])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_valid_features_that_are_no_numbers_stop_the_step_that_sees_them(options, poison):
    setting = Setting(**options)
    assert setting.loss().isfinite()
    features = setting.features()
    features.tokens_BVHWC[1, 1, 2, 3, 4] = poison
    with pytest.raises(SpatialForcingError, match=r"1 of 96 valid.*sample 1, view 1, row 2, column 3"):
        setting.loss(features)
    features.valid_BVHW[1, 1, 2, 3] = False
    assert setting.loss(features).isfinite()


def test_a_teacher_that_gives_no_numbers_stops_the_step():
    setting = Setting()
    setting.teacher.scale = math.nan
    with pytest.raises(SpatialForcingError, match="96 of 96 valid tokens"):
        setting.loss()


def test_the_loss_that_is_logged_tells_where_a_step_did_not_wait_to_look():
    setting = Setting()
    features = setting.features()
    setting.sf.check_loss(0.5, features)
    setting.sf.check_loss(math.nan, features)  # something else is wrong
    features.tokens_BVHWC[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(SpatialForcingError, match="1 of 96 valid tokens"):
        setting.sf.check_loss(math.nan, features)


def test_a_host_that_has_diverged_is_not_blamed_on_the_features():
    setting = Setting()
    setting.vla.patches.weight.data.fill_(math.nan)
    assert setting.loss().isnan()


def test_affines_that_are_no_numbers():
    with pytest.raises(SpatialForcingError, match="numbers that are not finite"):
        Setting().loss(affine_BV23=torch.full((3, VIEWS, 2, 3), math.nan))


def test_nothing_watched_or_nothing_trained():
    setting = Setting()
    with pytest.raises(TapError, match="never fired"):
        setting.sf(setting.images_BV3HW)
    setting.vla.requires_grad_(False)
    with pytest.raises(TapError, match="carry no gradient"):
        setting.loss()
    with torch.no_grad():  # evaluating a frozen host is fine
        assert setting.loss() > 0


def test_the_published_options_take_no_affine():
    setting = Setting(published=True)
    with pytest.raises(SpatialForcingError, match="published"):
        setting.loss(affine_BV23=flip())
