"""Missing cameras, padded samples and images of several sizes of LeRobot's policies: no target, no gradient.

Shapes: B batch, V views, h w rows and columns of the host's grid.
"""

import pytest
import torch
from small_policies import LEFT, RIGHT, WRIST, aligned, small_batch, small_policy

from spatial_forcing.errors import SpatialForcingError

THREE = dict.fromkeys((LEFT, RIGHT, WRIST), (40, 60))
MISSING = [
    # kind, options, cameras missing, views with tokens
    ("smolvla", {"empty_cameras": 0}, (LEFT,), 2),
    ("smolvla", {"empty_cameras": 0}, (LEFT, WRIST), 1),
    ("smolvla", {"empty_cameras": 1}, (RIGHT,), 3),
    ("smolvla", {"empty_cameras": 1}, (), 4),
    ("pi0", {}, (RIGHT,), 3),
    ("pi0", {}, (LEFT, RIGHT), 3),
    ("pi05", {"empty_cameras": 1}, (), 4),
    ("xvla", {"resize_imgs_with_padding": (64, 64)}, (LEFT,), 3),
    ("evo1", {"max_views": 5, "empty_cameras": 1}, (), 5),
    ("evo1", {"max_views": 3}, (), 3),
]


@pytest.mark.parametrize(("kind", "options", "without", "views"), MISSING)
def test_missing_cameras_have_no_target_and_no_gradient(folder, kind, options, without, views):
    policy = small_policy(kind, folder, forcing={}, sizes=THREE, **options)
    there = [key for key in THREE if key not in without]
    loss, valid_BVhw, gradient_BVhw = aligned(policy, small_batch(policy, without=without))
    assert policy.forcing.host.layout.views == views
    inside_hw = policy.forcing.host.layout.valid_mask(40, 60)
    assert (valid_BVhw[:, : len(there)] == inside_hw).all()
    assert not valid_BVhw[:, len(there) :].any()
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_cameras_may_come_and_go_from_batch_to_batch(folder):
    policy = small_policy("smolvla", folder, forcing={})
    for without, views in (((), 2), ((RIGHT,), 1), ((), 2)):
        _, valid_BVhw, _ = aligned(policy, small_batch(policy, without=without))
        assert valid_BVhw.shape[1] == views


def test_padding_masks_of_single_samples(folder):
    policy = small_policy("smolvla", folder, forcing={})
    mask = torch.tensor([True, False, True])
    batch = small_batch(policy) | {f"{RIGHT}_padding_mask": mask}
    _, valid_BVhw, gradient_BVhw = aligned(policy, batch)
    inside_hw = policy.forcing.host.layout.valid_mask(40, 60)
    assert (valid_BVhw[:, 0] == inside_hw).all()
    assert torch.equal(valid_BVhw[:, 1], mask[:, None, None] & inside_hw)
    assert torch.equal(gradient_BVhw > 0, valid_BVhw)


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_cameras_of_different_sizes_are_padded_each_in_its_way(folder, kind):
    policy = small_policy(kind, folder, forcing={}, sizes={LEFT: (40, 60), RIGHT: (64, 20)})
    _, valid_BVhw, _ = aligned(policy, small_batch(policy))
    layout = policy.forcing.host.layout
    assert (valid_BVhw[:, 0] == layout.valid_mask(40, 60)).all()
    assert (valid_BVhw[:, 1] == layout.valid_mask(64, 20)).all()
    assert not torch.equal(valid_BVhw[0, 0], valid_BVhw[0, 1])


@pytest.mark.parametrize("kind", ["act", "xvla"])
def test_hosts_that_do_not_resize_want_cameras_of_one_size(folder, kind):
    with pytest.raises(SpatialForcingError, match="different sizes"):
        small_policy(kind, folder, forcing={}, sizes={LEFT: (40, 60), RIGHT: (64, 20)})


def test_smolvla_wants_square_images(folder):
    # Its connector cuts the tokens as if they were a square: 4 x 16 patches would be shuffled as 8 x 8.
    with pytest.raises(SpatialForcingError, match="square"):
        small_policy("smolvla", folder, forcing={}, resize_imgs_with_padding=(64, 16))
