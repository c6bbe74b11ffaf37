"""Features, affines and layouts that cannot be."""

import math

import pytest
import torch
from small_grids import features

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import Layout, crop, identity, resample


@pytest.mark.parametrize(
    ("tokens", "valid", "says"),
    [
        (torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 5, dtype=torch.bool), r"tokens \(B, V, H, W, C\)"),
        (
            torch.ones(1, 2, 3, 4, 5),
            torch.ones(1, 2, 3, 5, dtype=torch.bool),
            r"mask of shape \(1, 2, 3, 4\)",
        ),
        (torch.ones(1, 2, 3, 4, 5), torch.ones(1, 2, 3, 4), "bool mask"),
        (torch.ones(1, 2, 3, 4, 5, dtype=torch.int64), torch.ones(1, 2, 3, 4, dtype=torch.bool), "floating"),
    ],
)
def test_features_that_do_not_fit_together(tokens, valid, says):
    with pytest.raises(SpatialForcingError, match=says):
        resample(Features(tokens, valid), 2, 2)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (3, 2), (4, 2, 3), (2, 2, 2, 3), (1, 1, 1, 2, 3)])
def test_affines_of_the_wrong_shape(shape):
    with pytest.raises(
        SpatialForcingError, match=r"Expected an affine of shape \(2, 3\), \(2, 2, 3\) or \(3, 2, 2, 3\)"
    ):
        resample(features(torch.ones(3, 2, 4, 4, 1)), 2, 2, torch.zeros(shape))


def test_affines_in_pixels():
    with pytest.raises(SpatialForcingError, match="unit coordinates"):
        resample(features(torch.ones(37, 37, 1)), 16, 16, crop(0, 0, 224, 224))


def test_the_published_resampling_takes_no_affine():
    with pytest.raises(SpatialForcingError, match="published=False"):
        resample(features(torch.ones(4, 4, 1)), 2, 2, identity(), published=True)


@pytest.mark.parametrize("corners", [(0.5, 0.0, 0.5, 1.0), (0.0, 0.8, 1.0, 0.2), (0.0, math.nan, 1.0, 1.0)])
def test_empty_crops(corners):
    with pytest.raises(SpatialForcingError, match="x1 > x0"):
        crop(*corners)


@pytest.mark.parametrize("options", [{"views": 0}, {"rows": 0}, {"cols": -1}, {"fit": "stretched"}])
def test_layouts_that_cannot_be(options):
    with pytest.raises(SpatialForcingError, match="layout"):
        Layout(**{"views": 1, "rows": 2, "cols": 2} | options)
