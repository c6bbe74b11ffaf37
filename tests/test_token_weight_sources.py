"""Where weights of tokens come from: masks of the data set, and a teacher's confidence."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from training_configs import policy_config

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.token_weights.sources import WeightSource, WeightsSourceError, weight_source

CAMERAS = ["observation.images.left", "observation.images.right"]
SIZES = {"image_size": 28, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}


def masked(columns: dict[str, tuple[int, ...]]) -> SimpleNamespace:
    """A data set with these columns."""
    return SimpleNamespace(meta=SimpleNamespace(features=dict.fromkeys([*CAMERAS, *columns])))


def batch_of(**columns: torch.Tensor) -> dict[str, torch.Tensor]:
    images = {camera: torch.rand(2, 3, 28, 28) for camera in CAMERAS}
    return images | {f"observation.masks.{side}": mask for side, mask in columns.items()}


@pytest.mark.parametrize(
    "shape", [(2, 28, 28), (2, 28, 28, 1), (2, 1, 28, 28), (2, 3, 28, 28), (2, 4, 3, 28, 28)]
)
def test_a_masks_weight_is_the_share_of_the_cell_that_it_covers(shape):
    left, right = torch.zeros(2, 28, 28), torch.zeros(2, 28, 28)
    left[0, :14, :7] = 1  # half of the first of 2 x 2 cells
    right[1] = 0.5

    def shaped(mask):
        if len(shape) == 4 and shape[-1] == 1:
            return mask[..., None]
        while mask.ndim < len(shape):
            mask = mask[:, None]
        return mask.expand(shape)

    dataset = masked(dict.fromkeys(("observation.masks.left", "observation.masks.right"), (28, 28)))
    source = weight_source("mask:observation.masks", dataset, CAMERAS, 0.2, "cpu")
    found = source.weights(batch_of(left=shaped(left), right=shaped(right)), CAMERAS, 2, 2)
    expected = torch.zeros(2, 2, 2, 2)
    expected[0, 0, 0, 0], expected[1, 1] = 0.5, 0.5
    assert_close(found, 0.2 + 0.8 * expected)


def test_the_column_of_the_only_camera_may_be_named_itself():
    dataset = masked({"observation.hand": (28, 28)})
    source = weight_source("mask:observation.hand", dataset, CAMERAS[:1], 0.0, "cpu")
    batch = batch_of() | {"observation.hand": torch.ones(2, 28, 28)}
    assert source.weights(batch, CAMERAS[:1], 4, 4).eq(1).all()
    with pytest.raises(UnknownNameError, match=r"column with a camera's mask 'observation.hand.left'"):
        weight_source("mask:observation.hand", dataset, CAMERAS, 0.0, "cpu")


def test_a_mask_that_is_among_the_cameras_of_the_features_is_refused():
    """LeRobot calls every image a camera."""
    hand, mask = "observation.images.left", "observation.masks.left"
    dataset = masked({mask: (3, 28, 28)})
    with pytest.raises(WeightsSourceError, match=rf"{mask} is a mask, .*cache --cameras"):
        weight_source("mask:observation.masks", dataset, [hand, mask], 0.0, "cpu")
    weight_source("mask:observation.masks", dataset, [hand], 0.0, "cpu")


def test_the_mask_of_a_camera_is_called_as_the_camera_is():
    """By all that follows ``observation.images.``: two arms have a left camera each."""
    cameras = [f"observation.images.{arm}.left" for arm in ("arm", "base")]
    masks = [f"observation.masks.{arm}.left" for arm in ("arm", "base")]
    source = weight_source(
        "mask:observation.masks", masked(dict.fromkeys(masks, (28, 28))), cameras, 0, "cpu"
    )
    batch = {camera: torch.rand(2, 3, 28, 28) for camera in cameras}
    batch |= {masks[0]: torch.zeros(2, 28, 28), masks[1]: torch.ones(2, 28, 28)}
    assert source.weights(batch, cameras, 2, 2).mean((0, 2, 3)).tolist() == [0, 1]
    with pytest.raises(UnknownNameError, match=r"camera's mask 'observation\.masks\.arm\.left'"):
        weight_source("mask:observation.masks", masked({"observation.masks.left": ()}), cameras, 0, "cpu")


def test_two_cameras_of_one_mask_are_refused():
    cameras, dataset = ["observation.rgb.left", CAMERAS[0]], masked({"observation.masks.left": ()})
    says = rf"observation\.masks\.left would be the mask of {cameras[0]}, {cameras[1]} alike"
    with pytest.raises(WeightsSourceError, match=says):
        weight_source("mask:observation.masks", dataset, cameras, 0, "cpu")


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.full((2, 28, 28), 7), "holds 7 to 7; a mask goes from 0"),
        (torch.rand(2, 5), "expected height x width numbers a frame, found 5"),
        (torch.rand(2, 28, 14), "of another aspect ratio"),
    ],
)
def test_columns_that_are_no_masks_are_refused(mask, says):
    source = weight_source(
        "mask:observation.masks", masked({"observation.masks.left": ()}), CAMERAS[:1], 0, "cpu"
    )
    with pytest.raises(SpatialForcingError, match=says):
        source.weights(batch_of(left=mask), CAMERAS[:1], 2, 2)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("masks:a", "source of token weights 'masks'"),
        ("mask", "is confidence:<teacher> or mask:<column>"),
        ("confidence:", "is confidence:<teacher> or mask:<column>"),
        ("confidence:dinov2-large", "gives no confidence. Of the teachers these do: .*vggt-1b"),
        ("confidence:vgg-1b", "vggt-1b"),
    ],
)
def test_sources_that_there_are_not(source, says):
    with pytest.raises(SpatialForcingError, match=says):
        policy_config("tiny", {"token_weights": source}, **SIZES)
    with pytest.raises(WeightsSourceError, match="got 1"):
        WeightSource("mask:a", lambda batch, cameras: [], least=1.0)


def test_a_teachers_confidence_is_its_own_heads(tmp_path):
    """Of the packaged teacher: 1 - 1/c of its depth head, averaged over cells."""
    from spatial_forcing.teachers import find_teacher

    record = find_teacher("vggt-tiny-sim")
    images = torch.rand(2, 2, 3, record.resolution, record.resolution)
    c_BVHW = record.confidence(record, "cpu")(images)
    assert (c_BVHW > 1).all()
    source = weight_source("confidence:vggt-tiny-sim", masked({}), CAMERAS, 0.0, "cpu")
    batch = {camera: images[:, v] for v, camera in enumerate(CAMERAS)}
    found = source.weights(batch, CAMERAS, 8, 8)
    expected = torch.nn.functional.avg_pool2d(1 - 1 / c_BVHW, record.resolution // 8)
    assert_close(found, expected)
    assert found.std() > 1e-3
