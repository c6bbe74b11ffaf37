"""Shared code of hosts whose visual tokens replace image tokens in the prompt: Qwen-VL, InternVL.

The language model is called with ``input_ids``, in which every visual token has the same placeholder, and
Qwen-VL's also with ``image_grid_thw``, the patches of every image. Both differ from batch to batch, and the
text before an image from sample to sample. ``locate`` reads places and grid from that call.

Shapes: B batch, V images of a sample, N visual tokens, L sequence, H W pixels, P patches, K values of a
patch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts.building import lora_flags
from spatial_forcing.tap import Located, TapError

QWEN_LORA = lora_flags(r".*\.language_model\.layers\..*\.(q|v)_proj")
# Where the plug-in leaves :class:`Packed` in a batch.
PACKED_KEY = "spatial_forcing_packed"


class Packed(NamedTuple):
    """Cameras and crops of the images in a prompt.

    Attributes:
        cameras: the policy's names of them, in the order of the images of a sample.
        affine_BV23: from the image that the policy sees to the whole one, in unit coordinates.
    """

    cameras: list[str]
    affine_BV23: Tensor


def qwen_locate(config: Any) -> Callable[[Mapping[str, Any]], Located]:
    """Locator of the visual tokens in a call of a Qwen-VL with this configuration."""
    merge, token = config.vision_config.spatial_merge_size, config.image_token_id

    def locate(call: Mapping[str, Any]) -> Located:
        ids_BL = call["input_ids"]
        views, rows, cols = image_grid(call["image_grid_thw"], len(ids_BL))
        layout = Layout(views, rows // merge, cols // merge)
        return Located(token_indices(ids_BL == token, layout), layout)

    return locate


def image_grid(image_grid_thw: Tensor, batch: int) -> tuple[int, int, int]:
    """Patch grid of a batch: (images per sample, rows, columns), the same for all images."""
    grids = sorted({(rows, cols) for _, rows, cols in image_grid_thw.tolist()})
    if len(grids) != 1:
        found = ", ".join(f"{rows} x {cols}" for rows, cols in grids)
        raise SpatialForcingError(
            f"The images of this batch have different grids of patches ({found}), which Spatial Forcing "
            "does not support. Give the cameras of the data set one size."
        )
    views, rest = divmod(len(image_grid_thw), batch)
    if rest or not views:
        raise SpatialForcingError(
            f"The batch has {len(image_grid_thw)} images for {batch} samples: all need equally many."
        )
    return views, *grids[0]


def token_indices(visual_BL: Tensor, layout: Layout) -> Tensor:
    """token_indices_BN of the marked positions."""
    counts = visual_BL.sum(1).tolist()
    if set(counts) != {layout.tokens}:
        raise TapError(
            f"The prompts have {min(counts)} to {max(counts)} image tokens, expected {layout.tokens} = "
            f"{layout.views} views x {layout.rows} x {layout.cols}: a prompt was cut off, or samples show "
            "different numbers of images."
        )
    return visual_BL.nonzero()[:, 1].view(len(visual_BL), layout.tokens)


def layer_reached(blocks: Sequence[nn.Module] | nn.ModuleList, before: Sequence[nn.Module]) -> int:
    """Recommended layer that a gradient reaches: 3/4 of the way from the first block that trains to the last.

    It is 3/4 of all blocks if those before them train, or nothing does (LoRA is put on later).
    """
    trains = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    if any(p.requires_grad for module in before for p in module.parameters()) or not any(trains):
        first = 0
    else:
        first = trains.index(True)
    return first + max(1, round(0.75 * (len(blocks) - first)))


def unpatched(patches_PK: Tensor, grid: tuple[int, int, int], patch: int, merge: int) -> Tensor:
    """Reconstructs images_BV3HW, still normalised, from the patches of Qwen's image processor.

    It writes image by image, the merge x merge patches of a token together, each patch as channels x
    frames x rows x columns; the frames of an image are copies.

    Args:
        patches_PK: ``pixel_values`` of a batch.
        grid: images of a sample, rows and columns of patches of each.
        patch, merge: pixels of a patch and patches of a token, a side.
    """
    views, rows, cols = grid
    shape = (-1, views, rows // merge, cols // merge, merge, merge, 3)
    frames = patches_PK.shape[1] // (3 * patch**2)
    parts = patches_PK.view(*shape, frames, patch, patch)[..., -1, :, :]
    # B V, rows and columns of tokens, of patches in a token, channels, rows and columns of pixels
    return parts.permute(0, 1, 6, 2, 4, 7, 3, 5, 8).reshape(-1, views, 3, rows * patch, cols * patch)
