"""Laws of several alignments: a sum, asked once, told apart by name; one is what it always was."""

import copy

import pytest
import torch
from small_alignment import (
    CHANNELS,
    SIDE,
    VIEWS,
    ConvTeacher,
    Setting,
    Several,
    TwoLayers,
    assert_same,
    small_store,
    two,
)
from small_vision import Colours, Seeing, images
from torch import Tensor

from spatial_forcing import Alignment, Given, SpatialForcing
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.features import Features
from spatial_forcing.grid import flip, resample
from spatial_forcing.losses.cosine import cosine_distance
from spatial_forcing.losses.relations import relation_distance


def alone(setting: Several, index: int) -> SpatialForcing:
    """One of the alignments by itself, with the same projector."""
    part = setting.sf.parts[index]
    sf = SpatialForcing(setting.vla.spatial_forcing_host(), [part.alignment])
    sf.projector.load_state_dict(setting.sf.projector_of(part.name).state_dict())
    return sf


# ---- a sum -------------------------------------------------------------------------------------------------


def test_two_alignments_have_the_loss_and_the_gradient_of_their_sum():
    setting = Several(*two(ConvTeacher()))
    gradients = setting.gradients(loss := setting.loss())
    losses, summed = [], dict[str, Tensor]()
    for index, name in enumerate(("late", "early")):
        sf = alone(setting, index)
        setting.vla.zero_grad()
        with sf.watch():
            setting.vla(*setting.inputs)
        one = sf(setting.images_BV3HW)
        one.backward()
        losses.append(one.detach())
        found = {f"vla.{n}": p.grad for n, p in setting.vla.named_parameters()}
        found |= {f"sf.projectors.{name}.{n}": p.grad for n, p in sf.projector.named_parameters()}
        for parameter, gradient in found.items():
            if gradient is not None:
                summed[parameter] = summed.get(parameter, torch.zeros(())) + gradient
        sf.detach()
    assert loss.item() == pytest.approx(sum(losses).item(), rel=1e-6)
    assert losses[0] != losses[1]
    assert_same({name: g for name, g in gradients.items() if g is not None}, summed, atol=1e-6)


def test_the_numbers_of_each_and_together_are_logged():
    setting = Several(*two(ConvTeacher()))
    loss = setting.loss()
    logs = {name: value.item() for name, value in setting.sf.logs.items()}
    each = [
        f"{name}/{key}" for name in ("late", "early") for key in ("align_loss", "cosine", "valid_fraction")
    ]
    assert list(logs) == [*each, "align_loss", "weighted_align_loss"]
    assert logs["align_loss"] == pytest.approx(logs["late/align_loss"] + logs["early/align_loss"])
    expected = 0.5 * logs["late/align_loss"] + 2.0 * logs["early/align_loss"]
    assert logs["weighted_align_loss"] == loss.item() == pytest.approx(expected)
    assert logs["late/cosine"] == pytest.approx(1 - logs["late/align_loss"])
    # Whatever the loss, the cosine is the cosine.
    sf, features = setting.sf, setting.features()
    target_BNC, valid_BN = sf.target(features, of="early")
    visual_BND = sf.parts[1].tap.visual_BND()
    projected_BNC = sf.projector_of("early")(visual_BND, valid_BN)
    other = SpatialForcing(setting.vla.spatial_forcing_host(), [sf.parts[1].alignment])
    assert torch.equal(other.target(features)[0], target_BNC)
    compared = projected_BNC, sf.target(setting.images_BV3HW, of="early")[0], valid_BN
    assert logs["early/cosine"] == pytest.approx(1 - cosine_distance(*compared).item(), abs=1e-6)
    assert logs["early/align_loss"] == pytest.approx(relation_distance(*compared).item(), abs=1e-6)


def test_a_list_of_one_is_the_same_bit_for_bit_as_the_flat_arguments():
    teacher, results = ConvTeacher(), []
    for listed in (False, True):
        torch.manual_seed(9)
        setting = Setting(position_embedding=0.2, norm="batch", site="blocks.2", weight=0.7)
        if listed:
            setting.sf.detach()
            torch.manual_seed(0)
            setting = Setting()
            setting.sf.detach()
        torch.manual_seed(11)
        host, options = setting.vla.spatial_forcing_host(), {"position_embedding": 0.2, "norm": "batch"}
        if listed:
            setting.sf = SpatialForcing(host, [Alignment("blocks.2", teacher, weight=0.7, **options)])
        else:
            setting.sf = SpatialForcing(host, teacher, 0.7, site="blocks.2", **options)
        after = torch.rand(3)  # as many random numbers were drawn
        loss = setting.loss()
        state = copy.deepcopy(setting.sf.state_dict())
        results.append((after, loss.detach(), state, setting.gradients(loss), setting.sf.logs))
    (after, loss, state, gradients, logs), (after2, loss2, state2, gradients2, logs2) = results
    assert torch.equal(after, after2)
    assert torch.equal(loss, loss2)
    assert list(state) == list(state2) == [*(n for n in state if n.startswith("projector."))]
    assert all(torch.equal(state[n], state2[n]) for n in state)
    assert all(g is None or torch.equal(gradients2[n], g) for n, g in gradients.items())
    assert list(logs) == list(logs2) == ["align_loss", "cosine", "valid_fraction"]


