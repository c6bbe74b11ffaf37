"""Sites in the vision encoders of SmolVLA and the pi0 family: where tokens are, what trains, missing cameras.

Shapes: B batch, V views, n tokens of a view, D width.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_policies import CAMERAS, RIGHT, small_batch, small_policy
from torch import Tensor

from spatial_forcing import Tap, TapError, check_host, host_of
from spatial_forcing.hosts.lerobot import policy_host


def policy_of(folder: Path, site: str | None = "vision.-1", kind: str = "smolvla", **options: Any) -> Any:
    forcing = None if site is None else {"site": site}
    if kind == "smolvla":
        options = {"freeze_vision_encoder": False} | options
    return small_policy(kind, folder, forcing=forcing, **options)


def encoder_of(policy: Any) -> Any:
    if policy.config.type.endswith("smolvla"):
        return policy.model.vlm_with_expert.get_vlm_model().vision_model
    return policy.model.paligemma_with_expert.paligemma.model.vision_tower.vision_model


@pytest.mark.parametrize(("kind", "side"), [("smolvla", 8), ("pi0", 4), ("pi05", 4), ("pi0_fast", 4)])
def test_the_tokens_are_what_the_encoder_makes_of_each_view(folder, kind, side):
    policy = policy_of(folder, None, kind)
    tap = Tap(host_of(policy).site("vision.-1"))
    made: list[Tensor] = []
    encoder_of(policy).register_forward_hook(lambda module, args, out: made.append(out.last_hidden_state))
    with tap.watch():
        policy(small_batch(policy))
    assert len(made) == 2
    normed_BND = encoder_of(policy).post_layernorm(tap.visual_BND())
    torch.testing.assert_close(normed_BND, torch.cat(made, dim=1))
    layout = tap.layout
    assert (layout.views, layout.rows, layout.cols) == (2, side, side)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast"])
def test_pi0s_tokens_are_where_the_image_is_and_get_gradient(folder, kind):
    policy = policy_of(folder, "vision.-1", kind)
    _, logs = policy(small_batch(policy))
    assert 0 < logs["align_loss"] < 2
    assert logs["gradient_ratio"] > 0
    policy.eval()
    batch = small_batch(policy, 4)
    images = [torch.rand_like(batch[key]) for key in CAMERAS]

    def forward(shown: list[Tensor]) -> None:
        policy(batch | dict(zip(CAMERAS, shown, strict=True)))

    report = check_host(policy_host(policy, 2), forward, images, site="vision.0", probes=16)
    assert report.ok, report
    assert report.declared > 0.9


@pytest.mark.parametrize("resize", [(32, 32), None])
def test_its_tokens_are_where_the_image_is(folder, resize):
    sizes = None if resize else dict.fromkeys(CAMERAS, (32, 32))
    policy = policy_of(folder, None, resize_imgs_with_padding=resize, sizes=sizes).eval()
    batch = small_batch(policy, 4)
    images = [torch.rand_like(batch[key]) for key in CAMERAS]

    def forward(shown: list[Tensor]) -> None:
        policy(batch | dict(zip(CAMERAS, shown, strict=True)))

    report = check_host(policy_host(policy, 2), forward, images, site="vision.0", probes=16)
    assert report.ok, report
    assert report.declared > 0.9
    exchanged = check_host(
        policy_host(policy, 2), lambda shown: forward(shown[::-1]), images, site="vision.0", probes=16
    )
    assert exchanged.verdict == "views"


@pytest.mark.parametrize("site", ["vision.0", "vision.1"])
def test_the_alignment_reaches_the_encoder_up_to_the_site_and_nothing_else(folder, site):
    policy = policy_of(folder, site)
    _, logs = policy(small_batch(policy))
    assert 0 < logs["align_loss"] < 2
    assert logs["gradient_ratio"] > 0
    shown = policy.feature_source.shown(policy, small_batch(policy), None)
    policy.zero_grad()
    policy.forcing(policy.given(small_batch(policy), shown)).backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    outside = {name for name in reached if ".vision_model." not in name and not name.startswith("forcing.")}
    assert not outside
    assert any(".embeddings." in name for name in reached)
    assert any(".encoder.layers.0." in name for name in reached) == (site == "vision.1")
    assert not any("post_layernorm" in name for name in reached)


def test_an_encoder_that_is_frozen_stops_before_the_first_step(folder):
    policy = policy_of(folder, freeze_vision_encoder=True)
    with pytest.raises(TapError, match=r"vision encoder trains.*--policy\.freeze_vision_encoder=false.*LoRA"):
        policy(small_batch(policy))


def test_cameras_may_come_and_go_from_batch_to_batch(folder):
    policy = policy_of(folder)
    for without, views in (((), 2), ((RIGHT,), 1), ((), 2)):
        loss, _ = policy(small_batch(policy, without=without))
        loss.backward()
        assert policy.forcing.tap.layout.views == views
        assert policy.forcing.tap.visual_BND().shape[1] == views * 64


def test_an_empty_camera_has_tokens_and_no_loss(folder):
    policy = policy_of(folder, empty_cameras=1)
    _, logs = policy(small_batch(policy))
    tap, layout = policy.forcing.tap, policy.forcing.tap.layout
    assert layout.views == 3
    assert tap.visual_BND().shape[1] == 3 * 64
    inside = layout.valid_mask(40, 60).float().mean().item()
    assert logs["valid_fraction"] == pytest.approx(2 / 3 * inside)


def test_language_model_and_vision_encoder_are_aligned_in_one_step(folder):
    entries = [{"teacher": "untrained-tiny"}, {"teacher": "untrained-tiny", "site": "vision.-1"}]
    policy = small_policy(
        "smolvla", folder, forcing={"teacher": None, "alignments": entries}, freeze_vision_encoder=False
    )
    loss, logs = policy(small_batch(policy))
    loss.backward()
    assert {"blocks_3/align_loss", "vision_1/align_loss", "weighted_align_loss"} <= set(logs)
    for part in policy.forcing.parts:
        assert all(p.grad.abs().sum() > 0 for p in policy.forcing.projector_of(part.name).parameters())
