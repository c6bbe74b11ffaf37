"""The gradient ratio: measured at the tap, under checkpointing too, and not a number where there is none."""

import math

import pytest
import torch
from small_alignment import Setting
from torch.utils.checkpoint import checkpoint

from spatial_forcing.tap import TapError


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
