"""A small OpenVLA on disk, laid out as the public checkpoints are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from safetensors.torch import save_file
from torch import Tensor

from spatial_forcing.openvla.config import OWN_KEY, SMALL, OpenVLAConfig
from spatial_forcing.openvla.layout import released_name
from spatial_forcing.openvla.model import OpenVLA

BOUNDS = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
STATISTICS = {"libero_goal_no_noops": {"action": BOUNDS, "proprio": {"q01": [0.0] * 8, "q99": [1.0] * 8}}}
OFT = replace(SMALL, norm_stats=STATISTICS)
INDEX = "model.safetensors.index.json"
CAMERAS = ("observation.images.image", "observation.images.image2")
HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"


def features(actions: int = 7, states: int = 8, cameras: tuple[str, ...] = CAMERAS) -> dict[str, Any]:
    """Features of LIBERO as options of a policy's configuration."""
    inputs = {camera: PolicyFeature(FeatureType.VISUAL, (3, 40, 40)) for camera in cameras}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (states,))
    return {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (actions,))},
    }


def built(config: OpenVLAConfig = OFT, dtype: torch.dtype = torch.float32) -> OpenVLA:
    torch.manual_seed(0)
    return OpenVLA(config).eval().to(dtype)


def state_of(model: OpenVLA) -> dict[str, Tensor]:
    return {released_name(name): tensor for name, tensor in model.state_dict().items()}


def write_released(
    folder: Path, model: OpenVLA, *, shards: int = 3, step: int | str = 150000, wrapped: bool = True
) -> Path:
    """Writes a checkpoint as it is released: no word of ours in it but the towers' sizes, of which no public
    configuration knows any but the full ones."""
    folder.mkdir(exist_ok=True)
    config = model.config.released()
    config = {**config, "norm_stats": {}, "torch_dtype": "bfloat16"}
    config[OWN_KEY] = {"timm_arguments": config[OWN_KEY]["timm_arguments"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    state, prefix = state_of(model), "module." if wrapped else ""
    for part in ("action_head", "proprio_projector"):
        if own := {n: state.pop(n) for n in list(state) if n.startswith(part)}:
            own = {f"{prefix}{n.removeprefix(f'{part}.')}": tensor for n, tensor in own.items()}
            torch.save(own, folder / f"{part}--{step}_checkpoint.pt")
    names, places = list(state), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: state[n].contiguous() for n in names[i::shards]}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names[i::shards], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def change_json(path: Path, change: Callable) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
