"""LeRobot's policies as hosts: one record each says where its visual tokens are and what its views show.

Adding a policy is adding a record to ``RECORDS``; `docs/hosts.md` draws the token sequences. The plug-in
package makes the policy type ``sf_<type>`` of every record, ``host_of(policy)`` reads the same records.
Nothing here imports LeRobot: records name its modules and look at the policy they are given.

Shapes: B batch, V views, H W pixels, L sequence, N visual tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts import prompted
from spatial_forcing.tap import Host

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PolicyRecord:
    """How Spatial Forcing finds its way in one of LeRobot's policies.

    Attributes:
        type: what LeRobot calls it: ``--policy.type=<type>``, ``sf_<type>`` with forcing.
        config: name of the configuration class; the policy class is named alike, as LeRobot demands.
        module: where both live, in ``configuration_<type>`` and ``modeling_<type>``.
        host: (policy, views in the token sequence) -> Host.
        upstream: policy -> what produces the visual tokens before the first block.
        sequence: the token sequence as text, for docs and ``doctor``.
        unfreeze: the flags that make the tokens trainable when nothing before the tap is.
        language_model: whether the blocks are a language model, which full fine-tuning can harm if it is
            pretrained.
        pretrained: (config) -> whether the blocks start from trained weights.
        pixels: how the policy's preprocessor leaves pictures: as ``normalization_mapping`` says ("config"),
            or always with ImageNet's mean and deviation.
        pictures: (policy, batch) -> the pictures that the policy sees, one B3HW tensor in [0, 1] a view, for
            preprocessors that leave none in the batch.
        views: (config, cameras in the batch) -> how many views have tokens in the sequence; the cameras that
            are in the batch come first.
    """

    type: str
    config: str
    host: Callable[[Any, int], Host]
    upstream: Callable[[Any], list[nn.Module]]
    sequence: str
    unfreeze: str = ""
    language_model: bool = True
    pretrained: Callable[[Any], bool] = lambda config: config.pretrained_path is not None
    pixels: Literal["config", "imagenet"] = "config"
    pictures: Callable[[Any, Mapping[str, Any]], list[Tensor]] | None = None
    views: Callable[[Any, int], int] = lambda config, present: len(config.image_features)
    module: str | None = None

    @property
    def configuration_module(self) -> str:
        return self.module or f"lerobot.policies.{self.type}.configuration_{self.type}"

    @property
    def modeling_module(self) -> str:
        return self.configuration_module.replace("configuration_", "modeling_")

    @property
    def processor_module(self) -> str:
        return self.configuration_module.replace("configuration_", "processor_")


class Pictures(NamedTuple):
    """What a batch shows, in the order of the host's visual tokens unless cameras were named.

    Attributes:
        images: one B3HW tensor in [0, 1] a view, before the host resizes or pads it; sizes may differ.
        present_BV: bool, False where a sample lacks a view; None if all are there.
        views: how many views have tokens in the sequence; those without one of ``images`` are missing, or
            were not asked for.
        names: the policy's name of the camera of each; None where the batch keeps no names.
        places: which of the views in the sequence each is.
    """

    images: list[Tensor]
    present_BV: Tensor | None
    views: int
    names: list[str] | None
    places: list[int]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each view's picture."""
        return [(int(image.shape[-2]), int(image.shape[-1])) for image in self.images]


def record_of(policy: Any) -> PolicyRecord | None:
    """The record of a LeRobot policy, plain or with forcing; None for anything else."""
    name = getattr(policy, "name", None)
    if not isinstance(name, str) or not hasattr(policy, "config"):
        return None
    return RECORDS.get(name.removeprefix("sf_"))


def cameras_in(config: Any, names: Any) -> list[str]:
    """The cameras of a policy that are among ``names``, in the order of its visual tokens."""
    return [key for key in config.image_features if key in names]


