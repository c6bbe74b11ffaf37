"""Sources of token weights, and the weights that they give to a grid of tokens over each camera's image.

    confidence:<teacher>   1 - 1/c, c the confidence of the teacher's depth, above one
    mask:<column>          the share of each cell that a mask of the data set covers

c is learnt as the inverse of the error that is expected (VGGT, arXiv 2503.11651, its depth loss); the first
is 0 where the teacher knows nothing and 1 where it is sure. With ``least`` b both become b + (1 - b) w.

Shapes: B batch, V views, H W pixels, h w rows and columns of tokens.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.probe.depths import check_aspect
from spatial_forcing.probe.frames import latest

KINDS = ("confidence", "mask")
# How the names of cameras begin in a data set, as LeRobot has them.
IMAGES = "observation.images."


class WeightsSourceError(SpatialForcingError):
    """There are no weights of this kind, or they do not fit the images."""


@dataclass(frozen=True)
class WeightSource:
    """Weights of the tokens of a data set's frames.

    Attributes:
        name: what was asked for, ``confidence:vggt-1b``, ``mask:observation.masks``.
        of: (batch, cameras) -> maps_BHW of each camera, in [0, 1].
        least: weight of what has none, 0 to 1.
        identity: what else decides the weights.
    """

    name: str
    of: Callable[[Mapping[str, Any], Sequence[str]], list[Tensor]]
    least: float = 0.0
    identity: str = ""

    def __post_init__(self) -> None:
        check_least(self.least)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same frames could have other weights."""
        says = repr((self.name, self.least, self.identity))
        return hashlib.sha256(says.encode()).hexdigest()[:16]

    def weights(self, batch: Mapping[str, Any], cameras: Sequence[str], rows: int, cols: int) -> Tensor:
        """Weights of a grid of tokens over each camera's image, weights_BVhw, float32 in [0, 1].

        Raises:
            WeightsSourceError: a mask has values outside of 0 to 1, or is no image.
            ProbeError: it is of another aspect ratio than its image.
        """
        cells = []
        for camera, map_BHW in zip(cameras, self.of(batch, cameras), strict=True):
            check_aspect(camera, map_BHW, latest(batch[camera]))
            cells.append(F.adaptive_avg_pool2d(map_BHW[:, None].float(), (rows, cols)))
        return self.least + (1 - self.least) * torch.cat(cells, 1)

    def numbers(self, batch: Mapping[str, Any], cameras: Sequence[str], rows: int, cols: int) -> Tensor:
        """The weights as they are stored, weights_BVhw1."""
        return self.weights(batch, cameras, rows, cols)[..., None]


def check_least(least: float) -> None:
    """Raises :class:`WeightsSourceError` for a least weight that cannot be."""
    if not 0 <= least < 1:
        raise WeightsSourceError(
            f"The least weight is 0 or more, and below 1, where all would count alike; got {least}."
        )


def check_source(source: str) -> None:
    """Raises unless weights may come from there; nothing is loaded.

    Raises:
        UnknownNameError: no such kind, or no such teacher.
        WeightsSourceError: nothing is named, or a teacher without confidence.
    """
    kind, _, what = source.partition(":")
    if kind not in KINDS:
        raise UnknownNameError("source of token weights", kind, KINDS)
    if not what:
        raise WeightsSourceError(
            f"A source of token weights is confidence:<teacher> or mask:<column>; got {source!r}."
        )
    if kind == "confidence":
        _confident(what)


def weight_source(
    source: str, dataset: Any, cameras: Sequence[str], least: float, device: str
) -> WeightSource:
    """A source of weights, checked against a data set.

    Args:
        source: ``confidence:<teacher>`` or ``mask:<column>``: that column for the only camera, or the
            beginning of those of all cameras: ``mask:observation.masks`` for ``observation.masks.top``, the
            mask of ``observation.images.top``.
        dataset: a LeRobotDataset.
        cameras: its keys.
        least: see :class:`WeightSource`.
        device: where a teacher runs.

    Raises:
        UnknownNameError, WeightsSourceError: as of :func:`check_source`; or a mask of a camera is missing.
    """
    check_source(source)
    kind, _, what = source.partition(":")
    if kind == "mask":
        return WeightSource(source, _Masks(_mask_keys(dataset.meta.features, cameras, what)), least)
    teacher = _Confidence(what, device)
    return WeightSource(source, teacher, least, teacher.identity)


