"""Inputs of OpenVLA-OFT as a LeRobot policy, as published: images, normalisation, gripper, prompt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode
from PIL import Image
from small_openvla import CAMERAS, features
from small_policies import small_batch, small_config, small_policy

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.openvla.images import centre_crop, resized
from spatial_forcing.openvla.statistics import Statistics

KIND = "openvla_oft"


# ---- images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height_width", [(256, 256), (40, 60), (480, 640)])
def test_images_are_resized_as_pillow_does_with_lanczos(height_width):
    pixels_HW = np.random.default_rng(0).integers(0, 256, height_width, dtype=np.uint8)
    # In floating point: of 8-bit images Pillow rounds between rows and columns, which TensorFlow does not.
    stretched = Image.fromarray(pixels_HW.astype(np.float32)).resize((56, 56), Image.Resampling.LANCZOS)
    expected = torch.from_numpy(np.array(stretched)).clamp(0, 255)
    found = resized(torch.from_numpy(pixels_HW)[None, None].float() / 255, 56)[0, 0] * 255
    assert (found - expected).abs().max() <= 0.5 + 1e-3
    assert torch.allclose(found, found.round(), atol=1e-4)


def test_the_crop_in_the_middle_keeps_ramps():
    x_W = torch.linspace(-1, 1, 20)
    ramp_1CHW = x_W.expand(1, 1, 20, 20).contiguous()
    found = centre_crop(ramp_1CHW, 0.81)
    assert torch.allclose(found[0, 0, 3], 0.9 * x_W, atol=1e-5)
    assert torch.equal(centre_crop(ramp_1CHW, 1), ramp_1CHW)


def test_only_rollouts_see_the_crop(folder):
    policy, cropped = small_policy(KIND, folder), small_policy(KIND, folder, inference_crop=0.8)
    batch = small_batch(policy)
    assert torch.equal(policy(batch)[0], cropped(batch)[0])
    assert not torch.equal(policy.predict_action_chunk(batch), cropped.predict_action_chunk(batch))


# ---- processors --------------------------------------------------------------------------------------------


def processors(folder: Path, stats: dict, **options: Any):
    from spatial_forcing.openvla.processor_openvla_oft import make_openvla_oft_pre_post_processors

    config = small_config(KIND, folder, **features(), device="cpu", **options)
    return make_openvla_oft_pre_post_processors(config, stats)


def random_stats() -> dict[str, dict[str, Any]]:
    rng, stats = np.random.default_rng(1), {}
    for key, width in (("action", 7), ("observation.state", 8)):
        low, high = rng.uniform(-2, -0.5, width), rng.uniform(0.5, 2, width)
        low[1] = high[1] = 0.3  # never moves
        stats[key] = {"q01": low, "q99": high, "min": low - 1, "max": high + 1}
    return stats


def frame(actions: torch.Tensor) -> dict[str, Any]:
    images = {camera: torch.rand(len(actions), 3, 40, 40) for camera in CAMERAS}
    state = torch.linspace(-3, 3, 8).repeat(len(actions), 1)
    state[:, 1] = 0.3
    return images | {"observation.state": state, "action": actions, "task": ["Move the Hand"] * len(actions)}


@pytest.mark.parametrize("normalisation", ["q99", "bounds"])
def test_numbers_are_normalised_and_clipped_as_by_the_public_code(folder, normalisation):
    stats = random_stats()
    ends = ("q01", "q99") if normalisation == "q99" else ("min", "max")
    mapping = {"VISUAL": "IDENTITY"} | dict.fromkeys(
        ("STATE", "ACTION"), "QUANTILES" if normalisation == "q99" else "MIN_MAX"
    )
    before, after = processors(
        folder, stats, normalization_mapping={k: NormalizationMode(v) for k, v in mapping.items()}
    )
    action = torch.linspace(-3, 3, 21).reshape(3, 7)
    action[:, 1] = stats["action"][ends[0]][1]
    batch = before(frame(action))
    record = {
        kind: {end: stats[key][end].tolist() for end in ends}
        for key, kind in (("action", "action"), ("observation.state", "proprio"))
    }
    public = Statistics({"d": record}, normalisation)
    assert torch.allclose(batch["action"], public.bounds().normalise(action), atol=1e-4)
    state = frame(action)["observation.state"]
    assert torch.allclose(batch["observation.state"], public.bounds(of="proprio").normalise(state), atol=1e-4)
    normalised = torch.linspace(-1, 1, 21).reshape(3, 7)
    normalised[:, 1] = 0
    assert torch.allclose(after(normalised), public.bounds().unnormalise(normalised), atol=1e-4)


def test_the_gripper_goes_to_openvlas_convention_and_back(folder):
    stats = random_stats()
    before, after = processors(folder, stats, gripper="openvla")
    action = torch.zeros(3, 7)
    action[:, -1] = torch.tensor([-1.0, 1.0, -1.0])  # open, closed, open, as LIBERO records it
    assert before(frame(action))["action"][:, -1].tolist() == [1.0, 0.0, 1.0]
    predicted = torch.zeros(3, 7)
    predicted[:, -1] = torch.tensor([0.9, 0.2, 0.6])
    assert after(predicted)[:, -1].tolist() == [-1.0, 1.0, -1.0]
    left, _ = processors(folder, stats)
    ends = [stats["action"][end][-1] for end in ("q01", "q99")]
    expected = (2 * (action[:, -1] - ends[0]) / (ends[1] - ends[0]) - 1).clamp(-1, 1)
    assert torch.allclose(left(frame(action))["action"][:, -1], expected.float(), atol=1e-5)


def test_prompts_are_openvlas(folder):
    before, _ = processors(folder, random_stats())
    said = []
    (step,) = (step for step in before.steps if type(step).__name__ == "OpenVLATokenizerStep")
    tokenize = step._tokenize_text
    step._tokenize_text = lambda text: said.append(text) or tokenize(text)
    before(frame(torch.zeros(2, 7)))
    assert said == [["In: What action should the robot take to move the hand?\nOut:"] * 2]


def test_processors_without_actions_are_those_of_rollouts(folder):
    before, _ = processors(folder, random_stats(), gripper="openvla")
    observed = {k: v for k, v in frame(torch.zeros(1, 7)).items() if k != "action"}
    assert before(observed)["observation.state"].abs().max() <= 1
    assert before(observed)["action"] is None


# ---- the published code's shift ----------------------------------------------------------------------------


def test_tokens_are_read_one_late_where_asked_for(folder):
    right, late = (
        small_policy(KIND, folder, forcing={"one_token_late": late}).forcing.tap.site
        for late in (False, True)
    )
    hidden_BLD = torch.arange(60.0).reshape(1, 60, 1)
    assert torch.equal(right.visual(hidden_BLD)[0, :, 0], torch.arange(1.0, 33))
    assert torch.equal(late.visual(hidden_BLD)[0, :, 0], torch.arange(2.0, 34))


def test_policies_that_nobody_reads_late_say_so(folder):
    with pytest.raises(SpatialForcingError, match=r"one_token_late.*\(openvla_oft\).*act"):
        small_policy("act", folder, forcing={"one_token_late": True})