def test_the_host_is_the_same_bits_under_several_taps():
    model, shown = Seeing(), images()
    expected = model(shown)
    sf = SpatialForcing(
        model.spatial_forcing_host(),
        [Alignment(site, Colours()) for site in ("vision.1", "vision.-1", "blocks.0", "blocks.-1")],
    )
    with sf.watch():
        assert torch.equal(model(shown), expected)
    loss = sf(shown)
    assert [part.name for part in sf.parts] == ["vision_1", "vision_3", "blocks_0", "blocks_2"]
    loss.backward()
    for part in sf.parts:
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in sf.projector_of(part.name).parameters()
        )
    sf.detach()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_alignments_at_one_site_share_a_tap():
    teacher = ConvTeacher()
    setting = Several(*two(teacher, site="blocks.3"))
    assert len(setting.sf.taps) == 1
    assert setting.loss() > 0


# ---- a batch is asked once ---------------------------------------------------------------------------------


def test_two_alignments_on_one_teacher_ask_it_once():
    teacher, calls = ConvTeacher(), []
    teacher.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    setting = Several(*two(teacher))
    setting.loss()
    assert calls == [3]


def test_two_layers_of_one_teacher_are_asked_for_in_one_pass():
    teacher = TwoLayers()
    setting = Several(*two(teacher, layer=0, loss="cosine"))
    loss = setting.loss()
    assert teacher.asked == [(0, 1)]
    torch.manual_seed(5)
    other = Several(*two(teacher, layer=1, loss="cosine"))
    assert other.loss().item() != loss.item(), "the layers differ, and so must the targets"
    other = Several(*two(teacher, layer=0, loss="cosine", position_embedding=0.0))
    early_BNC, _ = other.sf.target(other.images_BV3HW, of="early")
    plain_BNC = resample(teacher.layers_of(other.images_BV3HW, (0,))[0], SIDE, SIDE).tokens_BVHWC
    torch.testing.assert_close(early_BNC, plain_BNC.flatten(1, 3))


def test_a_teacher_of_one_layer_says_so():
    with pytest.raises(SpatialForcingError, match=r"Layers 0.*ConvTeacher were asked for, .*one layer only"):
        Several(*two(ConvTeacher(), layer=0, site="blocks.2")[1:]).loss()


def test_two_targets_are_asked_each_and_may_be_given_different_things(tmp_path):
    online, store = ConvTeacher(), small_store(tmp_path / "cache")
    setting = Several(
        Alignment("blocks.3", online, name="online"), Alignment("blocks.2", store, name="stored", weight=1.0)
    )
    frames = torch.tensor([0, 3, 4])
    setting.act()
    given = {"online": setting.images_BV3HW, "stored": Given(frames, flip())}
    loss = setting.sf(given)
    target_BNC, _ = setting.sf.target(given, of="stored")
    expected_BNC, _ = setting.sf.target(
        {"online": setting.images_BV3HW, "stored": store.read(frames)}, of="stored"
    )
    mirrored = expected_BNC.view(3, VIEWS, SIDE, SIDE, CHANNELS).flip(3).reshape(3, -1, CHANNELS)
    torch.testing.assert_close(target_BNC, mirrored, atol=1e-5, rtol=0)
    loss.backward()
    with pytest.raises(SpatialForcingError, match="Nothing was given to the alignments stored"):
        setting.sf({"online": setting.images_BV3HW})
    with pytest.raises(UnknownNameError, match=r"Unknown alignment 'store'. Did you mean 'stored'"):
        setting.sf(given | {"store": frames})
    with pytest.raises(UnknownNameError, match="Unknown alignment 'stor'"):
        setting.sf.target(given, of="stor")


def test_frames_of_a_store_are_enough_for_one_alignment(tmp_path):
    store = small_store(tmp_path / "cache")
    setting, frames = Several(Alignment(None, store)), torch.tensor([0, 3, 4])
    assert setting.loss(frames).item() == setting.loss(store.read(frames)).item()


def test_the_gradient_ratio_is_that_of_all_tapped_streams_together():
    model, shown = Seeing(), images()
    sf = SpatialForcing(
        model.spatial_forcing_host(), [Alignment("vision.-1", Colours()), Alignment("blocks.-1", Colours())]
    )
    with sf.watch():
        action = model(shown).square().mean()
    align = sf(shown)
    streams = [stream for tap in sf.taps for stream in tap.streams]
    assert len(streams) == VIEWS + 1
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, streams, retain_graph=True)]).norm()
        for loss in (align, action)
    ]
    assert sf.gradient_ratio(action, align).item() == pytest.approx((norms[0] / norms[1]).item(), rel=1e-5)


def test_several_alignments_describe_themselves():
    setting = Several(*two(ConvTeacher(), weight="linear:initial=1,final=0,end=10"))
    head, late, early = setting.sf.describe().splitlines()
    assert head == "Spatial Forcing: 2 alignments"
    assert late.startswith(
        "  late: TinyVLA after block 3 of 4 (8 visual tokens, width 16) -> teacher width 8;"
    )
    assert early.endswith("; loss relations; weight linear:initial=1,final=0,end=10")


def test_the_names_in_a_state_dict_are_the_alignments():
    setting = Several(*two(ConvTeacher()))
    names = {name.split(".")[1] for name in setting.sf.state_dict()}
    assert names == {"late", "early"}
    assert all(name.startswith("projectors.") for name in setting.sf.state_dict())
    assert not any(isinstance(module, ConvTeacher) for module in setting.sf.modules())
    teacher = setting.sf.parts[0].alignment.target
    teacher.eval()
    setting.sf.train()
    assert not teacher.training
    assert copy.deepcopy(setting.sf).state_dict().keys() == setting.sf.state_dict().keys()


def test_features_of_one_batch_serve_all():
    setting = Several(*two(ConvTeacher()))
    features = setting.features()
    valid = Features(features.tokens_BVHWC, features.valid_BVHW.clone())
    valid.valid_BVHW[:, 1] = False
    setting.loss(valid)
    assert [setting.sf.logs[f"{name}/valid_fraction"].item() for name in ("late", "early")] == [0.5, 0.5]
