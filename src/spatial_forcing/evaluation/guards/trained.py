"""What a policy was trained on: from its data set, or else the statistics that were saved with it.

Shapes: T frames of an episode, D numbers of a state, A of an action, H W pixels, h w of a thumbnail,
N of them.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.datasets import DatasetError, open_dataset
from spatial_forcing.files import read_json
from spatial_forcing.geometry.check import columns_of

STATE, ACTION = "observation.state", "action"
SIDE = 32  # pixels of thumbnails
EPISODES = 12  # that are looked at


class GuardedPolicy(Protocol):
    """Protocol of what the guards ask of a policy; of its weights nothing.

    Attributes:
        config: its configuration, with the features of its inputs and outputs.
        preprocess: LeRobot's pipeline of its inputs.
        rename_map: the names of observations that its preprocessor replaces -> the policy's.
        folder: its checkpoint; None before it is trained.
    """

    @property
    def config(self) -> Any: ...

    @property
    def preprocess(self) -> Any: ...

    @property
    def rename_map(self) -> dict[str, str]: ...

    @property
    def folder(self) -> Path | None: ...


@dataclass
class Trained:
    """A policy's training data, under the policy's names of observations.

    Attributes:
        source: for messages.
        fps: label of the data set; None without one.
        firsts: thumbnails_N3hw of first frames, by camera, of the same episodes in all; ``images`` their
            mean_3hw.
        sizes: height and width, by camera.
        stats: "min", "max", "mean", "std" of states and actions.
        count: number of episodes of the data set.
        episodes: (states_TD, actions_TA) of some, those of wanted instructions first.
        instructions: all tasks of the data set.
        rendering: that the data set notes, as ``libero collect`` does; None if it notes none.
        missing: why no data set could be read, and what was not compared; empty if it could.
    """

    source: str
    fps: int | None = None
    firsts: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    stats: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    count: int = 0
    episodes: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    rendering: str | None = None
    missing: str = ""

    def bounds(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Smallest and largest values of a key; None if unknown."""
        of = self.stats.get(key, {})
        return (of["min"], of["max"]) if {"min", "max"} <= of.keys() else None


def thumbnail(image_3HW: Tensor) -> Tensor:
    """A small copy of an image."""
    return F.interpolate(image_3HW[None].float(), size=(SIDE, SIDE), mode="area")[0]


def trained_on(policy: GuardedPolicy, dataset: str | None, wanted: list[str]) -> Trained:
    """Reads a policy's training data.

    Args:
        policy: whose.
        dataset: folder or Hub name; None for the one noted beside the checkpoint.
        wanted: instructions whose episodes are looked at first.

    Raises:
        DatasetError: the data set that was asked for cannot be read.
    """
    noted = {} if policy.folder is None else _noted(policy.folder)
    rename = dict(noted.get("rename_map") or policy.rename_map)
    if dataset is not None:
        return _from_dataset(open_dataset(dataset), dataset, rename, wanted)
    of = noted.get("dataset") or {}
    for place in _places(of):
        with suppress(DatasetError):
            return _from_dataset(open_dataset(place), str(of.get("root") or of["repo_id"]), rename, wanted)
    why = f"was trained on {of.get('root') or of['repo_id']}, which is not here" if of else ""
    found = Trained("the statistics saved with it", stats=saved_statistics(policy))
    found.missing = (
        f"{why or 'does not note its training data'}: orientation, gripper, control mode and frequency were "
        "not compared. Give --dataset."
    )
    return found


def _noted(folder: Path) -> dict[str, Any]:
    """LeRobot's note of the training beside a checkpoint."""
    path = folder / "train_config.json"
    return read_json(path, "Remove it, and give --dataset.", DatasetError) if path.is_file() else {}


def _places(noted: Mapping[str, Any]) -> list[Path]:
    """Folders on this machine that hold a noted data set; nothing is downloaded for a look."""
    from huggingface_hub import try_to_load_from_cache
    from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE

    repo_id, root = noted.get("repo_id"), noted.get("root")
    places = [Path(root)] if root else []
    if repo_id and str(repo_id).count("/") == 1:
        places.append(Path(HF_LEROBOT_HOME) / repo_id)
        for cache in (HF_LEROBOT_HUB_CACHE, None):
            info = try_to_load_from_cache(repo_id, "meta/info.json", cache_dir=cache, repo_type="dataset")
            places += [Path(info).parents[1]] if isinstance(info, str) else []
    return [place for place in places if (place / "meta" / "info.json").is_file()]


def saved_statistics(policy: GuardedPolicy) -> dict[str, dict[str, np.ndarray]]:
    """The statistics that normalise a policy's inputs, of states and actions."""
    stats: dict[str, dict[str, np.ndarray]] = {}
    for step in policy.preprocess.steps:
        stats |= _numbers(getattr(step, "stats", None) or {})
    return stats


def _numbers(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of states and actions as vectors."""
    return {
        key: {name: np.asarray(value, dtype=np.float64).reshape(-1) for name, value in of.items()}
        for key, of in stats.items()
        if key in (STATE, ACTION)
    }


def _from_dataset(dataset: Any, name: str, rename: Mapping[str, str], wanted: list[str]) -> Trained:
    meta = dataset.meta
    found = Trained(
        f"the data set {name}", fps=int(meta.fps), instructions=[str(t) for t in meta.tasks.index]
    )
    renamed = {rename.get(key, key): key for key in meta.features}
    found.count = int(meta.total_episodes)
    found.stats = _numbers(
        {new: meta.stats[old] for new, old in renamed.items() if old in (meta.stats or {})}
    )
    for camera in [new for new, old in renamed.items() if old in meta.camera_keys]:
        shape, names = meta.features[renamed[camera]]["shape"], meta.features[renamed[camera]]["names"]
        height, width = shape[1:] if names and names[0] in ("channel", "channels") else shape[:2]
        found.sizes[camera] = int(height), int(width)
    firsts: dict[str, list[Tensor]] = {camera: [] for camera in found.sizes}
    for first, end in _spans(meta, wanted):
        columns = columns_of(dataset, first, end)
        if {STATE, ACTION} <= {rename.get(key, key) for key in columns}:
            pair = (columns[renamed[key]].numpy().reshape(end - first, -1) for key in (STATE, ACTION))
            found.episodes.append(tuple(pair))  # type: ignore[arg-type]
        frame = dataset[first] if firsts else {}
        for camera, images in firsts.items():
            image = torch.as_tensor(frame[renamed[camera]])
            images.append(thumbnail(image[-1] if image.ndim == 4 else image))
    found.firsts = {camera: torch.stack(images) for camera, images in firsts.items() if images}
    found.images = {camera: images_N3hw.mean(0) for camera, images_N3hw in found.firsts.items()}
    note = Path(meta.root) / "demos.json"
    if note.is_file():
        found.rendering = (read_json(note, "", DatasetError).get("spec") or {}).get("rendering")
    return found


def _spans(meta: Any, wanted: list[str]) -> list[tuple[int, int]]:
    """First and end frames of some episodes, evenly spread; of the wanted instructions if there are any."""
    episodes = [meta.episodes[number] for number in range(meta.total_episodes)]
    fit = [one for one in episodes if set(one["tasks"]) & set(wanted)] or episodes
    spread = np.linspace(0, len(fit) - 1, min(EPISODES, len(fit))).round().astype(int)
    return [
        (int(one["dataset_from_index"]), int(one["dataset_to_index"])) for one in (fit[i] for i in spread)
    ]