def pictures_of(
    policy: Any,
    batch: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    *,
    cameras: Sequence[str] | None = None,
    shown: Sequence[str] | None = None,
) -> Pictures:
    """The pictures of a preprocessed batch as the host gets them, with its normalisation undone.

    Args:
        policy: a LeRobot policy that has a record.
        batch: what its ``forward`` gets.
        stats: LeRobot's data set statistics, needed only if the policy normalises pictures with them.
        cameras: the policy's names of the cameras whose pictures are wanted, in the order wanted; all, in the
            order of the visual tokens, if None.
        shown: the policy's names of the cameras in the batch, in the order of the visual tokens, for
            preprocessors that leave none in it; needed there for ``cameras``.

    Raises:
        SpatialForcingError: the batch lacks pictures, or what would undo their normalisation.
    """
    record = record_of(policy)
    assert record is not None
    if record.pictures is not None:
        images = record.pictures(policy, batch)
        names = None if shown is None else list(shown)
        places = _places(names or [], cameras, len(images))
        names = names and [names[place] for place in places]
        return Pictures([images[place] for place in places], None, len(images), names, places)
    there = shown_cameras(policy, batch)
    places = _places(there, cameras, len(there))
    keys = [there[place] for place in places]
    # With a history of observations the host reads the last one.
    latest = {key: batch[key][:, -1] if batch[key].ndim == 5 else batch[key] for key in keys}
    images = [_to_unit(latest[key], key, record, policy.config, stats) for key in keys]
    views = record.views(policy.config, len(there))
    return Pictures(images, present_in(batch, keys), views, keys, places)


def present_in(batch: Mapping[str, Any], keys: list[str]) -> Tensor | None:
    """present_BV of some cameras of a batch; None if no sample lacks one."""
    masks = [batch.get(f"{key}_padding_mask") for key in keys]
    if all(mask is None for mask in masks):
        return None
    there = batch[keys[0]].new_ones(len(batch[keys[0]]), dtype=torch.bool)
    return torch.stack([there if mask is None else mask.bool() for mask in masks], dim=1)


def shown_cameras(policy: Any, batch: Mapping[str, Any]) -> list[str]:
    """The cameras of a policy that are in a batch, at least one, in the order of its visual tokens."""
    keys = cameras_in(policy.config, batch)
    if not keys:
        record = record_of(policy)
        assert record is not None
        raise SpatialForcingError(
            f"The batch has none of the cameras of {record.type}: {', '.join(policy.config.image_features)}. "
            f"It has: {', '.join(sorted(batch))}."
        )
    return keys


def _places(shown: Sequence[str], cameras: Sequence[str] | None, count: int) -> list[int]:
    """Where the wanted cameras are among the ``count`` shown; of a camera shown repeatedly all places."""
    if cameras is None:
        return list(range(count))
    missing = [camera for camera in cameras if camera not in shown]
    if missing:
        raise SpatialForcingError(
            f"The batch has no pictures of {', '.join(missing)}, which are to be aligned. It has those of: "
            f"{', '.join(shown)}."
        )
    found = [[place for place, name in enumerate(shown) if name == camera] for camera in cameras]
    return [place for same in zip(*found, strict=True) for place in same]


