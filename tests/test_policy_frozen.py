"""What trains in LeRobot's policies: frozen hosts stop, whole language models are warned of."""

import logging

import pytest
import torch
from small_policies import PICTURE, small_batch, small_config, small_policy
from torch import Tensor

from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.tap import TapError

KINDS = tuple(PICTURE)
FROZEN = [
    ("smolvla", {"train_expert_only": True}, r"--policy\.train_expert_only=false.*LoRA.*--peft"),
    ("pi0", {"train_expert_only": True}, r"--policy\.train_expert_only=false.*LoRA.*--peft"),
    (
        "xvla",
        {
            "train_policy_transformer": False,
            "freeze_vision_encoder": True,
            "freeze_language_encoder": True,
        },
        r"--policy\.train_policy_transformer=true",
    ),
    ("evo1", {"training_stage": "stage1"}, r"--policy\.training_stage=stage2"),
    ("groot", {"tune_llm": False}, r"--policy\.tune_top_llm_layers=4.*tune_llm=true.*LoRA.*--peft"),
]


@pytest.mark.parametrize(("kind", "options", "says"), FROZEN)
def test_frozen_hosts_stop_before_the_first_step(folder, kind, options, says):
    policy = small_policy(kind, folder, forcing={}, **options)
    if kind == "xvla":  # the projection of its vision tower has no flag of its own
        policy.model.vlm.requires_grad_(False)
    with pytest.raises(TapError, match=says):
        policy(small_batch(policy))


def test_smolvlas_own_defaults_are_frozen_though_the_state_token_trains(folder):
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    assert SmolVLAConfig().train_expert_only, "LeRobot's default has changed: the advice must, too"
    policy = small_policy("smolvla", folder, train_expert_only=True)
    host = host_of(policy)
    seen: list[Tensor] = []
    host.reader(3).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    policy(small_batch(policy))
    (gradient,) = torch.autograd.grad(seen[0][:, -1].sum(), policy.model.state_proj.weight, retain_graph=True)
    assert gradient.abs().sum() > 0, "the tapped stream carries a gradient ..."
    (gradient,) = torch.autograd.grad(
        host.visual(seen[0]).sum(), policy.model.state_proj.weight, allow_unused=True
    )
    assert gradient is None or (gradient == 0).all(), "... but not its visual tokens"


@pytest.mark.parametrize(("kind", "options", "says"), FROZEN)
def test_weight_zero_trains_frozen_hosts(folder, kind, options, says):
    policy = small_policy(kind, folder, forcing={"loss_weight": 0.0}, **options)
    loss, logs = policy(small_batch(policy))
    loss.backward()
    assert logs["align_loss"] > 0
    assert "gradient_ratio" not in logs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretrained", [False, True])
def test_training_a_whole_pretrained_language_model_is_warned_of_once(folder, caplog, kind, pretrained):
    policy = small_policy(kind, folder, forcing={})
    if pretrained:
        policy.config.pretrained_path = str(folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            policy(small_batch(policy))
    warnings = [r for r in caplog.records if "full fine-tuning" in r.getMessage()]
    record = RECORDS[kind]
    assert len(warnings) == (record.language_model and record.pretrained(policy.config))


def test_which_policies_have_a_language_model_and_which_load_its_weights_themselves(folder):
    without = {kind for kind in KINDS if not RECORDS[kind].language_model}
    assert {"act", "xvla"} <= without
    assert not without & {"smolvla", "pi0", "pi05", "pi0_fast", "groot", "eo1", "evo1"}
    for kind, loads in (("groot", True), ("eo1", True), ("evo1", True), ("pi0", False), ("smolvla", False)):
        assert RECORDS[kind].pretrained(small_config(kind, folder)) == loads


def test_language_model_weights_that_smolvla_loads_itself_are_pretrained():
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    pretrained = RECORDS["smolvla"].pretrained
    assert not pretrained(SmolVLAConfig())
    assert pretrained(SmolVLAConfig(load_vlm_weights=True))


def test_lora_on_the_language_model_is_not_warned_of(folder, caplog):
    from peft import LoraConfig, inject_adapter_in_model

    policy = small_policy("smolvla", folder, forcing={}, train_expert_only=True)
    lora = LoraConfig(r=2, target_modules=r".*\.text_model\.layers\..*\.(q|v)_proj")
    inject_adapter_in_model(lora, policy.model)
    with caplog.at_level(logging.WARNING):
        policy(small_batch(policy))
    assert not [r for r in caplog.records if "full fine-tuning" in r.getMessage()]
