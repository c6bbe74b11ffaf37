"""Pseudo depth: a model's estimate in place of a measurement, named as such beside every number.

Of a teacher that has a depth head, or of any depth-estimation model of the transformers library. What is not
in metres (VGGT and Depth Anything 3, whose scale is that of the scene; models that give disparity) is divided
by its image's median.

Shapes: B batch, V views, H W pixels.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.device import checked_device
from spatial_forcing.errors import MissingDependencyError, UnknownNameError
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import Depths
from spatial_forcing.probe.frames import latest
from spatial_forcing.teachers.base import check_images, resize, stack_views
from spatial_forcing.teachers.estimator import weights_fingerprint
from spatial_forcing.teachers.model import IMAGENET_MEAN, IMAGENET_STD
from spatial_forcing.teachers.registry import RECORDS as TEACHERS

METRES = ("zoedepth", "depth_pro", "glpn")
FARTHEST = 20.0  # in medians: disparity near zero is far away, not infinitely far


def pseudo(model: str, device: str = "cpu") -> Depths:
    """Pseudo depth source from a model, by name.

    Args:
        model: a registered teacher that gives depth; or a folder or Hub repository of a transformers
            depth-estimation model.

    Raises:
        ProbeError: it cannot be loaded, or estimates no depth.
        UnknownNameError: neither a teacher nor something that could be a folder or a repository.
    """
    checked_device(device)
    check_model(model)
    if is_teacher(model):
        estimate = TeacherDepth(model, device)
        return Depths(f"pseudo: {model}", "pseudo", not estimate.metres, estimate)
    estimate = _TransformersDepth(model, device)
    return Depths(f"pseudo: {Path(model).name}", "pseudo", not estimate.metres, estimate)


def in_medians(depth_BHW: Tensor) -> Tensor:
    """Depth in multiples of the median of its image."""
    median_B11 = depth_BHW.flatten(1).median(1).values[:, None, None]
    return (depth_BHW / median_B11.clamp(min=1e-6)).clamp(max=FARTHEST)


def is_teacher(model: str) -> bool:
    """Whether a depth model is named as a teacher, by its name or its file."""
    return model in TEACHERS or Path(model).suffix == ".safetensors"


def check_model(model: str) -> None:
    """Raises unless a name may be that of a depth model; nothing is loaded.

    Raises:
        ProbeError: a teacher without a depth head.
        UnknownNameError: neither a teacher nor something that could be a folder or a repository.
        WeightsError: the file says nothing of a teacher.
    """
    if is_teacher(model):
        from spatial_forcing.teachers import find_teacher

        if find_teacher(model).depth is None:
            raise ProbeError(
                f"{model} has no depth head. Of the teachers these have: {', '.join(_with_depth_head())}."
            )
    elif not (Path(model) / "config.json").is_file() and model.count("/") != 1:
        raise UnknownNameError("depth model (and no folder with a config.json)", model, _with_depth_head())


def estimates_cameras(model: str) -> bool:
    """Whether a model is a teacher whose depth is not in metres and which estimates cameras beside it."""
    if not is_teacher(model):
        return False
    from spatial_forcing.teachers import find_teacher

    record = find_teacher(model)
    return record.scene is not None and not record.metric


class TeacherDepth:
    """Depth estimates of a teacher that gives depth; all cameras of a frame are one scene.

    Args:
        name: of the teacher.
        device: where it runs.
        scene: whether its estimate of the cameras is wanted, too.

    Attributes:
        metres: whether it estimates metres; else depth up to the scale of the scene.
    """

    def __init__(self, name: str, device: str, scene: bool = False):
        from spatial_forcing.teachers import find_teacher

        record = find_teacher(name)
        load: Any = record.scene if scene else record.depth
        self.estimate, self.metres = load(record, device), record.metric
        self.resolution, self.device = record.resolution, device

    @property
    def fingerprint(self) -> str:
        """Changes with its weights."""
        return getattr(self.estimate, "fingerprint", "")

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        depth_BVHW, sizes = self._asked(batch, cameras)
        maps = of_sizes(depth_BVHW, sizes)
        return maps if self.metres else [in_medians(depth_BHW) for depth_BHW in maps]

    def scene(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """Depth of each camera, and extrinsics_BV34, [R | t] from the scene to the cameras; depth and t up to
        one factor per frame."""
        (depth_BVHW, extrinsics_BV34), sizes = self._asked(batch, cameras)
        return of_sizes(depth_BVHW, sizes), extrinsics_BV34.cpu()

    def _asked(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> tuple[Any, list[torch.Size]]:
        return estimated(self.estimate, batch, cameras, self.resolution, self.device)


@torch.no_grad()
def estimated(
    estimate: Any, batch: Mapping[str, Any], cameras: Sequence[str], resolution: int, device: str
) -> tuple[Any, list[torch.Size]]:
    """What a teacher estimates from a batch's images, as squares, and the images' own sizes.

    Args:
        estimate: from a teacher's record: of images_BV3HW in [0, 1] at ``resolution``.
        batch: of the data set.
        cameras: its keys, the views of one scene.
        resolution: of the teacher, pixels.
        device: where it runs.
    """
    images = [latest(batch[camera]) for camera in cameras]
    images_BV3HW = stack_views(images)
    check_images(images_BV3HW)
    found = estimate(resize(images_BV3HW.to(device), (resolution, resolution)))
    return found, [image.shape[-2:] for image in images]


def of_sizes(maps_BVHW: Tensor, sizes: Sequence[torch.Size]) -> list[Tensor]:
    """Maps in the shapes of the images: teachers see squares."""
    return [
        F.interpolate(maps_BVHW[:, view, None].cpu(), size=size, mode="nearest")[:, 0]
        for view, size in enumerate(sizes)
    ]


class _TransformersDepth:
    """Depth estimates of a transformers model, image by image.

    Attributes:
        metres: whether it estimates metres; else disparity, the inverse of depth up to a scale.
    """

    def __init__(self, source: str, device: str):
        try:
            from transformers import AutoModelForDepthEstimation
        except ImportError as error:
            raise MissingDependencyError("transformers", "teachers") from error
        try:
            model = AutoModelForDepthEstimation.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ProbeError(
                f"{source} cannot be loaded as a depth-estimation model of transformers: {error}"
            ) from error
        self.model, self.device = model.to(device).eval(), device
        config = model.config
        kind = getattr(config, "depth_estimation_type", None)
        self.metres = config.model_type in METRES or kind == "metric"
        self.mean, self.std, self.side = _preprocessing(source, config)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with its weights."""
        return weights_fingerprint(self.model)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        found = []
        for image_B3HW in (latest(batch[camera]) for camera in cameras):
            square = F.interpolate(
                image_B3HW.to(self.device), size=self.side, mode="bilinear", antialias=True
            )
            mean, std = (square.new_tensor(of).view(3, 1, 1) for of in (self.mean, self.std))
            said_Bhw = self.model(pixel_values=(square - mean) / std).predicted_depth.squeeze(1).float().cpu()
            size = tuple(image_B3HW.shape[-2:])
            said_BHW = F.interpolate(said_Bhw[:, None], size=size, mode="nearest")[:, 0]
            found.append(said_BHW if self.metres else in_medians(_from_disparity(said_BHW)))
        return found


