"""How a forced policy's forward runs: checkpointed, compiled, under autocast, in accumulated parts."""

from typing import Any

import pytest
import torch
from small_policies import CAMERAS, small_batch, small_policy
from torch import Tensor

from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.teachers.base import stack_views


def loss_and_gradients(policy: Any) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(3)
    loss, _ = policy(small_batch(policy))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def assert_same(actual: tuple[float, dict], expected: tuple[float, dict], tolerance: float) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast", "eo1", "evo1"])
def test_activation_checkpointing_changes_nothing(folder, kind):
    name = "enable_gradient_checkpointing" if kind == "evo1" else "gradient_checkpointing"
    kept = loss_and_gradients(small_policy(kind, folder, forcing={}, **{name: False}))
    again = loss_and_gradients(small_policy(kind, folder, forcing={}, **{name: True}))
    assert_same(again, kept, 1e-6)


@pytest.mark.slow
def test_a_compiled_forward_is_tapped(folder):
    sizes, small = {CAMERAS[0]: (40, 60)}, {"num_vlm_layers": 2, "forcing": {"site": "blocks.1"}}
    eager = loss_and_gradients(small_policy("smolvla", folder, sizes=sizes, **small))
    policy = small_policy("smolvla", folder, sizes=sizes, **small)
    # As compile_model=true does, which would also optimise, for minutes.
    policy.model.forward = torch.compile(policy.model.forward, backend="aot_eager")
    assert_same(loss_and_gradients(policy), eager, 1e-4)


def test_bfloat16_autocast(folder):
    policy = small_policy("smolvla", folder, forcing={})
    with torch.autocast("cpu", torch.bfloat16):
        loss, logs = policy(small_batch(policy))
    loss.backward()
    assert logs["align_loss"] == pytest.approx(1, abs=0.2)
    assert all(p.grad.isfinite().all() for p in policy.forcing.parameters())


@pytest.mark.parametrize("equal", [True, False])
def test_accumulated_halves_align_as_the_whole_only_if_samples_have_equally_many_valid_tokens(folder, equal):
    policy = small_policy("smolvla", folder, forcing={})
    there = torch.ones(4, dtype=torch.bool) if equal else torch.tensor([True, True, False, False])
    batch = small_batch(policy, 4) | {f"{CAMERAS[1]}_padding_mask": there}

    def alignment_gradient(part: slice) -> Tensor:
        piece = {key: value[part] for key, value in batch.items()}
        policy(piece)
        images = images_of(policy, piece)
        align = policy.forcing(
            stack_views(images.images), image_hw=images.sizes, present_BV=images.present_BV
        )
        return torch.autograd.grad(align, policy.forcing.projector.fc1.weight)[0]

    whole, first, second = (alignment_gradient(slice(*ends)) for ends in ((0, 4), (0, 2), (2, 4)))
    assert torch.allclose((first + second) / 2, whole, atol=1e-7) == equal
