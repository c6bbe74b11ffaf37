"""Where LeRobot's real policies, at small size, keep their visual tokens: checked by changing images.

Shapes: B batch, V views, n tokens of a view, N of all views, L sequence, D width.
"""

from copy import deepcopy

import pytest
import torch
from small_policies import CAMERAS, LEFT, PICTURE, PROMPTED, RIGHT, WRIST, small_batch, small_policy
from torch import Tensor, nn

from spatial_forcing.grid import Layout
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import cameras_in, images_of, policy_host
from spatial_forcing.tap import Host

KINDS = tuple(kind for kind in PICTURE if kind not in PROMPTED)  # those are in test_policy_prompts.py
THREE = dict.fromkeys((LEFT, RIGHT, WRIST), (40, 60))


def first_stream(policy, batch: dict, host: Host) -> Tensor:
    """The stream that enters the first block, (B, L, D) or (L, B, D), in a forward with fixed noise."""
    block = host.blocks[0]
    reader = getattr(block, host.entry) if host.entry else block
    seen: list[Tensor] = []
    handle = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    torch.manual_seed(0)
    with torch.no_grad():
        policy.eval()(batch)
    handle.remove()
    return seen[0]


def visual_positions(host: Host, stream: Tensor) -> Tensor:
    """(N,): where in the sequence each visual token is, asking ``host.visual`` to pick from 0, 1, 2, ..."""
    axis = 0 if host.name == "ACT" else 1
    shape = [1, 1, 1]
    shape[axis] = -1
    return host.visual(torch.arange(stream.shape[axis]).view(shape))[0, :, 0]


def by_sample(host: Host, stream: Tensor) -> Tensor:
    return stream.transpose(0, 1) if host.name == "ACT" else stream


def cells_and_centres(layout: Layout, height: int, width: int) -> list[tuple[int, int, int]]:
    """(token of the view, row and column of the pixel at its centre), of the cells in the image."""
    affine_23, inside_hw = layout.affine_23(height, width), layout.valid_mask(height, width)
    found = []
    for row, col in inside_hw.nonzero().tolist():
        at = torch.tensor([(col + 0.5) / layout.cols, (row + 0.5) / layout.rows, 1.0])
        x, y = (affine_23 * at).sum(-1).tolist()
        pixel = min(int(y * height), height - 1), min(int(x * width), width - 1)
        found.append((row * layout.cols + col, *pixel))
    return found


def change_at(image_B3HW: Tensor, centres: list[tuple[int, int, int]], layout: Layout) -> Tensor:
    """Lights up a box about half a cell wide in every sample, each around another cell's centre."""
    (scale_x, _, _), (_, scale_y, _) = layout.affine_23(*image_B3HW.shape[-2:]).tolist()
    half_h = max(1, round(scale_y / layout.rows * image_B3HW.shape[-2] / 4))
    half_w = max(1, round(scale_x / layout.cols * image_B3HW.shape[-1] / 4))
    changed = image_B3HW.clone()
    for sample, (_, y, x) in enumerate(centres):
        box = (
            sample,
            slice(None),
            slice(max(0, y - half_h), y + half_h),
            slice(max(0, x - half_w), x + half_w),
        )
        changed[box] += 1 - changed[box] / 2
    return changed


def keep_in_place(policy) -> None:
    """Makes random weights as local as trained ones: little attention; a ResNet that only blurs.

    Where a token is does not depend on them, but whether it changes most at its own place does.
    """
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear) and name.endswith((".out_proj", ".o_proj", "_attn.proj")):
            module.weight.data *= 0.01
        if isinstance(module, nn.Conv2d) and name.startswith("model.backbone."):
            weight = module.weight.data.abs_()
            weight /= weight.sum((1, 2, 3), keepdim=True)


def change_per_token(policy, keys: list[str], view: int, *, without: tuple[str, ...] = ()):
    """What changing view ``view`` at one cell a sample does: (cells, change_BL, positions_N, host)."""
    keep_in_place(policy)
    host = policy_host(policy, images_of(policy, small_batch(policy, 1, without=without)).views)
    size = policy.config.image_features[keys[view]].shape[-2:]
    centres = cells_and_centres(host.layout, *size)
    changes = []
    for seed in range(1 if host.name == "ACT" else 3):  # random images, to average out what they look like
        batch = small_batch(policy, 1, seed=seed, without=without)
        batch = {key: value.expand(len(centres), *value.shape[1:]) for key, value in batch.items()}
        before = first_stream(policy, batch, host)
        changed = batch | {keys[view]: change_at(batch[keys[view]], centres, host.layout)}
        after = first_stream(policy, changed, host)
        changes.append(by_sample(host, (after - before).norm(dim=-1, keepdim=True))[..., 0])
    change_BL = torch.stack(changes).sum(0)
    return [cell for cell, _, _ in centres], change_BL, visual_positions(host, before), host


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_in_a_image_shows_in_the_token_that_covers_it(folder, kind, view):
    policy = small_policy(kind, folder)
    cells, change_BL, positions_N, host = change_per_token(policy, list(CAMERAS), view)
    change_BVn = change_BL[:, positions_N].unflatten(1, (host.layout.views, -1))
    assert change_BVn[:, view].argmax(-1).tolist() == cells
    assert (change_BVn[:, 1 - view] == 0).all(), "a token of the other view changed"
    elsewhere = torch.ones(change_BL.shape[1], dtype=torch.bool)
    elsewhere[positions_N] = False
    if kind == "xvla":  # whose first view and text pass an encoder together, and each view has a mean
        end = change_BL.shape[1] - policy.config.len_soft_prompts
        elsewhere[policy.config.chunk_size : end] = False
    assert elsewhere.any()
    assert (change_BL[:, elsewhere] == 0).all(), "text, state or actions changed"


