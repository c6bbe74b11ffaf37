"""Patch that records GR00T's image crops, so that stored features move with the images.

It turns the cameras of a batch into patches and a prompt, with a crop that may be drawn at random, and keeps
neither the cameras' names nor the crop. With the teacher online that does no harm: it sees the images that
are in the patches. Stored features, and the depth of a probe, are of whole images. With the patch the
preprocessor adds :class:`Packed` to its batches. Neither images nor random numbers change, and the second of
its steps, used without the first, does what it does without the patch.

Shapes: B batch, V images of a sample.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.grid import compose, crop, identity
from spatial_forcing.hosts.prompted import PACKED_KEY, Packed
from spatial_forcing.patches.record import LeRobotChanged, Patch, lerobots, replace

MODULE = "lerobot.policies.groot.processor_groot"
# GR00T's two image transforms, and whether each keeps the aspect ratio.
TRANSFORMS = {
    "_transform_n1_7_image_for_vlm_torch": False,
    "_transform_n1_7_image_for_vlm_albumentations": True,
}
OPTIONS = (
    "image_crop_size",
    "image_target_size",
    "shortest_image_edge",
    "crop_fraction",
    "letter_box_transform",
)


def track(patch: Patch) -> None:
    """Patch: GR00T's preprocessor records which cameras it packed and how it cropped them."""
    from lerobot.lerobot_types import TransitionKey

    groot = import_module(MODULE)
    pack_step = lerobots(patch, MODULE, "GrootN17PackInputsStep")
    encode_step = lerobots(patch, MODULE, "GrootN17VLMEncodeStep")
    lerobots(patch, MODULE, "GrootN17PackInputsStep._ordered_image_keys", "obs")
    for name, keeps_aspect in TRANSFORMS.items():
        known = ["image", *OPTIONS, *(["crop_position"] if keeps_aspect else [])]
        function = lerobots(patch, MODULE, name, *known)
        if more := [option for option in signature(function).parameters if option not in known]:
            raise LeRobotChanged(patch, f"{MODULE}.{name} takes {', '.join(more)} besides")
    plain_pack, plain_encode = pack_step.__call__, encode_step.__call__

    def pack(step: Any, transition: Any) -> Any:
        cameras = step._ordered_image_keys(transition.get(TransitionKey.OBSERVATION) or {})
        transition = plain_pack(step, transition)
        transition[TransitionKey.COMPLEMENTARY_DATA][PACKED_KEY] = cameras
        return transition

    def encode(step: Any, transition: Any) -> Any:
        complementary = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        cameras = complementary.pop(PACKED_KEY, None)
        if cameras is None:  # not packed by the step above: nobody knows what these images are
            return plain_encode(step, transition)
        with _noting(groot) as affines:
            transition = plain_encode(step, transition)
        if affines:
            batch = len(transition[TransitionKey.COMPLEMENTARY_DATA]["input_ids"])
            affine_BV23 = torch.stack(affines).unflatten(0, (batch, -1))
            # Of a longer history every frame is the current one: LeRobot loads no others for GR00T.
            cameras = cameras * (affine_BV23.shape[1] // len(cameras))
            transition[TransitionKey.COMPLEMENTARY_DATA][PACKED_KEY] = Packed(cameras, affine_BV23)
        return transition

    replace(patch, pack_step, "__call__", pack)
    replace(patch, encode_step, "__call__", encode)


@contextmanager
def _noting(groot: Any) -> Iterator[list[Tensor]]:
    """Context that collects the affine of every image transformed inside."""
    affines: list[Tensor] = []
    plain: dict[str, Callable[..., Any]] = {}

    def noted(name: str, keeps_aspect: bool) -> Callable[..., Any]:
        def transform(image: Any, **how: Any) -> Any:
            height_width = image.shape[:2] if keeps_aspect else image.shape[-2:]
            affines.append(crop_affine(height_width, keeps_aspect=keeps_aspect, **how))
            return plain[name](image, **how)

        return transform

    for name, keeps_aspect in TRANSFORMS.items():
        plain[name] = getattr(groot, name)
        setattr(groot, name, noted(name, keeps_aspect))
    try:
        yield affines
    finally:
        for name, function in plain.items():
            setattr(groot, name, function)


def crop_affine(
    image_hw: tuple[int, int],
    *,
    keeps_aspect: bool,
    image_crop_size: list[int] | None,
    image_target_size: list[int] | None,
    shortest_image_edge: int | None,
    crop_fraction: float | None,
    letter_box_transform: bool = False,
    crop_position: tuple[float, float] | None = None,
) -> Tensor:
    """Affine from the image after GR00T's transform to the one of ``image_hw`` pixels before; its options.

    ``keeps_aspect``: the transform of checkpoints with ``use_albumentations``; the other makes a square.
    """
    affine_23, (height, width) = identity(), image_hw
    if image_target_size is None:
        return affine_23
    if letter_box_transform and height != width:
        edge = max(height, width)
        left, top = (edge - width) // 2, (edge - height) // 2
        affine_23 = torch.tensor([[edge / width, 0, -left / width], [0, edge / height, -top / height]])
        height = width = edge
    edge = shortest_image_edge or image_target_size[0]
    if keeps_aspect:
        scale = edge / min(height, width)
        height, width = (max(1, round(side * scale)) for side in (height, width))
    else:
        height = width = edge
    if crop_fraction is None and image_crop_size is not None:
        crop_fraction = image_crop_size[0] / image_target_size[0]
    if crop_fraction is None or not 0 < crop_fraction < 1:
        return affine_23
    # Each transform rounds in its own way.
    rounded = int if keeps_aspect else round
    inner = [max(1, rounded(side * crop_fraction)) for side in (height, width)]
    free = height - inner[0], width - inner[1]
    if crop_position is None:
        top, left = (room // 2 for room in free)
    else:
        top, left = (round(room * min(max(at, 0), 1)) for room, at in zip(free, crop_position, strict=True))
    box = (left / width, top / height, (left + inner[1]) / width, (top + inner[0]) / height)
    return compose(affine_23, crop(*box))
