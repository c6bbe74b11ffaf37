"""The released checkpoint that a new policy begins with: on disk or on the Hub, whole or with new parts."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import read_json
from spatial_forcing.openvla.checkpoint import fill_buffers, load_openvla
from spatial_forcing.openvla.config import MODEL_TYPE, OWN_KEY, OpenVLAConfig, own_record
from spatial_forcing.openvla.inspect import inspect_checkpoint
from spatial_forcing.openvla.layout import ADVICE, CONFIG, plain_vision, some
from spatial_forcing.openvla.model import OpenVLA
from spatial_forcing.teachers.checkpoint import WeightsError

# What is fetched of a repository: no code, and of PyTorch's files the parts alone.
FETCHED = ("*.json", "*.safetensors", "*_checkpoint.pt", "tokenizer*")
# Parts that a checkpoint need not have.
HEADS = ("action_head.", "proprio_projector.")
VISION = "vision_backbone."


def local_checkpoint(name: str, *, what: str = "checkpoint", files: Iterable[str] = FETCHED) -> Path:
    """The folder of a checkpoint: as it is on disk, or fetched from the Hub.

    Args:
        name: folder or repository.
        what: is looked for, for messages.
        files: patterns of what is fetched.

    Raises:
        WeightsError: it is neither a folder nor can it be fetched.
        MissingDependencyError: huggingface_hub is not installed.
    """
    if Path(name).exists():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub", "lerobot") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise WeightsError(
            f"No {what} {name!r}: expected a folder, or a repository on the Hub, which could not be "
            f"fetched: {str(error).strip().splitlines()[0]}"
        ) from error


def is_released(name: str) -> bool:
    """Whether a folder or repository holds a checkpoint in the released layout; False if nobody can tell."""
    config = Path(name) / CONFIG
    if not Path(name).exists():
        config = _fetched_config(name)
    try:
        return json.loads(config.read_text()).get("model_type") == MODEL_TYPE if config else False
    except (OSError, ValueError, AttributeError):
        return False


def _fetched_config(name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, CONFIG))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def read_architecture(folder: Path) -> dict[str, Any]:
    """Content of a released config.json less the statistics: the sizes.

    Raises:
        WeightsError: there is none, or it cannot be read.
    """
    return architecture_of(read_json(folder / CONFIG, ADVICE, WeightsError))


def architecture_of(released: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in the content of a released config.json, without statistics and variant."""
    sizes = {key: value for key, value in released.items() if key not in ("norm_stats", OWN_KEY)}
    arguments = own_record(released).get("timm_arguments")
    return sizes | ({OWN_KEY: {"timm_arguments": arguments}} if arguments else {})


def begin_with(
    folder: Path,
    config: OpenVLAConfig,
    *,
    new_head: bool = False,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> OpenVLA:
    """Builds a model with the weights of a released checkpoint.

    Action head and projector of the state are new where the checkpoint has none, as are FiLM's layers.

    Args:
        folder: of the checkpoint.
        config: of the model.
        new_head: leave out the head and the projector that the checkpoint has.
        dtype: of all weights.
        attention: "sdpa" or "eager".

    Raises:
        WeightsError: the checkpoint does not load, or has a head for other actions.
    """
    found = inspect_checkpoint(folder).check()
    wanted: dict[str, Any] = {}
    if not (found.regression and config.regression) or new_head:
        wanted["head"] = False
    if not (found.proprio_width and config.proprio_width) or new_head:
        wanted["proprio"] = False
    if not config.film:
        wanted["film"] = False
    wanted |= {"parallel": True} if found.parallel else {}
    source = load_openvla(folder, dtype=dtype, attention=attention, **wanted)
    with torch.device("meta"):
        model = OpenVLA(config, attention=attention)
    state, expected = source.state_dict(), model.state_dict()
    new_film = config.film and not source.config.film
    names = {name: plain_vision(name) if new_film and name.startswith(VISION) else name for name in expected}
    weights = {name: state[was] for name, was in names.items() if was in state}
    _check_shapes(folder, expected, weights)
    missing = [name for name in expected if name not in weights]
    wrong = [*(state.keys() - set(names.values())), *(n for n in missing if not _may_be_new(n, new_film))]
    if wrong:
        raise WeightsError(f"{folder} does not fit the model: {some(sorted(wrong))}.")
    model.load_state_dict(weights, strict=False, assign=True)
    fill_buffers(model, "cpu")
    return _with_new_parts(model, dtype)


def _may_be_new(name: str, new_film: bool) -> bool:
    return name.startswith(HEADS) or (new_film and name.startswith(VISION) and plain_vision(name) is None)


def _check_shapes(
    folder: Path, expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> None:
    """A head for other actions or states is refused; a new one is to be asked for by name."""
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"{folder} is of a model for other actions, states or sizes: {'; '.join(wrong[:3])}. To begin "
            "with a new head and a new projector of the state: --policy.new_head=true."
        )


def _with_new_parts(model: OpenVLA, dtype: torch.dtype) -> OpenVLA:
    """Draws the weights of whatever has none yet, as its layers do when they are built."""
    for module in model.modules():
        own: list[Any] = list(module.parameters(recurse=False))
        if any(parameter.is_meta for parameter in own):
            module.to_empty(device="cpu", recurse=False)
            cast(Any, module).reset_parameters()  # linear layers and layer norms have it
            module.to(dtype)
    return model
