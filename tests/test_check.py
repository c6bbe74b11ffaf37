"""The perturbation check: passes on the true host records, and names each planted defect.

Shapes: B batch, V views, h w rows and columns of the grid, N visual tokens, L sequence, D width.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_policies import CAMERAS, LARGE, PICTURE, PROMPTED, SMALL, small_batch, small_policy
from small_prompted import prompted
from torch import Tensor, nn

from spatial_forcing import Host, Layout, SpatialForcing, TapError, check_host, host_of, load_teacher
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import flip
from spatial_forcing.hosts.lerobot import policy_host
from spatial_forcing.hosts.tiny import TinyVLA

KINDS = tuple(PICTURE)
PROBES = 16


# ---- LeRobot's policies ------------------------------------------------------------------------------------


def patient(kind: str, folder: Path, **options: Any) -> tuple[Host, Any, list[Tensor]]:
    """(host, forward of a list of images, images) of a policy with random weights."""
    policy = small_policy(kind, folder, **options).eval()
    draw = torch.Generator().manual_seed(0)
    raw = {key: torch.rand(4, *f.shape, generator=draw) for key, f in policy.config.image_features.items()}
    raw |= {"observation.state": torch.randn(4, 4), "action": torch.randn(4, policy.config.chunk_size, 4)}
    raw["action_is_pad"] = torch.zeros(4, policy.config.chunk_size, dtype=torch.bool)
    batch = raw if kind in PROMPTED else small_batch(policy, 4) | raw

    def forward(images: list[Tensor]) -> None:
        shown = batch | dict(zip(policy.config.image_features, images, strict=True))
        policy(prompted(policy.config, shown) if kind in PROMPTED else shown)

    return policy_host(policy, 2), forward, [raw[key] for key in policy.config.image_features]


def shifted(host: Host, by: int) -> Host:
    """The visual tokens are taken ``by`` places too late."""
    if host.locate is not None:
        locate = host.locate
        return replace(host, locate=lambda call: _moved(locate(call), by))
    axis = 0 if host.name == "ACT" else 1
    return replace(host, visual=lambda stream: host.visual(stream.roll(-by, axis)))


def _moved(located: Any, by: int) -> Any:
    return located._replace(token_indices_BN=located.token_indices_BN + by)


def arranged(host: Host, how: Any) -> Host:
    """The visual tokens in another order: ``how`` rearranges their numbers, a tensor (V, h, w)."""

    def order(grid: Layout) -> Tensor:
        return how(torch.arange(grid.tokens).view(grid.views, grid.rows, grid.cols)).reshape(-1)

    if host.locate is not None:
        locate = host.locate

        def rearranged(call: Any) -> Any:
            located = locate(call)
            return located._replace(token_indices_BN=located.token_indices_BN[:, order(located.layout)])

        return replace(host, locate=rearranged)
    return replace(host, visual=lambda stream: host.visual(stream)[:, order(host.layout)])


DEFECTS = [
    (lambda host: shifted(host, 1), "shifted", "starts 1 token too late"),
    (lambda host: shifted(host, -2), "shifted", "starts 2 tokens too early"),
    (lambda host: arranged(host, lambda n_Vhw: n_Vhw.mT), "order", "transposed"),
    (lambda host: arranged(host, lambda n_Vhw: n_Vhw.flip(2)), "order", "mirrored left to right"),
    (lambda host: arranged(host, lambda n_Vhw: n_Vhw.flip(1)), "order", "upside down"),
    (lambda host: arranged(host, lambda n_Vhw: n_Vhw.flip(0)), "views", "image 1 in view 2, image 2"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_true_records_pass_and_planted_defects_are_named(folder, kind):
    host, forward, images = patient(kind, folder)
    report = check_host(host, forward, images, probes=PROBES)
    assert report.ok, report
    assert report.explained == report.declared > 0.5
    for plant, verdict, says in DEFECTS:
        found = check_host(plant(host), forward, images, probes=PROBES)
        assert (found.verdict, found.ok) == (verdict, False), found
        assert says in str(found)
        assert found.explained > 0.5 > found.declared
    assert not host.site("blocks.0").reader._forward_pre_hooks


def test_act_without_its_state_token(folder):
    host, forward, images = patient("act", folder)
    n = host.layout.tokens
    forgot = replace(host, visual=lambda hidden_LBD: hidden_LBD[1 : 1 + n].transpose(0, 1))
    assert "starts 1 token too early" in str(check_host(forgot, forward, images, probes=PROBES))


def test_smolvla_with_markers_that_the_record_forgot(folder):
    host, forward, images = patient("smolvla", folder, add_image_special_tokens=True)
    assert check_host(host, forward, images).ok
    report = check_host(replace(host, visual=slice(0, host.layout.tokens)), forward, images)
    assert report.verdict == "shifted"
    assert "Of view 1: The visual tokens stand 2 tokens later" in str(report)
    assert "Of view 2: The visual tokens stand 5 tokens later" in str(report)


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "evo1"])
def test_cameras_of_different_sizes(folder, kind):
    sizes = {CAMERAS[0]: SMALL, CAMERAS[1]: (LARGE[1], LARGE[0])}
    host, forward, images = patient(kind, folder, sizes=sizes)
    assert check_host(host, forward, images, probes=PROBES).ok
    swapped = check_host(arranged(host, lambda n_Vhw: n_Vhw.flip(0)), forward, images, probes=2 * PROBES)
    assert swapped.verdict == "views"


def test_padding_on_the_wrong_side(folder):
    # Of 32 x 32 pixels SmolVLA's images leave a third free, at the top: two of eight cells.
    host, forward, images = patient("smolvla", folder, resize_imgs_with_padding=(64, 64))
    assert check_host(host, forward, images).ok
    wrong = replace(host, layout=replace(host.layout, anchor=(0.0, 0.0)))
    assert not check_host(wrong, forward, images).ok


# ---- hosts of one's own ------------------------------------------------------------------------------------


def tiny(**options: Any) -> tuple[TinyVLA, Any, Tensor]:
    vla = TinyVLA(**{"image_size": 56, "depth": 2, "width": 32} | options).eval()
    words, state = torch.ones(4, 12, dtype=torch.long), torch.randn(4, 4)
    images_BV3HW = torch.rand(4, vla.layout.views, 3, 56, 56)
    return vla, lambda images: vla(images, words, state), images_BV3HW


def test_a_host_whose_slice_is_one_too_far():
    vla, forward, images_BV3HW = tiny()
    host = host_of(vla)
    assert str(check_host(host, forward, images_BV3HW)).startswith("32 of 32 blanked cells")
    late = replace(host, visual=slice(13, 13 + host.layout.tokens))
    report = check_host(late, forward, images_BV3HW)
    assert "starts 1 token too late" in str(report)
    assert (report.declared, report.explained) == (0, 1)


def test_views_that_are_interleaved_or_three_in_turn():
    vla, forward, images_BV3HW = tiny(views=3)
    host = host_of(vla)
    turned = arranged(host, lambda n_Vhw: n_Vhw.roll(1, 0))
    assert "image 1 in view 2, image 2 in view 3, image 3 in view 1" in str(
        check_host(turned, forward, images_BV3HW)
    )
    assert "interleaved" in str(
        check_host(arranged(host, lambda n_Vhw: n_Vhw.permute(1, 2, 0)), forward, images_BV3HW)
    )


def test_two_defects_at_once():
    vla, forward, images_BV3HW = tiny()
    report = check_host(shifted(arranged(host_of(vla), lambda n_Vhw: n_Vhw.mT), 3), forward, images_BV3HW)
    assert report.verdict == "order"
    assert "transposed" in str(report)
    assert "starts 3 tokens too late" in str(report)


class Wide(nn.Module):
    """Cuts an image into two rows of four cells; three tokens before, and blocks that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, images_BV3HW: Tensor) -> Tensor:
        tokens_BND = self.patches(images_BV3HW[:, 0]).flatten(2).mT
        hidden_BLD = torch.cat([tokens_BND.new_zeros(len(tokens_BND), 3, 8), tokens_BND], dim=1)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD)
        return hidden_BLD

    def host(self, rows: int = 2, cols: int = 4, **options: Any) -> Host:
        how = {"visual": slice(3, 11), "entry": ""} | options
        return Host("Wide", self.blocks, None, 8, Layout(1, rows, cols), **how)


