"""Policies that see a history of images: the current one is aligned."""

import pytest
import torch
from small_policies import small_batch, small_policy

from spatial_forcing.check import check_host
from spatial_forcing.hosts import host_of

FRAMES = 3


def test_pi05_with_memory_aligns_the_current_image(folder):
    from lerobot.policies.pi05.configuration_pi05 import PI05Config

    if not hasattr(PI05Config, "use_visual_memory"):
        pytest.skip("pi0.5 has no memory of images in this version of LeRobot (0.6.1)")
    memory = {"use_visual_memory": True, "memory_frames": FRAMES, "memory_stride": 1}
    memory["memory_temporal_attention_every"] = 1  # its vision encoder has one layer here
    policy = small_policy("pi05", folder, forcing={}, **memory)
    batch = small_batch(policy, 2)
    cameras = list(policy.config.image_features)
    for key in cameras:
        past_BT3HW = torch.rand(2, FRAMES - 1, *batch[key].shape[1:])
        batch[key] = torch.cat([past_BT3HW, batch[key][:, None]], dim=1)
        batch[f"{key}_is_pad"] = torch.tensor([[False] * FRAMES, [True, False, False]])
    shown = policy.feature_source.shown(policy, batch, None)
    for key, image_B3HW in zip(cameras, shown.images, strict=True):
        assert torch.equal(image_B3HW, batch[key][:, -1])
    loss, logs = policy(batch)
    assert torch.isfinite(loss)
    now = {key: value[:, -1] if key in cameras else value for key, value in batch.items()}
    _, without = small_policy("pi05", folder, forcing={})(now)
    assert logs["valid_fraction"] == without["valid_fraction"] > 0
    assert logs["gradient_ratio"] > 0

    def forward(images: list[torch.Tensor]) -> None:
        now = dict(batch)
        for key, image_B3HW in zip(cameras, images, strict=True):
            now[key] = torch.cat([batch[key][:, :-1], image_B3HW[:, None]], dim=1)
        policy.eval()(now)

    report = check_host(host_of(policy), forward, shown.images)
    assert report.ok, str(report)
