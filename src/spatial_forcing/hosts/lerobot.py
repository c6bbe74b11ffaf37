"""LeRobot's policies as hosts: the host record of a policy, and the images of a batch.

Each policy has a module of its own beside this one; `docs/hosts.md` draws the token sequences. The plug-in
package makes the policy type ``sf_<type>`` of every record, ``host_of(policy)`` reads the same records.
Nothing here imports LeRobot.

Shapes: B batch, V views, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.tap import Host

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ShownImages(NamedTuple):
    """Images of a batch to align, in the order of the host's visual tokens unless cameras were named.

    Attributes:
        images: one B3HW tensor in [0, 1] per view, before the host resizes or pads it; sizes may differ.
        present_BV: bool, False where a sample lacks a view; None if all are there.
        views: how many views have tokens in the sequence; those without one of ``images`` are missing, or
            were not asked for.
        names: the policy's name of the camera of each; None where the batch keeps no names.
        view_indices: which of the views in the sequence each is.
    """

    images: list[Tensor]
    present_BV: Tensor | None
    views: int
    names: list[str] | None
    view_indices: list[int]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each view's image."""
        return [(int(image.shape[-2]), int(image.shape[-1])) for image in self.images]


def record_of(policy: Any) -> PolicyRecord | None:
    """The record of a LeRobot policy, plain or with forcing; None for anything else."""
    # Of the class: PEFT's wrappers pass attributes of the policy inside on as their own.
    name = getattr(type(policy), "name", None)
    if not isinstance(name, str) or not hasattr(policy, "config"):
        return None
    return RECORDS.get(name.removeprefix("sf_"))


def cameras_in(config: Any, names: Any) -> list[str]:
    """The cameras of a policy that are among ``names``, in the order of its visual tokens."""
    return [key for key in config.image_features if key in names]


def images_of(
    policy: Any,
    batch: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    *,
    cameras: Sequence[str] | None = None,
    shown: Sequence[str] | None = None,
) -> ShownImages:
    """The images of a preprocessed batch as the host gets them, with normalisation undone.

    Args:
        policy: a LeRobot policy that has a record.
        batch: what its ``forward`` gets.
        stats: LeRobot's data set statistics, needed only if the policy normalises images with them; None for
            a camera whose images it leaves as they are.
        cameras: the policy's names of the cameras whose images are wanted, in the order wanted; all, in the
            order of the visual tokens, if None.
        shown: the policy's names of the cameras in the batch, in the order of the visual tokens, for
            preprocessors that leave none in it; needed there for ``cameras``.

    Raises:
        SpatialForcingError: the batch lacks images, or what would undo their normalisation.
    """
    record = record_of(policy)
    assert record is not None
    if record.images is not None:
        images = record.images(policy, batch)
        names = None if shown is None else list(shown)
        view_indices = _view_indices(names or [], cameras, len(images))
        names = names and [names[index] for index in view_indices]
        return ShownImages([images[index] for index in view_indices], None, len(images), names, view_indices)
    there = shown_cameras(policy, batch)
    view_indices = _view_indices(there, cameras, len(there))
    keys = [there[index] for index in view_indices]
    # With a history of observations the host reads the last one.
    latest = {key: batch[key][:, -1] if batch[key].ndim == 5 else batch[key] for key in keys}
    images = [_to_unit(latest[key], key, record, policy.config, stats) for key in keys]
    views = record.views(policy.config, len(there))
    return ShownImages(images, present_in(batch, keys), views, keys, view_indices)


def present_in(batch: Mapping[str, Any], keys: list[str]) -> Tensor | None:
    """Mask present_BV of some cameras of a batch; None if no sample lacks one."""
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


def _view_indices(shown: Sequence[str], cameras: Sequence[str] | None, count: int) -> list[int]:
    """View indices of the wanted cameras among the ``count`` shown; of a camera shown repeatedly, all."""
    if cameras is None:
        return list(range(count))
    missing = [camera for camera in cameras if camera not in shown]
    if missing:
        raise SpatialForcingError(
            f"The batch has no images of {', '.join(missing)}, which are to be aligned. It has those of: "
            f"{', '.join(shown)}."
        )
    found = [[index for index, name in enumerate(shown) if name == camera] for camera in cameras]
    return [index for same in zip(*found, strict=True) for index in same]


def _to_unit(
    image_B3HW: Tensor, key: str, record: PolicyRecord, config: Any, stats: Mapping[str, Any] | None
) -> Tensor:
    """Converts normalised pixels back to [0, 1]."""
    if record.pixels == "imagenet":
        mean, std = image_B3HW.new_tensor(IMAGENET_MEAN), image_B3HW.new_tensor(IMAGENET_STD)
        return (image_B3HW * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
    mode = next((str(v) for k, v in config.normalization_mapping.items() if str(k) == "VISUAL"), "IDENTITY")
    mode = mode.rsplit(".", 1)[-1]
    if mode == "IDENTITY":
        return image_B3HW
    if mode not in UNDO:
        raise SpatialForcingError(
            f"{record.type} normalises its images with {mode}, which Spatial Forcing cannot undo for the "
            f"teacher. Known: IDENTITY, {', '.join(UNDO)}."
        )
    names, undo = UNDO[mode]
    found = (stats or {}).get(key, {})
    if found is None:
        return image_B3HW
    if any(name not in found for name in names):
        raise SpatialForcingError(
            f"{record.type} normalises images ({mode}), and the statistics of {key} that would undo it for "
            f"the teacher are missing (there are: {', '.join(stats or {}) or 'none'}). {_advice(key, stats)}"
        )
    a, b = (torch.as_tensor(found[name]).to(image_B3HW).reshape(-1, 1, 1) for name in names)
    return undo(image_B3HW, a, b).clamp(0, 1)


def _advice(key: str, stats: Mapping[str, Any] | None) -> str:
    """What to do about a camera's missing statistics."""
    if stats and key not in stats:
        return (
            f"If --rename_map gave the camera this name, say what the data set calls it: "
            f"""--policy.forcing.cameras='{{"<data set's>": "{key}"}}', with an entry for every camera to """
            "align. Otherwise set normalization_mapping's VISUAL to IDENTITY."
        )
    return "Train through lerobot-train, or set normalization_mapping's VISUAL to IDENTITY."


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
