"""Pre- and post-processors of OpenVLA-OFT as a LeRobot policy: prompt, normalisation, gripper.

Normalised numbers are clipped to [-1, 1], as the public code does; LeRobot's normaliser does not clip.
"""

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import FeatureType, NormalizationMode, PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    ComplementaryDataProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    TransitionKey,
)
from lerobot.processor.factory import make_default_policy_processor_steps, make_policy_processor_pipelines
from lerobot.utils.constants import ACTION, OBS_STATE

from spatial_forcing.guard import said_last
from spatial_forcing.openvla.configuration_openvla_oft import OpenVLAOFTConfig
from spatial_forcing.openvla.tokenizer_openvla_oft import OpenVLATokenizerStep, tokenizer_files

PROMPT = "In: What action should the robot take to {}?\nOut:"
ENDS = {NormalizationMode.QUANTILES: ("q01", "q99"), NormalizationMode.MIN_MAX: ("min", "max")}
# Half the range that a number is given which never changes, so that it becomes 0 and comes back as it was.
STILL = 1e-3
Features = dict[PipelineFeatureType, dict[str, PolicyFeature]]


@ProcessorStepRegistry.register(name="openvla_prompt")
class OpenVLAPromptStep(ComplementaryDataProcessorStep):
    """Puts the instruction of each sample, in lower case, into OpenVLA's prompt."""

    def complementary_data(self, complementary_data: dict[str, Any]) -> dict[str, Any]:
        task = complementary_data.get("task")
        if task is None:
            return complementary_data
        tasks = [task] if isinstance(task, str) else task
        return {**complementary_data, "task": [PROMPT.format(text.strip().lower()) for text in tasks]}

    def transform_features(self, features: Features) -> Features:
        return features


@ProcessorStepRegistry.register(name="openvla_gripper")
@dataclass
class OpenVLAGripperStep(ProcessorStep):
    """Converts the gripper, the last number of an action, between a data set's convention and OpenVLA's.

    Recorded: -1 (open) to 1 (closed), as LIBERO has it. OpenVLA's: 1 (open) and 0 (closed). On the way back
    it is open or closed and nothing in between, as in the public evaluation.

    Args:
        back: convert from OpenVLA's convention to the recorded one.
    """

    back: bool = False

    def __call__(self, transition: Any) -> Any:
        action = transition.get(TransitionKey.ACTION)
        if action is None:
            return transition
        gripper = action[..., -1:]
        converted = (
            torch.where(gripper > 0.5, -1.0, 1.0).to(action.dtype) if self.back else 1 - gripper.clamp(0, 1)
        )
        new = transition.copy()
        new[TransitionKey.ACTION] = torch.cat([action[..., :-1], converted], dim=-1)
        return new

    def get_config(self) -> dict[str, Any]:
        return {"back": self.back}

    def transform_features(self, features: Features) -> Features:
        return features


@ProcessorStepRegistry.register(name="openvla_clip")
class OpenVLAClipStep(ProcessorStep):
    """Clips the normalised state and actions to [-1, 1]."""

    def __call__(self, transition: Any) -> Any:
        new = transition.copy()
        observation, action = new.get(TransitionKey.OBSERVATION), new.get(TransitionKey.ACTION)
        if observation is not None and OBS_STATE in observation:
            clipped = observation[OBS_STATE].clamp(-1, 1)
            new[TransitionKey.OBSERVATION] = {**observation, OBS_STATE: clipped}
        if action is not None:
            new[TransitionKey.ACTION] = action.clamp(-1, 1)
        return new

    def transform_features(self, features: Features) -> Features:
        return features


def make_openvla_oft_pre_post_processors(
    config: OpenVLAOFTConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Makes the processors of a policy.

    Args:
        config: of the policy.
        dataset_stats: LeRobot's statistics of the data set, in the recorded convention.

    Raises:
        TokenizerError: the tokenizer is nowhere, or cannot be read.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats and model_stats(config, dataset_stats))
    converts = config.gripper == "openvla"
    clips = all(config.normalization_mapping.get(kind) in ENDS for kind in ("STATE", "ACTION"))
    with said_last():
        files = tokenizer_files(config.tokenizer)
    tokenizer = OpenVLATokenizerStep(
        tokenizer_name=config.tokenizer,
        files=files,
        max_length=config.tokenizer_max_length,
        padding="longest",
        padding_side="right",
    )
    before: list[ProcessorStep] = [steps.rename_observations, steps.add_batch_dim, OpenVLAPromptStep()]
    before += [tokenizer, steps.to_device, *([OpenVLAGripperStep()] if converts else []), steps.normalize]
    after: list[ProcessorStep] = [steps.unnormalize, *([OpenVLAGripperStep(back=True)] if converts else [])]
    return make_policy_processor_pipelines(
        input_steps=[*before, *([OpenVLAClipStep()] if clips else [])], output_steps=[*after, steps.to_cpu]
    )


def model_stats(config: OpenVLAOFTConfig, stats: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Statistics by which the model's numbers are normalised.

    Numbers that never change become 0; a gripper in OpenVLA's convention stays as it is.
    """
    changed = dict(stats)
    for key, kind in ((OBS_STATE, FeatureType.STATE), (ACTION, FeatureType.ACTION)):
        ends = ENDS.get(config.normalization_mapping.get(kind.value))  # type: ignore[arg-type]
        if ends is None or key not in stats or any(end not in stats[key] for end in ends):
            continue
        low, high = (torch.as_tensor(stats[key][end], dtype=torch.float64).clone() for end in ends)
        still = low == high
        low[still], high[still] = low[still] - STILL, high[still] + STILL
        if key == ACTION and config.gripper == "openvla":
            low[-1], high[-1] = -1.0, 1.0
        changed[key] = {**stats[key], ends[0]: low.numpy(), ends[1]: high.numpy()}
    return changed
