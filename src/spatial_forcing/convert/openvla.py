"""Conversion of OpenVLA-OFT checkpoints: from the released layout to LeRobot's, and back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spatial_forcing.convert.options import Convert
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder, check_space, filled_folder
from spatial_forcing.openvla.base import is_released, local_checkpoint, read_architecture
from spatial_forcing.openvla.config import DINOV2, OWN_KEY, POLICY_KEY, OpenVLAConfig
from spatial_forcing.openvla.inspect import CheckpointRecord, inspect_checkpoint
from spatial_forcing.openvla.statistics import NORMALISATIONS, Statistics
from spatial_forcing.probe.policies import checkpoint_folder

TOKENIZER = "openvla/openvla-7b"
BYTES = {"float32": 4, "bfloat16": 2}
DEFAULT_KEY = "lerobot"
# What a released checkpoint's config.json has no place for, and what released ones are.
DEFAULTS: dict[str, Any] = {
    "gripper": "openvla",
    "inference_crop": 0.9,
    "n_action_steps": None,
    "tokenizer_max_length": 64,
    "cameras": ["observation.images.image", "observation.images.image2"],
}
PUBLIC_GRIPPER = (
    "Warning: its gripper is as recorded in its data; the public scripts take 1 for open and 0 for closed. "
    "To roll it out with them train with --policy.gripper=openvla."
)


class ConversionError(SpatialForcingError):
    """A checkpoint cannot be converted."""


def convert(options: Convert) -> list[str]:
    """Converts a checkpoint.

    Returns:
        What was done, and what was assumed, as sentences.

    Raises:
        SpatialForcingError: it is no checkpoint of OpenVLA-OFT, does not load, or the output folder holds
            one.
    """
    check_folder(options.out, ConversionError)
    _check_free(options.out)
    if is_released(options.checkpoint):
        return to_lerobot(local_checkpoint(options.checkpoint), options)
    folder = checkpoint_folder(options.checkpoint)
    found = _lerobot_type(folder)
    if found != "openvla_oft":
        what = f"one of LeRobot's {found!r}" if found else "none"
        raise ConversionError(
            f"{folder} is no checkpoint of OpenVLA-OFT: expected a config.json of model_type 'openvla' "
            f"(released) or type 'openvla_oft' (LeRobot's), found {what}."
        )
    read = [] if folder == Path(options.checkpoint) else [f"Read {folder.resolve()}."]
    return read + to_released(folder, options)


def _check_free(out: Path) -> None:
    found = sorted(path.name for pattern in ("*.safetensors", "config.json") for path in out.glob(pattern))
    if found:
        raise ConversionError(
            f"{out} holds a checkpoint already ({', '.join(found[:3])}): name another folder."
        )


def _lerobot_type(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text()).get("type")
    except (OSError, ValueError, AttributeError):
        return None


# ---- released to LeRobot's


def to_lerobot(folder: Path, options: Convert) -> list[str]:
    """Writes a released checkpoint as one of LeRobot.

    Raises:
        SpatialForcingError: see `convert`; or there is no such un-normalisation key, or too few cameras.
    """
    from lerobot.policies.factory import get_policy_class

    from spatial_forcing.openvla.processor_openvla_oft import make_openvla_oft_pre_post_processors

    wanted: dict[str, Any] = {"views": options.views, "chunk": options.chunk}
    record = inspect_checkpoint(folder, **{k: v for k, v in wanted.items() if v is not None})
    found = record.check()
    statistics = Statistics(found.norm_stats, found.normalisation)
    key = statistics.resolve(options.key)
    stats = lerobot_stats(statistics, key, found)
    config = _config(folder, found, options)
    config.dtype, said = _dtype(record, options)
    pre, post = make_openvla_oft_pre_post_processors(config, stats)
    check_space(options.out, record.parameters * BYTES[config.dtype], error=ConversionError)
    policy = get_policy_class("openvla_oft")(config).eval()
    config.base_checkpoint = None
    with filled_folder(options.out, ConversionError) as out:
        for part in (policy, pre, post):
            part.save_pretrained(out)
    return [
        f"Wrote {options.out}: openvla_oft of LeRobot, from {record.variant}.",
        f"Un-normalisation key: {key}. Cameras, in the order of the views: "
        f"{', '.join(config.image_features)}. Gripper: {config.gripper}. Tokenizer: {config.tokenizer}.",
        said,
        *record.notes,
    ]


def _dtype(record: CheckpointRecord, options: Convert) -> tuple[str, str]:
    """The data type that a released checkpoint is written in, and what to say of it.

    LeRobot's policy is of one type; every float16 number is one of float32.
    """
    own = record.dtypes["language_model"]
    chosen = options.dtype or (own if own in BYTES else "float32")
    others = [f"{part} was {kind}" for part, kind in record.dtypes.items() if kind != chosen]
    was = f"; {', '.join(others)}" if others else ", as the checkpoint's"
    return chosen, f"Data type of the weights: {chosen}{was}."


def _config(folder: Path, found: OpenVLAConfig, options: Convert) -> Any:
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature

    from spatial_forcing.openvla.configuration_openvla_oft import OpenVLAOFTConfig

    chosen = policy_options(found, options)
    cameras = chosen.pop("cameras")
    if len(cameras) < found.views:
        raise ConversionError(
            f"{folder} has {found.views} views: name as many --cameras, found {len(cameras)} "
            f"({', '.join(cameras)})."
        )
    mode = NormalizationMode.MIN_MAX if found.normalisation == "bounds" else NormalizationMode.QUANTILES
    size, state = found.towers[0].image_size, found.proprio_width
    inputs = {camera: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for camera in cameras[: found.views]}
    if state is not None:
        inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (state,))
    decoding = "l1" if found.regression else "tokens" if found.parallel else "autoregressive"
    own_tokenizer = str(folder.resolve()) if (folder / "tokenizer_config.json").is_file() else TOKENIZER
    return OpenVLAOFTConfig(
        base_checkpoint=str(folder),
        architecture=read_architecture(folder),
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (found.action_width,))},
        normalization_mapping={"VISUAL": NormalizationMode.IDENTITY, "STATE": mode, "ACTION": mode},
        decoding=decoding,
        use_proprio=state is not None,
        film=found.film,
        chunk_size=found.chunk,
        **chosen,
        tokenizer=options.tokenizer or own_tokenizer,
        device="cpu",
        push_to_hub=False,
    )


def policy_options(found: OpenVLAConfig, options: Convert) -> dict[str, Any]:
    """Options of LeRobot's policy: those asked for, else those the checkpoint says, else as released ones.

    Raises:
        ConversionError: the checkpoint says something that is no such option.
    """
    chosen = {}
    for name, default in ({**DEFAULTS, "n_action_steps": found.chunk}).items():
        value, kind = found.policy.get(name, default), type(default)
        if not isinstance(value, kind) and not (kind is float and value == 1):
            raise ConversionError(
                f"config.json says that {name} is {value!r}, expected a {kind.__name__}. Remove it from "
                f"{POLICY_KEY!r} of {OWN_KEY!r} there."
            )
        asked = getattr(options, name, None)
        chosen[name] = value if asked is None else asked
    return chosen


def lerobot_stats(statistics: Statistics, key: str, found: OpenVLAConfig) -> dict[str, dict[str, Any]]:
    """LeRobot's statistics of actions and state from those of a released checkpoint.

    Numbers that the checkpoint does not normalise have the range -1 to 1, which leaves them as they are.
    """
    names = NORMALISATIONS[found.normalisation]
    kinds = {"action": "action", "observation.state": "proprio"}
    if found.proprio_width is None:
        del kinds["observation.state"]
    stats = {}
    for feature, kind in kinds.items():
        bounds = statistics.bounds(key, kind)  # type: ignore[arg-type]
        low, high = (
            torch.where(torch.tensor(bounds.mask), torch.tensor(end, dtype=torch.float64), plain).numpy()
            for end, plain in ((bounds.low, -1.0), (bounds.high, 1.0))
        )
        stats[feature] = dict(zip(names, (low, high), strict=True))
    return stats


# ---- LeRobot's to released


def to_released(folder: Path, options: Convert) -> list[str]:
    """Writes a checkpoint of LeRobot in the released layout, with its adapter merged.

    Raises:
        SpatialForcingError: see `convert`.
    """
    from spatial_forcing.openvla.checkpoint import save_openvla
    from spatial_forcing.saved_policy import LoadedPolicy

    loaded = LoadedPolicy(folder)
    policy: Any = loaded.policy
    merged = ""
    if loaded.config.use_peft:
        policy, merged = policy.merge_and_unload(), ", its adapter merged"
    key = options.key or DEFAULT_KEY
    model: Any = policy.model
    model.config = replace(
        model.config, norm_stats={key: released_stats(loaded)}, policy=own_options(loaded.config)
    )
    if options.dtype is not None:
        model = model.to(getattr(torch, options.dtype))
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters()})
    tokenizer = Path(loaded.config.tokenizer)
    carried = carried_tokenizer(loaded)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    check_space(options.out, size, error=ConversionError)
    with filled_folder(options.out, ConversionError) as out:
        save_openvla(model, out, processor=tokenizer if tokenizer.is_dir() else None)
        for name, content in carried.items():
            (out / name).write_bytes(content)
    return [
        f"Wrote {options.out}: OpenVLA in the released layout{merged}; un-normalisation key {key}.",
        f"Data type of the weights: {' and '.join(kinds)}.",
        *_for_public_scripts(loaded.config, model.config, carried=bool(carried)),
    ]


def _for_public_scripts(config: Any, sizes: OpenVLAConfig, *, carried: bool) -> Iterator[str]:
    """What the public scripts lack, or take otherwise, in a checkpoint that was LeRobot's."""
    if config.gripper == "as_recorded":
        yield PUBLIC_GRIPPER
    if not Path(config.tokenizer).is_dir():
        needed = "image processor" if carried else "tokenizer and image processor"
        yield f"The public scripts need the files of {needed} of {TOKENIZER} beside it."
    if sizes.towers[0].model != DINOV2:
        yield "Its vision towers are not OpenVLA's: the public code cannot load it."


