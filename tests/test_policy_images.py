"""The images that the teacher gets are the data set's, however LeRobot's policies normalise theirs."""

from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from small_policies import CAMERAS, LEFT, PICTURE, small_batch, small_config, small_parts, small_policy

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.lerobot import images_of
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.teachers.base import stack_views

KINDS = tuple(PICTURE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=4, size=(40, 60))


def preprocessed(kind: str, folder: Path, dataset: Path, **options):
    """(policy, raw batch, the same batch through the policy's own preprocessor)."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    from lerobot.policies import make_policy, make_pre_post_processors

    meta = LeRobotDatasetMetadata("local/small", root=dataset)
    with small_parts(kind):
        config = small_config(kind, folder, forcing={}, **options)
        policy = make_policy(config, ds_meta=meta).train()
        if kind == "pi0_fast":  # its preprocessor wants the action tokenizer of the Hub
            config = small_config("pi0", folder, forcing={}, input_features=config.input_features)
            config.output_features = policy.config.output_features
        preprocess, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
        times = {"action": [i / 10 for i in range(policy.config.chunk_size)]}
        frames = LeRobotDataset("local/small", root=dataset, delta_timestamps=times)
        raw = next(iter(torch.utils.data.DataLoader(frames, batch_size=3)))
        return policy, raw, preprocess(dict(raw))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if RECORDS[kind].images is None])
def test_the_teacher_gets_the_pixels_of_the_data_set(folder, dataset, kind):
    policy, raw, batch = preprocessed(kind, folder, dataset)
    shown = images_of(policy, batch, policy._image_stats)
    assert (len(shown.images), shown.views, shown.sizes) == (2, 2, [(40, 60)] * 2)
    mapping = policy.config.normalization_mapping
    for key, image in zip(CAMERAS, shown.images, strict=True):
        torch.testing.assert_close(image, raw[key], atol=1e-5, rtol=0)
        normalises = RECORDS[kind].pixels == "imagenet" or "IDENTITY" not in str(mapping["VISUAL"])
        assert normalises == (not torch.allclose(batch[key], raw[key]))
    stacked_BV3HW = stack_views(shown.images)
    torch.testing.assert_close(
        stacked_BV3HW, torch.stack([raw[key] for key in CAMERAS], 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("mode", ["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"])
def test_every_normalisation_of_images_is_undone(folder, dataset, mode):
    from lerobot.configs.types import NormalizationMode

    mapping = {"VISUAL": NormalizationMode[mode], "STATE": NormalizationMode.IDENTITY}
    policy, raw, batch = preprocessed("act", folder, dataset, normalization_mapping=mapping)
    shown = images_of(policy, batch, policy._image_stats)
    for key, image in zip(CAMERAS, shown.images, strict=True):
        torch.testing.assert_close(image, raw[key], atol=1e-5, rtol=0)


def test_normalisations_that_cannot_be_undone_are_errors(folder, dataset):
    policy, _, batch = preprocessed("act", folder, dataset)
    with pytest.raises(SpatialForcingError, match=rf"statistics of {LEFT}.*missing.*there are: none"):
        images_of(policy, batch, None)
    stats = {key: {"mean": value["mean"]} for key, value in policy._image_stats.items()}
    with pytest.raises(SpatialForcingError, match=rf"statistics of {LEFT}.*missing"):
        images_of(policy, batch, stats)
    policy.config.normalization_mapping = {"VISUAL": "Z_SCORE"}
    with pytest.raises(SpatialForcingError, match=r"with Z_SCORE.*Known: IDENTITY, MEAN_STD"):
        images_of(policy, batch, policy._image_stats)


def test_of_a_history_of_images_the_last_is_seen(folder):
    policy = small_policy("smolvla", folder)
    batch = small_batch(policy)
    older = batch | {key: torch.stack([torch.rand_like(batch[key]), batch[key]], dim=1) for key in CAMERAS}
    for now, last in zip(images_of(policy, batch).images, images_of(policy, older).images, strict=True):
        assert torch.equal(now, last)
