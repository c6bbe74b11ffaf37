"""Several alignments: lists that cannot be, features that are no numbers, taps without a gradient."""

import math

import pytest
import torch
from small_alignment import ConvTeacher, Setting, Several, two
from small_vision import Colours, Seeing, images

from spatial_forcing import Alignment, SpatialForcing, TapError
from spatial_forcing.errors import SpatialForcingError


@pytest.mark.parametrize(
    ("alignments", "says"),
    [
        (lambda t: [], "holds at least one"),
        (lambda t: [t], "holds spatial_forcing.Alignment records; got ConvTeacher"),
        (
            lambda t: [Alignment("blocks.2", t), Alignment("blocks.2", t)],
            r"called blocks_2.*Alignment\(..., name=",
        ),
        (lambda t: [Alignment("blocks.2", t, name="a.b")], "letters, digits, - and _.*'a.b'"),
        (lambda t: [Alignment("blocks.2", t, name="values")], "own; got 'values'"),
        (lambda t: [Alignment("blocks.2", None)], "something that has a width"),
        (lambda t: [Alignment("blocks.2", t, "cosin")], "Did you mean 'cosine'"),
        (lambda t: [Alignment("blocks.2", t, weight=-1)], "0 or more, got -1"),
        (lambda t: [Alignment("blocks.2", t, weight="linear")], "does not say initial"),
        (lambda t: [Alignment("blocks.9", t)], "no site 'blocks.9'. It has blocks.0 to blocks.4"),
    ],
)
def test_lists_that_cannot_be(alignments, says):
    setting = Setting()
    hooks = [dict(module._forward_pre_hooks) for module in setting.vla.modules()]
    with pytest.raises(SpatialForcingError, match=says):
        SpatialForcing(setting.vla.spatial_forcing_host(), alignments(setting.teacher))
    assert hooks == [dict(module._forward_pre_hooks) for module in setting.vla.modules()]


def test_what_is_wrong_leaves_no_hook_behind():
    setting = Setting()
    setting.sf.detach()
    host = setting.vla.spatial_forcing_host()
    for wrong in ({"norm": "group"}, {"standardize": (torch.zeros(4), torch.ones(4))}):
        with pytest.raises(SpatialForcingError):
            SpatialForcing(host, setting.teacher, **wrong)
    assert not any(module._forward_pre_hooks for module in setting.vla.modules())


@pytest.mark.parametrize("more", [{"weight": 1.0}, {"site": "blocks.2"}, {"norm": "batch"}])
def test_a_list_says_everything(more):
    setting = Setting()
    with pytest.raises(SpatialForcingError, match="said in each of the alignments"):
        SpatialForcing(setting.vla.spatial_forcing_host(), two(setting.teacher), **more)


def test_features_that_are_no_numbers_are_found_in_any_alignment():
    setting = Several(*two(ConvTeacher()))
    features = setting.features()
    features.tokens_BVHWC[1, 1, 2, 3, 4] = math.nan
    with pytest.raises(SpatialForcingError, match=r"sample 1, view 1, row 2, column 3"):
        setting.loss({"late": setting.images_BV3HW, "early": features})
    with pytest.raises(SpatialForcingError, match=r"sample 1, view 1"):
        setting.sf.check_loss(math.nan, {"late": setting.images_BV3HW, "early": features})


def test_every_alignment_that_pulls_needs_gradient():
    model, shown = Seeing(), images()
    model.patches.requires_grad_(False)
    model.position.requires_grad_(False)
    model.encoder.requires_grad_(False)
    for weight in (0.5, 0.0):
        alignments = [Alignment("vision.-1", Colours(), weight=weight), Alignment("blocks.-1", Colours())]
        sf = SpatialForcing(model.spatial_forcing_host(), alignments)
        with sf.watch():
            model(shown)
        if weight:
            with pytest.raises(TapError, match="vision encoder of Seeing carry no gradient"):
                sf(shown)
        else:
            sf(shown).backward()
