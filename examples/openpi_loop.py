"""Spatial Forcing in openpi's PyTorch training loop (scripts/train_pytorch.py), for pi0 and pi0.5.

    host = openpi_host(model)
    sf = SpatialForcing(host, load_teacher("vggt-1b"), weight=0.5)
    optim.add_param_group({"params": sf.parameters()})
    images = SeenImages(model)
    ...
    with sf.watch(), images.watch():
        losses = model(observation, actions)
    loss = losses.mean() + sf(images.images_BV3HW(), present_BV=images.present_BV(observation))

openpi crops, turns and recolours the images *inside* the model's forward. ``SeenImages`` reads what
arrives at the vision tower, so that the teacher sees exactly what the policy sees and the augmentation stays
on: other implementations of this loss turn it off for the forced arm, which confounds the comparison. The
price is that the teacher runs online. With DDP put ``model`` and ``sf`` into one module before wrapping it.

tests/test_examples.py runs this on LeRobot's port of the same model at small size, called as openpi calls its
own; it has not been run with openpi itself or with real weights.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spatial_forcing import Host, Layout, SpatialForcing


def paligemma_of(model: Any) -> nn.Module:
    """The module that holds ``vision_tower`` and ``language_model``: transformers has moved it."""
    paligemma = model.paligemma_with_expert.paligemma
    return paligemma.model if hasattr(paligemma, "model") else paligemma


def openpi_host(model: Any, views: int = 3) -> Host:
    """openpi's PI0Pytorch: views of 16 x 16 tokens, then text, in the PaliGemma half of the two streams."""
    paligemma = paligemma_of(model)
    vision, decoder = paligemma.vision_tower.config, paligemma.language_model
    side = vision.image_size // vision.patch_size
    return Host(
        name="openpi",
        blocks=decoder.layers,
        final_norm=decoder.norm,
        width=decoder.config.hidden_size,
        # The images are read where they are square already: see SeenImages.
        layout=Layout(views, side, side),
        visual=lambda hidden_BLD: hidden_BLD[:, : views * side * side],
    )


class SeenImages:
    """Reads the images that arrive at the vision tower, after openpi's augmentation and padding."""

    def __init__(self, model: Any):
        self.seen: list[Tensor] = []
        self.watching = False
        tower = paligemma_of(model).vision_tower
        tower.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.watching:  # activation checkpointing calls the tower again during backward
            self.seen.append((args[0] if args else kwargs["pixel_values"]).detach())

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keeps the images of the forward inside the ``with`` block."""
        self.seen, self.watching = [], True
        try:
            yield
        finally:
            self.watching = False

    def images_BV3HW(self) -> Tensor:
        """The images of the watched forward in [0, 1], one view after another."""
        return (torch.stack(self.seen, dim=1).float() / 2 + 0.5).clamp(0, 1)

    def present_BV(self, observation: Any) -> Tensor:
        """False where a sample lacks a camera and openpi shows the model an empty image."""
        return torch.stack([mask.bool() for mask in observation.image_masks.values()], dim=1)


def train(
    model: Any, loader: Iterable[tuple[Any, Tensor]], optim: Any, teacher: Any, weight: float = 0.5
) -> Iterator[dict[str, float]]:
    """openpi's loop with the five lines in it; yields the losses of each step."""
    sf = SpatialForcing(openpi_host(model), teacher, weight)
    optim.add_param_group({"params": sf.parameters()})
    images = SeenImages(model)
    for observation, actions in loader:
        with sf.watch(), images.watch():
            losses = model(observation, actions)
        align_loss = sf(images.images_BV3HW(), present_BV=images.present_BV(observation))
        loss = losses.mean() + align_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optim.step()
        optim.zero_grad(set_to_none=True)
        yield {"action": losses.mean().item(), **{name: value.item() for name, value in sf.logs.items()}}
    sf.detach()


if __name__ == "__main__":
    raise SystemExit("This file holds train(...), to be called from a script of yours: see its first lines.")