WIDE = (2, 1, 3, 16, 32)


def test_rows_for_columns():
    wide, images = Wide(), torch.rand(*WIDE)
    assert check_host(wide.host(), wide, images).ok
    report = check_host(wide.host(4, 2), wide, images)
    assert "exchange them" in str(report)


def test_a_image_mirrored_on_the_way_to_the_host():
    wide, images = Wide(), torch.rand(*WIDE)
    report = check_host(wide.host(), lambda images: wide(images.flip(-1)), images)
    assert "mirrored left to right" in str(report)
    assert check_host(wide.host(), lambda images: wide(images.flip(-1)), images, affine_23=flip()).ok


def test_tokens_that_are_computed_and_not_picked():
    wide, images = Wide(), torch.rand(*WIDE)
    scaled = wide.host(visual=lambda hidden_BLD: 2 * hidden_BLD[:, 3:] + 1)
    assert check_host(scaled, wide, images).ok
    mirrored = wide.host(
        visual=lambda hidden_BLD: (2 * hidden_BLD[:, 3:]).view(-1, 2, 4, 8).flip(2).flatten(1, 2)
    )
    assert "mirrored" in str(check_host(mirrored, wide, images))


def test_images_that_the_host_does_not_look_at():
    wide, images = Wide(), torch.rand(*WIDE)
    report = check_host(wide.host(), lambda _: wide(images), images)
    assert report.verdict == "still"
    assert "does not use the images" in str(report)
    vla, forward, images_BV3HW = tiny()
    report = check_host(
        host_of(vla), lambda i: forward(torch.stack([i[:, 0], images_BV3HW[:, 1]], 1)), images_BV3HW
    )
    assert report.verdict == "still"
    assert "cells of view 2" in str(report)


