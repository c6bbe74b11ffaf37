"""Which variant of OpenVLA a checkpoint is: by its files, what it says of itself, what the caller says."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.openvla.config import MODEL_TYPE, PLAIN, OpenVLAConfig, own_record
from spatial_forcing.openvla.layout import Found, part_file

# OFT's released recipe, for what no file of a public checkpoint says.
OFT = {"views": 2, "chunk": 8}


class Wanted(TypedDict, total=False):
    """What a caller knows or wants of a checkpoint, where its files do not say.

    views, chunk, parallel, normalisation: see `OpenVLAConfig`; public checkpoints do not record them.
    head, proprio, film: True where OFT's head, the projector of the state or the modulated vision backbone
    must be there, False where it is left out though it may be there.
    """

    views: int
    chunk: int
    parallel: bool
    normalisation: Literal["q99", "bounds"]
    head: bool
    proprio: bool
    film: bool


# The parts that a caller can demand or leave out: by file, the argument, the config's word, and what it is.
SWITCHES = {
    "action_head": ("head", "regression", "OFT's action head"),
    "proprio_projector": ("proprio", "proprio_width", "the projector of the proprioceptive state"),
    "vision_backbone": ("film", "film", "the vision backbone with FiLM"),
}


def wants(part: str, wanted: Wanted) -> bool:
    """Whether a part is read where its file is there."""
    return wanted.get(SWITCHES[part][0], True) is not False if part in SWITCHES else True


def config_of(
    released: Mapping[str, Any],
    parts: Mapping[str, Found],
    wanted: Wanted,
    problems: list[str],
    notes: list[str],
) -> OpenVLAConfig | None:
    """Builds the configuration that a checkpoint loads into.

    Args:
        released: content of its config.json.
        parts: what is in the files of OFT's parts.
        wanted: what the caller knows.
        problems, notes: get one more sentence for whatever is wrong, or assumed.

    Returns:
        The configuration, or None where none can be told.
    """
    try:
        own = own_record(released)
        _check_parts(parts, own, wanted, problems)
        return OpenVLAConfig.from_released(released, **_variant(own, parts, wanted, notes))
    except SpatialForcingError as error:
        problems.append(str(error))
        return None


def _variant(
    own: Mapping[str, Any], parts: Mapping[str, Found], wanted: Wanted, notes: list[str]
) -> dict[str, Any]:
    known = {**own, **{k: v for k, v in wanted.items() if k not in ("head", "proprio", "film")}}
    parallel = known.get("parallel", bool(parts))
    assumed = {k: v for k, v in (OFT if parallel else PLAIN).items() if k in OFT and k not in known}
    if parallel and assumed:
        words = {"views": "views", "chunk": "actions per chunk"}
        told = " and ".join(f"{value} {words[name]}" for name, value in assumed.items())
        notes.append(
            f"Assumed {told}, as in OFT's LIBERO recipe: no file says it. Name others if they differ."
        )
    elif "parallel" not in known and not parts:
        notes.append("Taken for plain OpenVLA, token by token; name parallel=True for OFT's discrete tokens.")
    state = _width(parts, "proprio_projector", "fc1.weight", 1) or known.get("proprio_width") or 8
    return {
        **{name: known.get(name, assumed.get(name)) for name in OFT},
        "parallel": parallel,
        "regression": "action_head" in parts,
        "film": "vision_backbone" in parts,
        "proprio_width": state if "proprio_projector" in parts else None,
        "action_width": _width(parts, "action_head", "model.fc2.bias", 0) or known.get("action_width", 7),
        "normalisation": known.get("normalisation", "q99"),
    }


def _check_parts(
    parts: Mapping[str, Found], own: Mapping[str, Any], wanted: Wanted, problems: list[str]
) -> None:
    head = parts.get("action_head")
    if "noisy_action_projector" in parts or (head and any("noise_predictor" in n for n in head.entries)):
        problems.append("Its action head is OFT's diffusion head, which is not built in this package.")
    for part, (argument, word, what) in SWITCHES.items():
        demanded = wanted.get(argument, bool(own.get(word)))
        # The projector of the state comes with a head, in everything that is published.
        if part == "action_head" and "head" not in wanted and "proprio_projector" in parts:
            demanded = True
        if demanded and part not in parts:
            found = ", ".join(sorted(f.name for each in parts.values() for f in each.files)) or "no such file"
            problems.append(
                f"{what[0].upper()}{what[1:]} is missing: expected {part_file(part, '<step>')}, found "
                f"{found}. Complete the checkpoint, or name {argument}=False to load it without."
            )


def _width(parts: Mapping[str, Found], part: str, name: str, axis: int) -> int | None:
    """Size of a part's tensor along an axis; None where there is no such tensor, which is said elsewhere."""
    entry = parts[part].entries.get(f"{part}.{name}") if part in parts else None
    return entry.shape[axis] if entry is not None and len(entry.shape) > axis else None


def variant_in_words(
    released: Mapping[str, Any], config: OpenVLAConfig | None, parts: Mapping[str, Found]
) -> str:
    """What a checkpoint is, in words."""
    if released.get("model_type") != MODEL_TYPE:
        return f"no checkpoint of OpenVLA (model_type {released.get('model_type')!r})"
    head = parts.get("action_head")
    diffusion = head is not None and any("noise_predictor" in name for name in head.entries)
    kinds = [
        ("with an L1 head", head is not None and not diffusion),
        ("with a diffusion head", diffusion or "noisy_action_projector" in parts),
        ("with discrete tokens", head is None and config is not None and config.parallel),
        ("with proprioception", "proprio_projector" in parts),
        ("with FiLM", "vision_backbone" in parts),
    ]
    said = [words for words, true in kinds if true]
    return f"OpenVLA-OFT {', '.join(said)}" if said else "plain OpenVLA"
