"""Policies with images in their prompt: the pixels that the teacher gets are those that the policy sees.

Shapes: B batch, V views, H W pixels.
"""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_batches import HOW, raw_batch, transformed
from small_policies import CAMERAS, small_batch, small_policy
from small_prompted import prompted

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.hosts.prompted import unpatched


@given(
    views=st.integers(1, 3),
    batch=st.integers(1, 3),
    rows=st.integers(2, 4),
    cols=st.integers(2, 5),
    merge=st.sampled_from([1, 2]),
)
def test_unpatching_is_the_inverse_of_the_image_processor(views, batch, rows, cols, merge):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    patch, side = 4, 4 * merge
    size = {"shortest_edge": 1, "longest_edge": 10**9}
    processor = Qwen2VLImageProcessor(patch_size=patch, merge_size=merge, size=size)
    shown = torch.randint(0, 256, (batch * views, 3, rows * side, cols * side), dtype=torch.uint8)
    made = processor(list(shown), return_tensors="pt", do_normalize=False)
    grid = views, *made["image_grid_thw"][0, 1:].tolist()
    again_BV3HW = unpatched(made["pixel_values"], grid, patch, merge)
    torch.testing.assert_close(again_BV3HW.flatten(0, 1) * 255, shown.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("how", HOW)
def test_the_teacher_gets_the_pixels_that_groot_sees(folder, how):
    policy = small_policy("groot", folder)
    raw = raw_batch(2, image=(128, 192))  # whose resized copy is a multiple of 32 pixels per side
    random.seed(5)
    batch = prompted(policy.config, raw, **how)
    random.seed(5)
    positions = [(random.random(), random.random()) if how.get("training") else None for _ in range(2)]
    shown = images_of(policy, batch)
    assert (len(shown.images), shown.views, shown.present_BV) == (2, 2, None)
    for key, images in zip(CAMERAS, shown.images, strict=True):
        for sample, position in enumerate(positions):
            expected = transformed(raw[key][sample], how, position)
            torch.testing.assert_close(images[sample], expected, atol=1e-5, rtol=0)


def test_batches_without_images_are_errors(folder):
    policy = small_policy("groot", folder, forcing={})
    with pytest.raises(
        SpatialForcingError, match=r"no input_ids, pixel_values.*preprocessor of groot.*It has"
    ):
        policy(small_batch(policy, without=CAMERAS))
