"""Several sites in one forward: each as if it were read alone, and the policy is what it was."""

import pytest
import torch
from small_policies import small_batch, small_policy

from spatial_forcing.probe.policies import all_sites, four_before
from spatial_forcing.probe.tokens import SiteTaps, tapped_tokens
from spatial_forcing.tap import TapError


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_every_site_of_a_policy_in_one_forward(kind, tmp_path):
    policy = small_policy(kind, tmp_path)
    batch, sites = small_batch(policy), all_sites(policy)
    weights = {name: of.clone() for name, of in policy.state_dict().items()}
    torch.manual_seed(3)
    before, state = policy.predict_action_chunk(batch).clone(), torch.get_rng_state()
    policy.reset()
    policy.train()
    with SiteTaps(policy, sites) as read:
        together = read(batch)
    assert list(together) == sites
    assert torch.equal(state, torch.get_rng_state())
    assert policy.training
    assert not any(module._forward_pre_hooks for module in policy.modules())
    assert all(torch.equal(of, weights[name]) for name, of in policy.state_dict().items())
    torch.manual_seed(3)
    assert torch.equal(before, policy.predict_action_chunk(batch))
    for layer in (1, 3):
        torch.manual_seed(3)
        alone = tapped_tokens(policy, [batch], layer)
        assert torch.equal(together[f"blocks.{layer}"].tokens_FVHWC, alone.tokens_FVHWC)
        assert together[f"blocks.{layer}"].positioned_like(alone)


def test_a_vision_encoder_has_sites_of_its_own_and_a_finer_grid(tmp_path):
    policy = small_policy("smolvla", tmp_path)
    assert all_sites(policy) == ["vision.1", *(f"blocks.{layer}" for layer in range(1, 5))]
    with SiteTaps(policy, ["vision.1", "blocks.1"]) as read:
        found = read(small_batch(policy))
    assert found["vision.1"].tokens_FVHWC.shape[1:4] == (2, 8, 8)
    assert found["blocks.1"].tokens_FVHWC.shape[1:4] == (2, 4, 4)


def test_the_site_and_the_three_before_it(tmp_path):
    policy = small_policy("act", tmp_path)
    assert four_before(policy, "blocks.-1") == [f"blocks.{layer}" for layer in range(1, 5)]
    assert four_before(policy, "blocks.2") == ["blocks.0", "blocks.0", "blocks.1", "blocks.2"]
    with pytest.raises(TapError, match=r"there is no site 'vision.1'"), SiteTaps(policy, ["vision.1"]):
        pass
