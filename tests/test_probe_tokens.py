"""The tokens that the probe takes from a policy: the residual stream, and the policy is left alone."""

import pytest
import torch

from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.probe import ProbeError, tapped_tokens


@pytest.fixture
def policy():
    """A real TinyPolicy in training mode, one module of it frozen in evaluation mode, with actions queued."""
    pytest.importorskip("lerobot")
    from lerobot.configs import FeatureType, PolicyFeature

    from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy

    config = TinyConfig(image_size=28, patch=14, width=16, depth=4, heads=2, device="cpu")
    cameras = {f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, 28, 28)) for n in ("a", "b")}
    config.input_features = cameras | {"observation.state": PolicyFeature(FeatureType.STATE, (4,))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (4,))}
    torch.manual_seed(0)
    policy = TinyPolicy(config).train()
    policy.model.blocks[1].eval()
    policy._queue.extend([torch.ones(1, 4), torch.zeros(1, 4)])
    return policy


def frames(count: int, seed: int = 0) -> list[dict]:
    """Batches of at most three frames."""
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "observation.images.a": torch.rand(n, 3, 28, 28, generator=g),
            "observation.images.b": torch.rand(n, 3, 28, 28, generator=g),
            "observation.state": torch.randn(n, 4, generator=g),
            "task": ["reach the red ball"] * n,
        }
        for n in [3] * (count // 3) + [count % 3] * bool(count % 3)
    ]


def test_tokens_are_the_residual_stream_after_the_chosen_block(policy):
    batches = frames(5)
    for depth in (1, 2, 3):
        found = tapped_tokens(policy, batches, depth).tokens_FVHWC
        assert (tuple(found.shape), found.dtype) == ((5, 2, 2, 2, 16), torch.float32)
        assert not found.requires_grad
        torch.testing.assert_close(found[:3], stream(policy.model, batches[0], depth))
    default, third = (tapped_tokens(policy, batches, depth).tokens_FVHWC for depth in (None, 3))
    torch.testing.assert_close(default, third)


def stream(model: TinyVLA, batch: dict, depth: int) -> torch.Tensor:
    """The visual tokens of TinyVLA after ``depth`` blocks, by running it block by block."""
    kept = {}
    handle = model.blocks[depth - 1].register_forward_hook(lambda m, args, out: kept.update(out=out))
    images = torch.stack([batch["observation.images.a"], batch["observation.images.b"]], 1)
    with torch.no_grad():
        from spatial_forcing.hosts.tiny import hash_words

        model(
            images, hash_words(batch["task"], model.vocabulary, model.max_words), batch["observation.state"]
        )
    handle.remove()
    return kept["out"][:, model.max_words : model.max_words + 8].view(-1, 2, 2, 2, 16)


def test_the_policy_is_untouched(policy):
    def state() -> tuple:
        return (
            {k: v.clone() for k, v in policy.state_dict().items()},
            [m.training for m in policy.modules()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.modules()],
            [p.requires_grad for p in policy.parameters()],
            [a.clone() for a in policy._queue],
            torch.random.get_rng_state(),
        )

    before = state()
    tapped_tokens(policy, frames(5))
    with pytest.raises(KeyError):  # in the middle of the forward
        tapped_tokens(policy, [{k: v for k, v in frames(2)[0].items() if k != "observation.state"}])
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert policy.training
    assert not policy.model.blocks[1].training


def test_a_model_that_is_no_lerobot_policy_is_called():
    model = TinyVLA(views=1, image_size=28, width=16, depth=3, heads=2)

    class Caller(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return self.model(*batch)

    batch = (torch.rand(2, 1, 3, 28, 28), torch.ones(2, 12).long(), torch.zeros(2, 4))
    assert tapped_tokens(Caller(), [batch]).tokens_FVHWC.shape == (2, 1, 2, 2, 16)


def test_progress_is_counted_in_frames_and_no_batches_is_an_error(policy):
    done = []
    tapped_tokens(policy, frames(7), advance=done.append)
    assert done == [3, 3, 1]
    with pytest.raises(ProbeError, match="no batches"):
        tapped_tokens(policy, [])
