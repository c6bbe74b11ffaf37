"""Flags for LoRA on the pages of the policies: the language model trains, and so does what acts."""

import json
import logging
import re
from pathlib import Path

import pytest
from small_policies import small_batch, small_policy

DOCS = Path(__file__).parents[1] / "docs" / "hosts"
TARGETS = re.compile(r"--peft\.target_modules='([^']+)'")
WHOLE = re.compile(r"--peft\.full_training_modules='([^']+)'")
# By policy its page, and which of the page's lists of modules that train whole is its own.
PAGES = {
    "smolvla": ("smolvla", 0),
    "pi05": ("pi0", 0),
    "pi0": ("pi0", 1),
    "eo1": ("eo1", 0),
    "groot": ("groot", 0),
}


def wrapped(kind: str, folder: Path, **overrides):
    policy = small_policy(kind, folder, forcing={})
    policy.config.pretrained_path = str(folder / "checkpoint")  # PEFT is for what is pretrained
    return policy, policy.wrap_with_peft(peft_cli_overrides={"r": 2, **overrides}).train()


@pytest.mark.parametrize("kind", PAGES)
def test_with_the_flags_of_its_page_a_policy_learns_to_see_and_to_act(kind, folder, caplog):
    page, which = PAGES[kind]
    text = (DOCS / f"{page}.md").read_text()
    targets, whole = TARGETS.findall(text)[0], json.loads(WHOLE.findall(text)[which])
    policy, peft = wrapped(kind, folder, target_modules=targets, full_training_modules=whole)
    trains = [name for name, p in peft.named_parameters() if p.requires_grad]
    for name in whole:
        assert any(f".{name}." in one for one in trains), f"{kind} has no {name}"
    policy.config.pretrained_path = None  # there is no checkpoint whose projector could continue
    policy.get_optim_params()
    with caplog.at_level(logging.WARNING):
        loss, logs = peft.forward(small_batch(policy))
    assert "what turns tokens into actions stays as it is" not in caplog.text
    loss.backward()
    acting = [p for name, p in peft.named_parameters() if "action" in name and p.grad is not None]
    assert any(p.grad.any() for p in acting)
    assert logs["gradient_ratio"] > 0


def test_lora_on_the_language_model_alone_is_warned_of(folder, caplog):
    targets = TARGETS.findall((DOCS / "smolvla.md").read_text())[0]
    policy, peft = wrapped("smolvla", folder, target_modules=targets)
    policy.config.pretrained_path = None
    policy.get_optim_params()
    with caplog.at_level(logging.WARNING):
        peft.forward(small_batch(policy))
    assert (
        "Nothing of action_in_proj, action_out_proj, action_time_mlp_in, action_time_mlp_out trains"
        in caplog.text
    )