# ---- a teacher's confidence


class _Confidence:
    """1 - 1/c of each pixel, c the confidence of a teacher's depth; all cameras of a frame are one scene."""

    def __init__(self, name: str, device: str):
        record = _confident(name)
        self.estimate: Any = record.confidence(record, device)
        self.resolution, self.device = record.resolution, device
        self.identity = f"{record.resolution} px {getattr(self.estimate, 'fingerprint', '')}"

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        from spatial_forcing.probe.pseudo import estimated, of_sizes

        c_BVHW, sizes = estimated(self.estimate, batch, cameras, self.resolution, self.device)
        return of_sizes(1 - 1 / c_BVHW.float().clamp(min=1), sizes)


def _confident(name: str) -> Any:
    """The record of a teacher that tells its confidence."""
    from spatial_forcing.teachers import RECORDS, find_teacher

    record = find_teacher(name)
    if record.confidence is None:
        able = [one.name for one in RECORDS.own().values() if one.confidence is not None]
        raise WeightsSourceError(
            f"The teacher {name} gives no confidence. Of the teachers these do: {', '.join(able)}."
        )
    return record


# ---- masks of the data set


class _Masks:
    """Masks of a data set's columns, by camera: images, whose channels are averaged, or numbers (H, W)."""

    def __init__(self, keys: Mapping[str, str]):
        self.keys = keys

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        return [self._map(self.keys[camera], batch[self.keys[camera]]) for camera in cameras]

    def _map(self, key: str, found: Any) -> Tensor:
        mask = torch.as_tensor(found).float()
        if mask.ndim == 5:  # of a history the last
            mask = mask[:, -1]
        if mask.ndim == 4 and mask.shape[-1] == 1:
            mask = mask[..., 0]
        mask_BHW = mask.mean(1) if mask.ndim == 4 else mask
        if mask_BHW.ndim != 3:
            raise WeightsSourceError(
                f"{key} is no mask of an image: expected height x width numbers a frame, found "
                f"{' x '.join(map(str, mask.shape[1:])) or 'one'}."
            )
        if not ((mask_BHW >= 0) & (mask_BHW <= 1)).all():
            raise WeightsSourceError(
                f"{key} holds {mask_BHW.min():g} to {mask_BHW.max():g}; a mask goes from 0, where nothing "
                "matters, to 1. Numbers of classes are no weights: make a mask of those that matter."
            )
        return mask_BHW


def _name_of(camera: str) -> str:
    """What a camera's mask is called after: all that follows ``observation.images.``, or the last word."""
    return camera.removeprefix(IMAGES) if camera.startswith(IMAGES) else camera.rpartition(".")[2]


def _mask_keys(features: Mapping[str, Any], cameras: Sequence[str], what: str) -> dict[str, str]:
    """The column of each camera's mask."""
    if what in features and len(cameras) == 1:
        keys = {cameras[0]: what}
    else:
        keys = {camera: f"{what}.{_name_of(camera)}" for camera in cameras}
    if shown := [key for key in keys.values() if key in cameras]:
        raise WeightsSourceError(
            f"{', '.join(shown)} is a mask, and stored features show it to the teacher as a camera. Store "
            "the features of the cameras alone: spatial-forcing cache --cameras <names>."
        )
    if shared := sorted({key for key in keys.values() if [*keys.values()].count(key) > 1}):
        of = ", ".join(camera for camera, key in keys.items() if key == shared[0])
        raise WeightsSourceError(
            f"{shared[0]} would be the mask of {of} alike, and a mask is one camera's. Rename one of them in "
            "the data set, or store features of one: spatial-forcing cache --cameras <name>."
        )
    if missing := [key for key in keys.values() if key not in features]:
        raise UnknownNameError("column with a camera's mask", missing[0], features)
    return keys
