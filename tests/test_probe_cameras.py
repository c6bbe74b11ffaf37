"""The tokens that the probe takes where cameras are missing, samples lack one, or images are padded."""

from dataclasses import replace

import pytest
import torch
from small_policies import CAMERAS, LEFT, RIGHT, SIZES, WRIST, small_batch, small_policy

from spatial_forcing.grid import Layout
from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.probe import ProbeError, tapped_tokens


@pytest.mark.parametrize(
    ("kind", "options"), [("smolvla", {}), ("smolvla", {"empty_cameras": 1}), ("pi0", {})]
)
def test_cameras_may_come_and_go_from_batch_to_batch(folder, kind, options):
    """Tokens of all views, those of a missing one masked; the others are what they are without company."""
    policy = small_policy(kind, folder, sizes=dict.fromkeys(SIZES, (40, 60)), **options)
    batches = [small_batch(policy, 2, without=of) for of in ((), (LEFT,), (RIGHT, WRIST))]
    found = tapped_tokens(policy, batches)
    assert found.cameras == tuple(SIZES)
    inside_HW = found.valid_FVHW[0, 0]
    assert 0 < inside_HW.float().mean() < 1
    there_FV = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]]).repeat_interleave(2, 0).bool()
    assert torch.equal(found.valid_FVHW, there_FV[:, :, None, None] & inside_HW)
    for frames, batch in zip(found.tokens_FVHWC.split(2), batches, strict=True):
        alone = tapped_tokens(policy, [batch])
        for view, name in enumerate(alone.cameras):
            assert torch.equal(frames[:, tuple(SIZES).index(name)], alone.tokens_FVHWC[:, view])


def test_samples_without_a_camera_are_masked(folder):
    policy = small_policy("smolvla", folder)
    there = torch.tensor([True, False, True])
    found = tapped_tokens(policy, [small_batch(policy) | {f"{RIGHT}_padding_mask": there}])
    assert torch.equal(found.valid_FVHW[:, 1].flatten(1).any(1), there)
    assert found.valid_FVHW[:, 0].flatten(1).any(1).all()


def test_batches_with_different_grids_are_an_error(folder):
    policy = small_policy("eo1", folder)
    other = small_policy("eo1", folder, sizes=dict.fromkeys(CAMERAS, (80, 30)))
    with pytest.raises(ProbeError, match="different grids of tokens"):
        tapped_tokens(policy, [small_batch(policy, 1), small_batch(other, 1)])


class Padding(TinyVLA):
    """A host that is no LeRobot policy and pads its images."""

    def spatial_forcing_host(self):
        host = super().spatial_forcing_host()
        return replace(host, layout=replace(host.layout, fit="pad"))

    def forward(self, batch):
        return super().forward(*batch)


def test_hosts_that_pad_must_be_told_the_size_of_their_images():
    model = Padding(views=2, image_size=56, width=16, depth=3, heads=2)
    batch = (torch.rand(2, 2, 3, 56, 56), torch.ones(2, 12).long(), torch.zeros(2, 4))
    with pytest.raises(ProbeError, match=r"TinyVLA pads.*image_hw=\(height, width\)"):
        tapped_tokens(model, [batch])
    wide = tapped_tokens(model, [batch], image_hw=(20, 40))
    layout = Layout(2, 4, 4, "pad")
    assert torch.equal(wide.valid_FVHW, layout.valid_mask(20, 40).expand(2, 2, -1, -1))
    each = tapped_tokens(model, [batch], image_hw=[(20, 40), (40, 20)])
    assert torch.equal(each.valid_FVHW[:, 1], layout.valid_mask(40, 20).expand(2, -1, -1))
    with pytest.raises(ProbeError, match="3 views for a host with tokens for 2"):
        tapped_tokens(model, [batch], image_hw=[(20, 40)] * 3)
