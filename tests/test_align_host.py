"""What an alignment leaves alone: the host that it is attached to, and the teacher."""

import copy

import pytest
import torch
from small_alignment import VIEWS, WIDTH, ConvTeacher, Setting
from torch import nn

from spatial_forcing.align import SpatialForcing
from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.tap import TapError


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
