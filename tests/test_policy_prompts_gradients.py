"""Policies with images in their prompt: where a gradient comes from, in GR00T and with LoRA."""

import re

import pytest
import torch
from small_policies import small_batch, small_policy

from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.tap import TapError

REACHED = [
    ({"tune_llm": True}, 3),
    ({"tune_llm": False, "tune_visual": True}, 3),
    ({"tune_llm": False, "tune_top_llm_layers": 3}, 3),
    ({"tune_llm": False, "tune_top_llm_layers": 2}, 4),
    ({"tune_llm": False, "tune_top_llm_layers": 1}, 4),
]


@pytest.mark.parametrize(("options", "layer"), REACHED)
def test_the_default_tap_of_groot_is_where_a_gradient_comes_from(folder, options, layer):
    policy = small_policy("groot", folder, forcing={}, **options)
    assert policy.forcing.tap.layer == layer
    _, logs = policy(small_batch(policy))
    assert logs["gradient_ratio"] > 0
    policy.zero_grad()
    policy.forcing(torch.rand(3, 2, 3, 128, 128)).backward()
    assert any(p.grad is not None and p.grad.any() for p in policy._groot_model.parameters())


def test_a_tap_before_what_trains_in_groot_stops_with_an_error(folder):
    forcing = {"site": "blocks.2"}
    policy = small_policy("groot", folder, forcing=forcing, tune_llm=False, tune_top_llm_layers=2)
    with pytest.raises(TapError, match=r"after block 2.*tune_top_llm_layers"):
        policy(small_batch(policy))


@pytest.mark.parametrize("kind", ["groot", "eo1"])
def test_the_lora_of_the_advice_trains_the_blocks_before_the_tap(folder, kind):
    from peft import LoraConfig, inject_adapter_in_model

    (pattern,) = re.findall(r"target_modules='(.*)'", RECORDS[kind].unfreeze)
    policy = small_policy(kind, folder, forcing={}, **{"tune_llm": False} if kind == "groot" else {})
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.startswith("forcing."))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=pattern), policy)
    assert policy.forcing.tap.layer == 3
    policy(small_batch(policy))
    policy.forcing(torch.rand(3, 2, 3, 128, 128)).backward()
    reached = [name for name, p in policy.named_parameters() if "lora_B" in name and p.grad is not None]
    layers = [name.split(".layers.")[1].partition(".")[0] for name in reached]
    assert layers == ["0", "0", "1", "1", "2", "2"]
    assert all(policy.get_parameter(name).grad.any() for name in reached)
