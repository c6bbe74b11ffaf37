"""Policies whose visual tokens stand wherever the prompt has image tokens: Qwen-VL's and InternVL's.

The language model is called with ``input_ids``, in which every visual token has the same placeholder, and
Qwen-VL's also with ``image_grid_thw``, the patches of every picture. Both differ from batch to batch, and the
text before a picture from sample to sample. ``locate`` reads places and grid from that call.

Shapes: B batch, V pictures of a sample, N visual tokens, L sequence, H W pixels, P patches, K values of a
patch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.tap import Host, Located, TapError

# Of Qwen3-VL's image processor, which Cosmos-Reason2 shares.
QWEN3_MEAN, QWEN3_STD = 0.5, 0.5
# Where the plug-in leaves :class:`Packed` in a batch.
PACKED_KEY = "spatial_forcing_packed"


class Packed(NamedTuple):
    """What a prompt shows.

    Attributes:
        cameras: the policy's names of them, in the order of the pictures of a sample.
        affine_BV23: from the picture that the policy sees to the whole one, in unit coordinates.
    """

    cameras: list[str]
    affine_BV23: Tensor


def _qwen_locate(config: Any) -> Callable[[Mapping[str, Any]], Located]:
    """What finds the visual tokens of a Qwen-VL with this configuration in a call of it."""
    merge, token = config.vision_config.spatial_merge_size, config.image_token_id

    def locate(call: Mapping[str, Any]) -> Located:
        ids_BL = call["input_ids"]
        views, rows, cols = _pictures(call["image_grid_thw"], len(ids_BL))
        layout = Layout(views, rows // merge, cols // merge)
        return Located(_places(ids_BL == token, layout), layout)

    return locate


def _pictures(image_grid_thw: Tensor, batch: int) -> tuple[int, int, int]:
    """(pictures of a sample, rows of patches, columns of patches), which all pictures of a batch share."""
    grids = sorted({(rows, cols) for _, rows, cols in image_grid_thw.tolist()})
    if len(grids) != 1:
        found = ", ".join(f"{rows} x {cols}" for rows, cols in grids)
        raise SpatialForcingError(
            f"The pictures of this batch have different grids of patches ({found}), which Spatial Forcing "
            "does not support. Give the cameras of the data set one size."
        )
    views, rest = divmod(len(image_grid_thw), batch)
    if rest or not views:
        raise SpatialForcingError(
            f"The batch has {len(image_grid_thw)} pictures for {batch} samples: all need equally many."
        )
    return views, *grids[0]


def _places(visual_BL: Tensor, layout: Layout) -> Tensor:
    """places_BN of the marked positions."""
    counts = visual_BL.sum(1).tolist()
    if set(counts) != {layout.tokens}:
        raise TapError(
            f"The prompts have {min(counts)} to {max(counts)} image tokens, expected {layout.tokens} = "
            f"{layout.views} views x {layout.rows} x {layout.cols}: a prompt was cut off, or samples show "
            "different numbers of pictures."
        )
    return visual_BL.nonzero()[:, 1].view(len(visual_BL), layout.tokens)


def depth_reached(blocks: Sequence[nn.Module] | nn.ModuleList, before: Sequence[nn.Module]) -> int:
    """A tap depth that a gradient reaches: 3/4 of the way from the first block that trains to the last.

    It is 3/4 of all blocks if those before them train, or nothing does (LoRA is put on later).
    """
    trains = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    if any(p.requires_grad for module in before for p in module.parameters()) or not any(trains):
        first = 0
    else:
        first = trains.index(True)
    return first + max(1, round(0.75 * (len(blocks) - first)))


# ---- GR00T N1.7 --------------------------------------------------------------------------------------------


def groot_host(policy: Any, views: int) -> Host:
    vlm = policy._groot_model.backbone.model
    # Blocks after `select_layer` are gone by now.
    language, vision = vlm.model.language_model, vlm.config.vision_config
    side = 256 // (vision.patch_size * vision.spatial_merge_size)  # of LeRobot's default picture
    return Host(
        name="GR00T N1.7",
        blocks=language.layers,
        final_norm=language.norm,
        width=vlm.config.text_config.hidden_size,
        layout=Layout(views, side, side),
        visual=None,
        depth=depth_reached(language.layers, groot_upstream(policy)),
        prompt=vlm,
        locate=_qwen_locate(vlm.config),
    )


def groot_upstream(policy: Any) -> list[nn.Module]:
    return [policy._groot_model.backbone.visual]


def groot_pictures(policy: Any, batch: Mapping[str, Any]) -> list[Tensor]:
    """The pictures GR00T sees: its preprocessor leaves their patches only."""
    missing = [key for key in ("input_ids", "pixel_values", "image_grid_thw") if key not in batch]
    if missing:
        raise SpatialForcingError(
            f"The batch has no {', '.join(missing)}, which the preprocessor of groot leaves. It has: "
            f"{', '.join(sorted(batch))}."
        )
    vision = policy._groot_model.backbone.model.config.vision_config
    views, rows, cols = _pictures(batch["image_grid_thw"], len(batch["input_ids"]))
    images_BV3HW = unpatched(
        batch["pixel_values"], (views, rows, cols), vision.patch_size, vision.spatial_merge_size
    )
    return list((images_BV3HW * QWEN3_STD + QWEN3_MEAN).clamp(0, 1).unbind(1))


def unpatched(patches_PK: Tensor, grid: tuple[int, int, int], patch: int, merge: int) -> Tensor:
    """images_BV3HW whose patches Qwen's image processor wrote out, in its normalisation.

    It writes picture by picture, the merge x merge patches of a token together, each patch as channels x
    frames x rows x columns; the frames of a picture are copies.

    Args:
        patches_PK: ``pixel_values`` of a batch.
        grid: pictures of a sample, rows and columns of patches of each.
        patch, merge: pixels of a patch and patches of a token, a side.
    """
    views, rows, cols = grid
    shape = (-1, views, rows // merge, cols // merge, merge, merge, 3)
    frames = patches_PK.shape[1] // (3 * patch**2)
    parts = patches_PK.view(*shape, frames, patch, patch)[..., -1, :, :]
    # B V, rows and columns of tokens, of patches in a token, channels, rows and columns of pixels
    return parts.permute(0, 1, 6, 2, 4, 7, 3, 5, 8).reshape(-1, views, 3, rows * patch, cols * patch)


# ---- EO-1 --------------------------------------------------------------------------------------------------


def eo1_host(policy: Any, views: int) -> Host:
    vlm = policy.model.vlm_backbone.model
    language, vision = vlm.language_model, vlm.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    # LeRobot asks for at most so many pixels; how they are shared out the prompt will say.
    most = policy.config.image_max_pixels or 1280 * side**2
    rows = cols = max(1, int((most / side**2) ** 0.5))
    return Host(
        name="EO-1",
        blocks=language.layers,
        final_norm=language.norm,
        width=vlm.config.text_config.hidden_size,
        layout=Layout(views, rows, cols),
        visual=None,
        prompt=vlm,
        locate=_qwen_locate(vlm.config),
    )


def eo1_upstream(policy: Any) -> list[nn.Module]:
    return [policy.model.vlm_backbone.model.visual]


# ---- EVO1 --------------------------------------------------------------------------------------------------


def evo1_host(policy: Any, views: int) -> Host:
    embedder = policy.model.embedder
    vlm = embedder.model
    side = round(embedder.num_image_token**0.5)
    # Cameras that are missing have tokens, too, of a black picture behind the others.
    layout = Layout(policy.config.max_views, side, side)
    return Host(
        name="EVO1",
        blocks=vlm.language_model.layers,
        final_norm=vlm.language_model.norm,
        width=vlm.config.text_config.hidden_size,
        layout=layout,
        visual=None,
        depth=depth_reached(vlm.language_model.layers, evo1_upstream(policy)),
        prompt=vlm,
        locate=lambda call: Located(
            _places(call["input_ids"] == embedder.img_context_token_id, layout), layout
        ),
    )


def evo1_upstream(policy: Any) -> list[nn.Module]:
    vlm = policy.model.embedder.model
    return [vlm.vision_tower, vlm.multi_modal_projector]
