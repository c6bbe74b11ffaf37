"""The tap: which forward it holds, which layer it reads, and the errors that say why it holds nothing."""

import copy
from dataclasses import replace

import pytest
import torch
from small_vla import observation, tiny_vla, watch_and_run
from torch import Tensor, nn

from spatial_forcing.grid import Layout
from spatial_forcing.tap import Host, Tap, TapError

LAYOUT = Layout(views=1, rows=2, cols=2)


# ---- when it fires -----------------------------------------------------------------------------------------


def test_it_holds_the_first_forward_of_the_last_watch():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    first, second = observation(1), observation(3)
    with tap.watch():
        vla(*first)
        vla(*second)
    assert tap.visual_BND().shape == (1, 8, 16)
    vla(*second)
    assert tap.visual_BND().shape == (1, 8, 16)
    with tap.watch():
        vla(*second)
    assert tap.visual_BND().shape == (3, 8, 16)
    with tap.watch():
        assert tap.hidden_BLD is None


def test_it_disarms_when_the_forward_fails():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    with pytest.raises(ValueError, match="out of memory"), tap.watch():
        raise ValueError("out of memory")
    vla(*observation())
    assert tap.hidden_BLD is None


def test_it_reads_a_norm_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    model, x = Keyword(), torch.randn(1, 3, 4)
    tap = Tap(Host("keyword", [nn.Identity()], model.norm, 4, Layout(1, 1, 3), lambda h: h), 1)
    with tap.watch():
        model(x)
    assert tap.visual_BND() is x


@pytest.mark.parametrize(
    ("blocks", "recommended", "layer"), [(32, None, 24), (4, None, 3), (1, None, 1), (18, 12, 12)]
)
def test_the_default_layer_is_three_quarters_or_what_the_host_recommends(blocks, recommended, layer):
    modules = nn.ModuleList(nn.ModuleDict({"input_layernorm": nn.Identity()}) for _ in range(blocks))
    record = Host("host", modules, nn.Identity(), 4, LAYOUT, lambda h: h, layer=recommended)
    assert Tap(record).layer == record.default_layer == layer


def test_a_copy_of_a_watched_host_works_and_leaves_the_original_alone():
    # As an exponential moving average makes one, between steps.
    vla, inputs = tiny_vla(), observation()
    tap = Tap(vla.spatial_forcing_host(), 2)
    with tap.watch():
        out = vla(*inputs)
    held = tap.hidden_BLD
    ema = copy.deepcopy(vla)
    assert tap.hidden_BLD is held
    with tap.watch():
        assert torch.equal(ema(*inputs), out)
        assert tap.hidden_BLD is None


# ---- errors ------------------------------------------------------------------------------------------------


def test_a_tap_that_never_fired_raises():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    with pytest.raises(TapError, match="after block 2 of 4 of TinyVLA never fired"):
        tap.visual_BND()
    with tap.watch():
        tiny_vla()(*observation())
    with pytest.raises(TapError, match="another model"):
        tap.visual_BND()
    vla(*observation())
    with pytest.raises(TapError, match=r"inside `with sf\.watch"):
        tap.visual_BND()


@pytest.mark.parametrize("layer", [0, -1, 5])
def test_layers_out_of_range(layer):
    with pytest.raises(TapError, match=f"has 4 blocks; the layer must be 1 to 4, got {layer}"):
        Tap(tiny_vla().spatial_forcing_host(), layer)


@pytest.mark.parametrize("entry", ["input_layernorm", "forward"])
def test_a_block_without_the_named_norm(entry):
    record = replace(tiny_vla().spatial_forcing_host(), entry=entry)
    with pytest.raises(TapError, match=rf"no module '{entry}'. It has: norm1, attention, norm2, mlp"):
        Tap(record, 2)


@pytest.mark.parametrize(
    "wrong", [{"layout": Layout(2, 2, 3)}, {"width": 8}, {"visual": lambda hidden_BLD: hidden_BLD[:, 0]}]
)
def test_visual_tokens_that_do_not_fit_the_record(wrong):
    vla = tiny_vla()
    tap = Tap(replace(vla.spatial_forcing_host(), **wrong), 2)
    watch_and_run(tap, vla, observation())
    with pytest.raises(TapError, match=r"shape \(\d, 14, \d+\): check Host\.layout and Host\.visual"):
        tap.visual_BND()


def test_a_host_without_gradient_raises_where_gradients_are_wanted():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    vla.requires_grad_(False)
    vla.blocks[2].requires_grad_(True)  # after the tap: does not help
    watch_and_run(tap, vla, observation())
    with pytest.raises(TapError, match=r"carry no gradient.*unfreeze"):
        tap.require_gradient()
    with torch.no_grad():
        tap.require_gradient()  # evaluation

    vla.requires_grad_(True)
    with torch.no_grad():
        watch_and_run(tap, vla, observation())
    with pytest.raises(TapError, match="run the forward with gradients on"):
        tap.require_gradient()

    vla.requires_grad_(False)
    vla.blocks[0].mlp[0].weight.requires_grad_(
        True
    )  # one trained weight before the tap is enough, as with LoRA
    watch_and_run(tap, vla, observation())
    tap.require_gradient()