def _to_unit(
    image_B3HW: Tensor, key: str, record: PolicyRecord, config: Any, stats: Mapping[str, Any] | None
) -> Tensor:
    """Undoes what the policy's preprocessor did to the pixels."""
    if record.pixels == "imagenet":
        mean, std = image_B3HW.new_tensor(IMAGENET_MEAN), image_B3HW.new_tensor(IMAGENET_STD)
        return (image_B3HW * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
    mode = next((str(v) for k, v in config.normalization_mapping.items() if str(k) == "VISUAL"), "IDENTITY")
    mode = mode.rsplit(".", 1)[-1]
    if mode == "IDENTITY":
        return image_B3HW
    if mode not in UNDO:
        raise SpatialForcingError(
            f"{record.type} normalises its pictures with {mode}, which Spatial Forcing cannot undo for the "
            f"teacher. Known: IDENTITY, {', '.join(UNDO)}."
        )
    names, undo = UNDO[mode]
    found = (stats or {}).get(key)
    if found is None or any(name not in found for name in names):
        raise SpatialForcingError(
            f"{record.type} normalises pictures ({mode}), and the statistics of {key} that would undo it for "
            f"the teacher are missing (there are: {', '.join(stats or {}) or 'none'}). Train through "
            "lerobot-train, or set normalization_mapping's VISUAL to IDENTITY."
        )
    a, b = (torch.as_tensor(found[name]).to(image_B3HW).reshape(-1, 1, 1) for name in names)
    return undo(image_B3HW, a, b).clamp(0, 1)


# LeRobot's normalisations by the statistics they use, and their inverses.
UNDO: dict[str, tuple[tuple[str, str], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "MEAN_STD": (("mean", "std"), lambda x, mean, std: x * std + mean),
    "MIN_MAX": (("min", "max"), lambda x, low, high: (x + 1) / 2 * (high - low) + low),
    "QUANTILES": (("q01", "q99"), lambda x, low, high: (x + 1) / 2 * (high - low) + low),
    "QUANTILE10": (("q10", "q90"), lambda x, low, high: (x + 1) / 2 * (high - low) + low),
}


def policy_host(policy: Any, views: int | None = None) -> Host:
    """The host record of a LeRobot policy; ``views`` is how many have tokens, all cameras by default."""
    record = record_of(policy)
    assert record is not None
    if not policy.config.image_features:
        raise SpatialForcingError(
            f"This {record.type} has no cameras: Spatial Forcing has nothing to act on."
        )
    return record.host(policy, len(policy.config.image_features) if views is None else views)


def _blocks_of_tokens(views: int, tokens: int, first: int = 0, step: int | None = None) -> Any:
    """hidden_BLD -> visual_BND for views of ``tokens`` each, ``step`` apart, from ``first`` on."""
    step = step or tokens

    def visual(hidden_BLD: Tensor) -> Tensor:
        if step == tokens:
            return hidden_BLD[:, first : first + views * tokens]
        starts = range(first, first + views * step, step)
        return torch.cat([hidden_BLD[:, start : start + tokens] for start in starts], dim=1)

    return visual


def _picture_size(config: Any) -> tuple[int, int]:
    """Height and width of the pictures of a host that takes them as they come.

    Raises:
        SpatialForcingError: the cameras differ, so that one token grid cannot serve them all.
    """
    sizes = {tuple(feature.shape[-2:]) for feature in config.image_features.values()}
    if len(sizes) > 1:
        shapes = {key: tuple(feature.shape) for key, feature in config.image_features.items()}
        raise SpatialForcingError(
            f"{config.type} does not resize pictures, and its cameras have different sizes ({shapes}): their "
            "token grids differ, which Spatial Forcing does not support. Resize the pictures of the data set."
        )
    return next(iter(sizes))


# ---- the policies ------------------------------------------------------------------------------------------


def _smolvla(policy: Any, views: int) -> Host:
    config, vlm = policy.config, policy.model.vlm_with_expert.get_vlm_model()
    patch, shuffle = vlm.config.vision_config.patch_size, vlm.connector.scale_factor
    resize = config.resize_imgs_with_padding
    # LeRobot keeps this target as (width, height).
    height, width = _picture_size(config) if resize is None else (resize[1], resize[0])
    if height != width:
        raise SpatialForcingError(
            f"The connector of SmolVLM takes the tokens of a picture for those of a square; with pictures of "
            f"{height} x {width} it mixes up their places. Set resize_imgs_with_padding to a square."
        )
    rows, cols = height // patch // shuffle, width // patch // shuffle
    fit = "stretch" if resize is None else "pad"
    markers = (2, 1) if config.add_image_special_tokens else (0, 0)
    tokens = rows * cols
    return Host(
        name="SmolVLA",
        blocks=vlm.text_model.layers,
        final_norm=vlm.text_model.norm,
        width=vlm.config.text_config.hidden_size,
        layout=Layout(views, rows, cols, fit, anchor=(1.0, 1.0)),
        visual=_blocks_of_tokens(views, tokens, markers[0], sum(markers) + tokens),
    )


def _pi(policy: Any, views: int) -> Host:
    model = policy.model.paligemma_with_expert.paligemma.model
    patch = model.config.vision_config.patch_size
    rows, cols = (side // patch for side in policy.config.image_resolution)
    return Host(
        name=policy.config.type.removeprefix("sf_"),
        blocks=model.language_model.layers,
        final_norm=model.language_model.norm,
        width=model.config.text_config.hidden_size,
        layout=Layout(views, rows, cols, "pad"),
        visual=_blocks_of_tokens(views, rows * cols),
        depth=round(len(model.language_model.layers) * 2 / 3),  # 12 of 18 in the published code
    )


def _act(policy: Any, views: int) -> Host:
    config, encoder = policy.config, policy.model.encoder
    height, width = _picture_size(config)
    stride = 16 if config.replace_final_stride_with_dilation else 32
    rows, cols = ceil(height / stride), ceil(width / stride)
    # Before the pictures: the latent, the state, the environment state.
    first = 1 + bool(config.robot_state_feature) + bool(config.env_state_feature)
    # A post-norm encoder ends without a norm: LeRobot puts an identity there, which serves.
    return Host(
        name="ACT",
        blocks=encoder.layers,
        final_norm=encoder.norm,
        width=config.dim_model,
        layout=Layout(
            views,
            rows,
            cols,
            overhang=(cols * stride / width, rows * stride / height),
            offset=(1 - stride) / (2 * stride),
        ),
        visual=lambda hidden_LBD: hidden_LBD[first : first + views * rows * cols].transpose(0, 1),
        entry="",
    )


def _xvla(policy: Any, views: int) -> Host:
    config, transformer = policy.config, policy.model.transformer
    resize = config.resize_imgs_with_padding
    height, width = _picture_size(config) if resize is None else resize
    stride = 32  # of Florence-2's vision tower: 4 x 2 x 2 x 2
    rows, cols = ceil(height / stride), ceil(width / stride)
    tokens = 1 + rows * cols  # each view begins with its mean
    prompts = config.len_soft_prompts

    def visual(hidden_BLD: Tensor) -> Tensor:
        # actions | view 1, text | the other views | soft prompts
        start, end = config.chunk_size, hidden_BLD.shape[1] - prompts
        first = hidden_BLD[:, start + 1 : start + tokens]
        others = hidden_BLD[:, end - (views - 1) * tokens : end].unflatten(1, (views - 1, tokens))[:, :, 1:]
        return torch.cat([first, others.flatten(1, 2)], dim=1)

    return Host(
        name="X-VLA",
        blocks=transformer.blocks,
        final_norm=None,  # only the actions pass it
        width=config.hidden_size,
        layout=Layout(
            views,
            rows,
            cols,
            "stretch" if resize is None else "pad",
            anchor=(1.0, 1.0),
            overhang=(cols * stride / width, rows * stride / height),
            offset=(1 - stride) / (2 * stride),
        ),
        visual=visual,
        entry="norm1",
    )


def _paligemma(policy: Any) -> list[nn.Module]:
    model = policy.model.paligemma_with_expert.paligemma.model
    return [model.vision_tower, model.multi_modal_projector]


def _smolvlm(policy: Any) -> list[nn.Module]:
    vlm = policy.model.vlm_with_expert.get_vlm_model()
    return [vlm.vision_model, vlm.connector]


_LORA = "--peft.method_type=LORA --peft.target_modules='{}'"
_PI_LORA = _LORA.format(r".*\.paligemma\.model\.language_model\..*\.(q|v)_proj")
_QWEN_LORA = _LORA.format(r".*\.language_model\.layers\..*\.(q|v)_proj")

RECORDS: dict[str, PolicyRecord] = {
    record.type: record
    for record in (
        PolicyRecord(
            type="tiny",
            config="TinyConfig",
            module="spatial_forcing.hosts.tiny_policy",
            host=lambda policy, views: policy.model.spatial_forcing_host(),
            upstream=lambda policy: [policy.model.patches],
            sequence="[words] [view 1] [view 2] [state] [action queries]",
            language_model=False,
        ),
        PolicyRecord(
            type="smolvla",
            config="SmolVLAConfig",
            host=_smolvla,
            upstream=_smolvlm,
            sequence="[view 1: 8x8] [view 2: 8x8] ... [text] [state]   (action expert beside it)",
            unfreeze="--policy.train_expert_only=false, or LoRA on the VLM: "
            + _LORA.format(r".*\.text_model\.layers\..*\.(q|v)_proj"),
            pretrained=lambda config: config.load_vlm_weights or config.pretrained_path is not None,
            views=lambda config, present: (
                present + min(len(config.image_features) - present, config.empty_cameras)
            ),
        ),
        PolicyRecord(
            type="pi0",
            config="PI0Config",
            host=_pi,
            upstream=_paligemma,
            sequence="[view 1: 16x16] [view 2: 16x16] ... [text]   (action expert beside it)",
            unfreeze=f"--policy.train_expert_only=false, or LoRA on the VLM: {_PI_LORA}",
        ),
        PolicyRecord(
            type="pi05",
            config="PI05Config",
            host=_pi,
            upstream=_paligemma,
            sequence="[view 1: 16x16] [view 2: 16x16] ... [text with state]   (action expert beside it)",
            unfreeze=f"--policy.train_expert_only=false, or LoRA on the VLM: {_PI_LORA}",
        ),
        PolicyRecord(
            type="pi0_fast",
            config="PI0FastConfig",
            host=_pi,
            upstream=_paligemma,
            sequence="[view 1: 16x16] [view 2: 16x16] ... [text] [action tokens]",
            unfreeze=f"LoRA on the VLM: {_PI_LORA}",
        ),
        PolicyRecord(
            type="act",
            config="ACTConfig",
            host=_act,
            upstream=lambda policy: [policy.model.backbone, policy.model.encoder_img_feat_input_proj],
            sequence="[latent] [state] [view 1: H/32 x W/32] [view 2: H/32 x W/32] ...",
            language_model=False,
        ),
        PolicyRecord(
            type="xvla",
            config="XVLAConfig",
            host=_xvla,
            upstream=lambda policy: [policy.model.vlm, policy.model.transformer.vlm_proj],
            sequence="[actions] [view 1: mean, 7x7] [text] [view 2: mean, 7x7] ... [soft prompts]",
            unfreeze="--policy.train_policy_transformer=true",
            pixels="imagenet",
            language_model=False,
            views=lambda config, present: max(config.num_image_views or 0, present),
        ),
        PolicyRecord(
            type="groot",
            config="GrootConfig",
            host=prompted.groot_host,
            upstream=prompted.groot_upstream,
            sequence="[padding] [text] [view 1: 8x8] [view 2: 8x8] ... [text]   (action head on top)",
            unfreeze="--policy.tune_top_llm_layers=4, --policy.tune_llm=true or --policy.tune_visual=true, "
            f"or LoRA on the VLM: {_QWEN_LORA}",
            pretrained=lambda config: True,
            pictures=prompted.groot_pictures,
        ),
        PolicyRecord(
            type="eo1",
            config="EO1Config",
            host=prompted.eo1_host,
            upstream=prompted.eo1_upstream,
            pretrained=lambda config: True,
            sequence="[text] [view 1: H/28 x W/28] [view 2: H/28 x W/28] ... [text] [state] [actions]",
            unfreeze=f"LoRA on the VLM: {_QWEN_LORA}",
        ),
        PolicyRecord(
            type="evo1",
            config="Evo1Config",
            host=prompted.evo1_host,
            upstream=prompted.evo1_upstream,
            pretrained=lambda config: True,
            sequence="[words] [view 1: 16x16] [words] [view 2: 16x16] ... [text]   (action head on top)",
            unfreeze="--policy.training_stage=stage2",
            views=lambda config, present: config.max_views,
        ),
    )
}
