"""Scheduled weights of alignments: counted in steps, saved and resumed."""

import io

import pytest
import torch
from small_alignment import VIEWS, ConvTeacher, Setting, Several, two

from spatial_forcing.schedules.linear import Linear

RAMP = Linear(initial=1.0, final=0.0, end=4)


def test_a_scheduled_weight_is_that_of_the_step_and_zero_pulls_no_more():
    scheduled, constant = Setting(weight=RAMP), Setting(weight=1.0)
    for step, weight in enumerate((1.0, 0.75, 0.5, 0.25, 0.0, 0.0)):
        assert scheduled.sf.step == step
        assert scheduled.sf.weight == weight
        assert scheduled.loss().item() == pytest.approx(weight * constant.loss().item(), rel=1e-6)
        assert scheduled.sf.logs["align_weight"] == weight
        assert list(scheduled.sf.logs) == [*constant.sf.logs, "align_weight"]
    scheduled.vla.requires_grad_(False)
    assert scheduled.loss() == 0


def test_evaluation_makes_no_steps():
    setting = Setting(weight=RAMP)
    setting.loss()
    with torch.no_grad():
        setting.loss()
    setting.sf.eval()
    setting.loss()
    assert setting.sf.step == 1


def test_the_step_may_be_set_where_a_loop_counts_otherwise():
    setting = Setting(weight=RAMP)
    setting.sf.step = 3
    assert setting.sf.weight == 0.25
    assert setting.sf.state_dict()["training_step"] == 3


def trained(setting: Setting, steps: int) -> Setting:
    """After some steps of training on batches that depend on the step."""
    optimizer = torch.optim.SGD([*setting.vla.parameters(), *setting.sf.parameters()], lr=0.1)
    for _ in range(steps):
        generator = torch.Generator().manual_seed(setting.sf.step)
        setting.images_BV3HW = torch.rand(3, VIEWS, 3, 28, 28, generator=generator)
        setting.inputs = (setting.images_BV3HW, *setting.inputs[1:])
        optimizer.zero_grad()
        (setting.act() + setting.sf(setting.images_BV3HW)).backward()
        optimizer.step()
    return setting


@pytest.mark.parametrize("several", [False, True])
def test_a_resumed_run_continues_its_schedule(several):
    teacher = ConvTeacher()

    def fresh() -> Setting:
        return Several(*two(teacher, weight=RAMP)) if several else Setting(weight=RAMP)

    straight, stopped, resumed = trained(fresh(), 5), trained(fresh(), 2), fresh()
    saved = io.BytesIO()
    torch.save({"vla": stopped.vla.state_dict(), "sf": stopped.sf.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved)
    resumed.vla.load_state_dict(state["vla"])
    resumed.sf.load_state_dict(state["sf"])
    resumed.inputs = stopped.inputs
    assert resumed.sf.step == 2
    trained(resumed, 3)
    assert resumed.sf.step == straight.sf.step == 5
    for of in ("vla", "sf"):
        a, b = getattr(straight, of).state_dict(), getattr(resumed, of).state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_states_of_before_there_were_schedules_load_and_the_other_way_round():
    constant, scheduled = Setting(), Setting(weight=RAMP)
    assert "training_step" not in constant.sf.state_dict()
    old = {name: value + 1 for name, value in constant.sf.state_dict().items()}
    scheduled.loss()
    scheduled.sf.load_state_dict(old)
    assert torch.equal(scheduled.sf.projector.fc1.weight, old["projector.fc1.weight"])
    assert scheduled.sf.step == 1, "nothing is known of steps: those that were made stay"
    scheduled.loss()
    constant.sf.load_state_dict(scheduled.sf.state_dict())
    assert constant.sf.step == 2
