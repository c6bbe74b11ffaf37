"""Sites: their names, what is read there, several in one forward, and the vision encoder."""

from dataclasses import replace

import pytest
import torch
from small_vision import INNER, SIDE, VIEWS, Colours, Seeing, images
from small_vla import observation, tiny_vla
from torch import Tensor

from spatial_forcing import Layout, SpatialForcing, Tap, TapError, check_host

# ---- names -------------------------------------------------------------------------------------------------


def test_sites_of_blocks_are_the_layers_and_what_enters_the_first_block():
    vla, inputs = tiny_vla(), observation()
    host = vla.spatial_forcing_host()
    taps = {k: Tap(host.site(f"blocks.{k}")) for k in range(5)}
    by_layer = {k: Tap(host, k) for k in range(1, 5)}
    first: list[Tensor] = []
    vla.blocks[0].register_forward_pre_hook(lambda _, args: first.append(args[0]))
    for tap in (*taps.values(), *by_layer.values()):
        tap.armed = True
    vla(*inputs)
    assert taps[0].hidden_BLD is first[0]
    for k, tap in by_layer.items():
        assert taps[k].hidden_BLD is tap.hidden_BLD
        assert torch.equal(taps[k].visual_BND(), tap.visual_BND())
        assert tap.site.name == f"blocks.{k}"
        assert tap.layer == k


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("blocks.-1", "blocks.2"),
        ("blocks.-3", "blocks.0"),
        ("vision.-1", "vision.3"),
        ("vision.-2", "vision.2"),
    ],
)
def test_negative_numbers_count_from_after_the_last_block(name, counted):
    host = Seeing().spatial_forcing_host()
    assert host.site(name).name == counted
    assert host.site(name).reader is host.site(counted).reader


def test_the_recommended_site_is_the_default():
    host = tiny_vla().spatial_forcing_host()
    assert host.site_at().name == "blocks.3"
    assert host.site_at(2).name == "blocks.2"


@pytest.mark.parametrize("name", ["blocks.5", "blocks.-6", "blocks", "blocks.x", "layers.2", "", 3, None])
def test_unknown_sites_list_what_there_is(name):
    with pytest.raises(
        TapError, match=r"has no site .*It has blocks.0 to blocks.4; -1 is after the last block"
    ):
        tiny_vla().spatial_forcing_host().site(name)


def test_sites_of_a_vision_encoder_that_is_not_described():
    with pytest.raises(TapError, match=r"TinyVLA does not describe its vision encoder.*Host\.vision"):
        tiny_vla().spatial_forcing_host().site("vision.-1")
    with pytest.raises(TapError, match=r"It has blocks.0 to blocks.2, and vision.0 to vision.3"):
        Seeing().spatial_forcing_host().site("vision.4")


def test_where_nothing_reads_the_end_there_is_no_site():
    host = replace(Seeing().spatial_forcing_host(), final_norm=None)
    assert host.site("blocks.1").name == "blocks.1"
    with pytest.raises(TapError, match=r"no site 'blocks.-1'. It has blocks.0 to blocks.1"):
        host.site("blocks.-1")


def test_a_site_is_taken_by_a_tap_alone():
    host = tiny_vla().spatial_forcing_host()
    with pytest.raises(TapError, match="give no layer with it"):
        Tap(host.site("blocks.2"), 2)


# ---- the vision encoder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", ["once", "per view"])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_vision_tokens_are_the_encoders_view_by_view(calls, class_token, layer):
    model = Seeing(calls, class_token)
    tap = Tap(model.spatial_forcing_host().site(f"vision.{layer}"))
    with tap.watch():
        model(images())
    expected = model.vision_tokens(layer)
    assert torch.equal(tap.visual_BND(), expected)
    assert tap.visual_BND().shape == (3, VIEWS * SIDE * SIDE, INNER)
    assert tap.layout.tokens == VIEWS * SIDE * SIDE
    with tap.watch():  # a second forward of one watch is not read
        model(images())
        expected = model.vision_tokens(layer)
        model(images())
    assert torch.equal(tap.visual_BND(), expected)


@pytest.mark.parametrize("calls", ["once", "per view"])
@pytest.mark.parametrize("class_token", [False, True])
def test_the_perturbation_check_of_a_vision_encoder(calls, class_token):
    model = Seeing(calls, class_token).eval()
    host = model.spatial_forcing_host()
    report = check_host(host, model, images(), site="vision.0")
    assert report.ok, report
    assert report.declared == 1
    wrong = replace(host, vision=replace(host.vision, layout=Layout(VIEWS, 2, 8)))
    assert not check_host(wrong, model, images(), site="vision.0").ok
    assert not host.site("vision.0").reader._forward_pre_hooks


def test_several_sites_are_tapped_in_one_forward_and_all_get_gradient():
    model = Seeing()
    host = model.spatial_forcing_host()
    taps = [Tap(host.site(name)) for name in ("vision.1", "vision.-1", "blocks.0", "blocks.1")]
    plain, shown = model(images(1)), images()
    assert plain.shape == (1,)
    for tap in taps:
        tap.armed = True
    model(shown)
    for tap in taps:
        tap.require_gradient()
        (gradient,) = torch.autograd.grad(
            tap.visual_BND().square().sum(), model.patches.weight, retain_graph=True
        )
        assert gradient.abs().max() > 0


def test_vision_calls_that_are_not_as_described():
    model = Seeing("once")
    vision = replace(model.spatial_forcing_host().vision, calls="per view")
    tap = Tap(replace(model.spatial_forcing_host(), vision=vision).site("vision.-1"))
    with tap.watch():
        model(images())
    with pytest.raises(
        TapError, match=r"fired 1 times, expected once for each of 2 views: .*VisionEncoder\.calls"
    ):
        tap.visual_BND()
    model = Seeing("per view")
    vision = replace(model.spatial_forcing_host().vision, calls="once")
    tap = Tap(replace(model.spatial_forcing_host(), vision=vision).site("vision.-1"))
    with tap.watch():
        model(images(4))
    # Four images of one view look like two samples of two views: the batch will not fit.
    sf = SpatialForcing(replace(model.spatial_forcing_host(), vision=vision), Colours(), site="vision.-1")
    shown = images(4)
    with sf.watch():
        model(shown)
    with pytest.raises(Exception, match="batch of 4, but the watched forward had a batch of 2"):
        sf(shown)


def test_a_vision_encoder_is_aligned_with_the_projector_of_its_width():
    model, shown = Seeing(), images()
    sf = SpatialForcing(model.spatial_forcing_host(), Colours(), site="vision.-1")
    with sf.watch():
        model(shown)
    sf(shown).backward()
    assert sf.projector.fc1.in_features == INNER
    assert model.patches.weight.grad.abs().max() > 0
    assert model.merge.weight.grad is None
    assert "after block 3 of 3 of the vision encoder (32 visual tokens, width 12)" in sf.describe()


def test_a_vision_encoder_that_is_frozen_is_told():
    model, shown = Seeing(), images()
    for module in (model.patches, model.encoder):
        module.requires_grad_(False)
    model.position.requires_grad_(False)
    sf = SpatialForcing(model.spatial_forcing_host(), Colours(), site="vision.-1")
    with sf.watch():
        model(shown)
    with pytest.raises(
        TapError, match=r"of the vision encoder of Seeing carry no gradient.*vision encoder up to"
    ):
        sf(shown)