def test_what_no_arrangement_explains_is_said_to_be_unclear():
    wide, images = Wide(), torch.rand(*WIDE)
    shuffled = wide.host(visual=lambda hidden_BLD: hidden_BLD[:, [8, 6, 3, 9, 7, 10, 5, 4]])
    report = check_host(shuffled, wide, images)
    assert (report.verdict, report.ok) == ("unclear", False)
    assert "no arrangement of the grid explains" in str(report)


def test_images_of_one_colour_and_of_another_range():
    wide = Wide()
    assert check_host(wide.host(), wide, torch.zeros(*WIDE)).ok
    assert check_host(wide.host(), wide, 5 * torch.randn(*WIDE)).ok


def test_random_numbers_of_the_forward_do_not_matter_and_ours_not_to_others():
    wide, images = Wide(), torch.rand(*WIDE)

    def noisy(images: Tensor) -> None:
        hidden = wide.patches(images[:, 0]).flatten(2).mT
        wide.blocks[0](torch.cat([torch.randn(len(images), 3, 8) * 100, hidden], dim=1))

    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    assert check_host(wide.host(), noisy, images).ok
    assert torch.equal(torch.rand(3), expected)


def test_forwards_and_images_that_do_not_fit():
    wide, images = Wide(), torch.rand(*WIDE)
    with pytest.raises(TapError, match="never reached its first block of Wide"):
        check_host(wide.host(), lambda images: wide.patches(images[:, 0]), images)
    with pytest.raises(TapError, match=r"makes \(2, 8, 8\) of \(2, 11, 8\), expected .*1 views x 3 x 4"):
        check_host(wide.host(3, 4), wide, images)
    with pytest.raises(SpatialForcingError, match="images of 2 views, but Wide has tokens for 1"):
        check_host(wide.host(), wide, images.expand(-1, 2, -1, -1, -1))
    padded = wide.host()
    padded = replace(padded, layout=Layout(1, 2, 4, "pad", anchor=(0.0, 0.0)))
    with pytest.raises(SpatialForcingError, match="all is padding"):
        check_host(padded, lambda _: wide(images), torch.rand(2, 1, 3, 1, 1000))
    with pytest.raises(SpatialForcingError, match=r"got: \(3, 16, 32\)"):
        check_host(wide.host(), wide, [images[0, 0]])


def test_a_compiled_model_is_run_as_it_was_written():
    wide, images = Wide(), torch.rand(*WIDE)
    compiled = torch.compile(wide, backend="eager")
    compiled(images)
    assert check_host(wide.host(), compiled, images).ok


# ---- slices ------------------------------------------------------------------------------------------------


def test_a_slice_says_where_the_visual_tokens_are():
    wide, images = Wide(), torch.rand(*WIDE)
    sf = SpatialForcing(wide.host(), load_teacher("untrained-tiny"), site="blocks.1")
    with sf.watch():
        hidden_BLD = wide(images)
    assert torch.equal(sf.tap.visual_BND(), hidden_BLD[:, 3:])
    sf(images).backward()
    assert wide.patches.weight.grad.abs().sum() > 0


def test_what_is_neither_slice_nor_function_is_refused():
    with pytest.raises(SpatialForcingError, match=r"slice of the sequence or a function.*got 3"):
        Wide().host(visual=3)
    with pytest.raises(SpatialForcingError, match="got None"):
        Wide().host(visual=None)