@pytest.mark.parametrize("kind", KINDS)
def test_every_visual_token_is_somewhere_else(folder, kind):
    policy = small_policy(kind, folder)
    host = host_of(policy)
    positions = visual_positions(host, first_stream(policy, small_batch(policy), host)).tolist()
    assert len(set(positions)) == host.layout.tokens


def test_smolvla_with_markers_around_its_views(folder):
    policy = small_policy("smolvla", folder, add_image_special_tokens=True)
    cells, change_BL, positions_N, _ = change_per_token(policy, list(CAMERAS), 1)
    assert change_BL[:, positions_N].argmax(-1).tolist() == [16 + cell for cell in cells]


@pytest.mark.parametrize("kind", ["smolvla", "xvla"])
def test_images_that_are_not_padded_are_stretched_or_taken_as_they_come(folder, kind):
    size = (32, 32) if kind == "smolvla" else (64, 96)
    options = {"smolvla": {"resize_imgs_with_padding": None}, "xvla": {"resize_imgs_with_padding": (64, 96)}}
    sizes = {LEFT: size, RIGHT: size}
    policy = small_policy(kind, folder, sizes=sizes, **options[kind])
    cells, change_BL, positions_N, host = change_per_token(policy, list(CAMERAS), 0)
    assert len(cells) == host.layout.rows * host.layout.cols
    assert change_BL[:, positions_N].argmax(-1).tolist() == cells


def test_xvla_pads_left_and_top(folder):
    policy = small_policy("xvla", folder, resize_imgs_with_padding=(128, 128))
    cells, change_BL, positions_N, host = change_per_token(policy, list(CAMERAS), 1)
    assert 0 < len(cells) < host.layout.rows * host.layout.cols
    assert min(cells) >= host.layout.cols, "the first row is padding"
    tokens = host.layout.rows * host.layout.cols
    assert change_BL[:, positions_N].argmax(-1).tolist() == [tokens + cell for cell in cells]


@pytest.mark.parametrize(
    ("kind", "options"), [("smolvla", {}), ("smolvla", {"empty_cameras": 1}), ("pi0", {})]
)
def test_the_cameras_that_are_there_come_first(folder, kind, options):
    policy = small_policy(kind, folder, sizes=THREE, **options)
    there = [RIGHT, WRIST]
    assert cameras_in(policy.config, small_batch(policy, without=(LEFT,))) == there
    for view in (0, 1):
        cells, change_BL, positions_N, _ = change_per_token(policy, there, view, without=(LEFT,))
        assert change_BL[:, positions_N].argmax(-1).tolist() == [16 * view + cell for cell in cells]


def linear_backbone(backbone: nn.Module) -> nn.Module:
    """The same kernels, strides, paddings and dilations, one channel wide, with constant positive weights."""
    for name, module in backbone.named_children():
        if isinstance(module, nn.Conv2d):
            how = (module.kernel_size, module.stride, module.padding, module.dilation)
            replaced: nn.Module = nn.Conv2d(1, 1, *how, bias=False)
            nn.init.constant_(replaced.weight, 1 / module.kernel_size[0] ** 2)
        elif isinstance(module, nn.MaxPool2d):
            replaced = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
        elif next(module.children(), None) is not None:
            replaced = linear_backbone(module)
        else:
            replaced = nn.Identity()
        setattr(backbone, name, replaced)
    return backbone


@pytest.mark.parametrize(("net", "dilated", "stride"), [("resnet18", False, 32), ("resnet50", True, 16)])
def test_what_an_act_feature_sees_is_centred_on_the_first_pixel_of_its_cell(folder, net, dilated, stride):
    side = 1024
    options = {"vision_backbone": net, "replace_final_stride_with_dilation": dilated}
    policy = small_policy("act", folder, sizes=dict.fromkeys(CAMERAS, (side, side)), **options)
    layout = host_of(policy).layout
    assert (layout.rows, layout.cols) == (side // stride, side // stride)
    image = torch.ones(1, 1, side, side, requires_grad=True)
    features = linear_backbone(deepcopy(policy.model.backbone))(image)["feature_map"]
    row, col = layout.rows // 2, layout.cols // 2 - 1
    (weight,) = torch.autograd.grad(features[0, 0, row, col], image)
    at = torch.arange(side) + 0.5  # centres of pixels
    y, x = ((weight[0, 0].sum(1 - axis) * at).sum() / weight.sum() for axis in (0, 1))
    assert (y.item(), x.item()) == pytest.approx((stride * row + 0.5, stride * col + 0.5), abs=0.05)
    centre = torch.tensor([(col + 0.5) / layout.cols, (row + 0.5) / layout.rows, 1.0])
    says_x, says_y = (layout.affine_23(side, side) * centre).sum(-1) * side
    assert (says_y.item(), says_x.item()) == pytest.approx((y.item(), x.item()), abs=0.05)


@pytest.mark.parametrize("size", [(64, 64), (65, 96), (100, 150), (31, 129)])
def test_act_grids_have_the_rows_and_columns_of_the_feature_map(folder, size):
    policy = small_policy("act", folder, sizes=dict.fromkeys(CAMERAS, size))
    layout = host_of(policy).layout
    with torch.no_grad():
        features = policy.model.backbone(torch.zeros(1, 3, *size))["feature_map"]
    assert features.shape[-2:] == (layout.rows, layout.cols)