def _from_disparity(disparity_BHW: Tensor) -> Tensor:
    """Converts disparity to depth up to a scale; what is not above zero gets the largest depth."""
    least_B11 = disparity_BHW.clamp(min=0).flatten(1).amax(1)[:, None, None].clamp(min=1e-6) / 1000
    return 1 / torch.maximum(disparity_BHW, least_B11)


def _preprocessing(source: str, config: Any) -> tuple[Sequence[float], Sequence[float], tuple[int, int]]:
    """Image mean, standard deviation and size (height, width): from its image processor, or ImageNet's."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(source)
        mean, std = processor.image_mean, processor.image_std
        size = dict(processor.size)
        side = (size.get("height"), size.get("width"))
    except (OSError, ValueError, AttributeError):
        mean, std, side = IMAGENET_MEAN, IMAGENET_STD, (None, None)
    backbone = getattr(config, "backbone_config", None) or config
    height = side[0] or getattr(backbone, "image_size", None) or 384
    patch = getattr(backbone, "patch_size", None) or 32
    patch = patch if isinstance(patch, int) else 32
    height = max(patch, int(height) // patch * patch)
    return mean, std, (height, height)


def _with_depth_head() -> list[str]:
    return [name for name, record in TEACHERS.own().items() if record.depth is not None]
