"""Normalisation of the built-in policy: what stood still in training keeps its scale, trained on too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies import make_pre_post_processors
from small_depth import ACTION, STATE, painted_dataset, saved_tiny

from spatial_forcing.hosts.tiny_normalizer import normalizer_processor, unnormalizer_processor
from spatial_forcing.saved_policy import SavedPolicy

MOVED = 0.002  # by which a gripper that never moved in the demonstrations moves in a rollout


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> SavedPolicy:
    folder = tmp_path_factory.mktemp("tiny")
    return SavedPolicy(saved_tiny(folder / "policy", painted_dataset(folder / "set", episodes=2, frames=2)))


def trained_on(saved: SavedPolicy) -> tuple[Any, Any]:
    """Processors as LeRobot's trainer makes them from a checkpoint: its overrides, and the statistics of
    other data, in which the last number of state and action stood still."""
    config = saved.config
    stats = {
        key: {"mean": torch.arange(n).float(), "std": torch.tensor([0.5, 0.25, 2.0, 0.0])}
        for key, n in (("observation.state", STATE), ("action", ACTION))
    }
    features = {**config.input_features, **config.output_features}
    normalise = {"stats": stats, "features": features, "norm_map": config.normalization_mapping}
    return make_pre_post_processors(
        config,
        pretrained_path=str(saved.folder),
        preprocessor_overrides={"normalizer_processor": normalise},
        postprocessor_overrides={"unnormalizer_processor": normalise | {"features": config.output_features}},
    )


def steps(pipeline: Any) -> list[type]:
    return [type(step) for step in pipeline.steps]


def test_a_checkpoint_keeps_the_steps(saved):
    assert normalizer_processor in steps(saved.preprocess)
    assert unnormalizer_processor in steps(saved.postprocess)


def test_what_stood_still_is_centred_and_not_scaled_in_a_checkpoint_that_is_trained_on(saved):
    preprocess, postprocess = trained_on(saved)
    assert normalizer_processor in steps(preprocess)
    state = torch.arange(STATE).float() + torch.tensor([0.5, 0.5, 0.5, MOVED])
    images = {key: torch.zeros(3, 28, 28) for key, of in saved.config.image_features.items() if of}
    found = preprocess({"observation.state": state, **images, "task": "go"})["observation.state"]
    torch.testing.assert_close(found[0], torch.tensor([1.0, 2.0, 0.25, MOVED]))
    action = postprocess(torch.full((1, ACTION), 0.5))
    torch.testing.assert_close(action[0], torch.arange(ACTION) + torch.tensor([0.25, 0.125, 1.0, 0.5]))


def test_a_run_from_a_checkpoint_saves_them_again(saved, tmp_path: Path):
    preprocess, _ = trained_on(saved)
    preprocess.save_pretrained(tmp_path)
    again = type(preprocess).from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    (step,) = [one for one in again.steps if isinstance(one, normalizer_processor)]
    assert step._tensor_stats["observation.state"]["std"].tolist() == [0.5, 0.25, 2.0, 1.0]