def carried_tokenizer(loaded: Any) -> dict[str, bytes]:
    """Files of the tokenizer that a policy's checkpoint carries; none of one that has its name alone."""
    return next((step.files for step in loaded.preprocess.steps if hasattr(step, "files")), {})


def own_options(config: Any) -> dict[str, Any]:
    """Options of a policy that the released layout has no place for, to be read on the way back."""
    return {name: getattr(config, name) for name in DEFAULTS if name != "cameras"} | {
        "cameras": list(config.image_features)
    }


def released_stats(loaded: Any) -> dict[str, dict[str, Any]]:
    """Statistics in OpenVLA's format, of the ranges that a policy's processors normalise with."""
    steps = [step for step in loaded.preprocess.steps if getattr(step, "_tensor_stats", None)]
    if not steps:
        raise ConversionError("The checkpoint's preprocessor has no statistics: its actions have no units.")
    stats: Mapping[str, Mapping[str, Any]] = steps[0]._tensor_stats
    ends = NORMALISATIONS[loaded.config.normalisation]
    record = {}
    for feature, kind in (("action", "action"), ("observation.state", "proprio")):
        if feature not in stats or any(end not in stats[feature] for end in ends):
            continue
        record[kind] = {end: stats[feature][end].flatten().tolist() for end in ends}
        mask = [True] * len(record[kind][ends[0]])
        if kind == "action" and loaded.config.gripper == "openvla":
            mask[-1] = False
        record[kind]["mask"] = mask
    return record
