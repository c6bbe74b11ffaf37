"""Fused vision backbone of OpenVLA: DINOv2 with registers and SigLIP, both of timm, side by side in channels.

B: batch, V: views, H, W: pixels, P: patches of a view, N: V x P, C: channels of both towers (of one in
functions of one), D: width of the language model.

Both towers give the patch tokens after their second-to-last block, without a final norm. Their last block,
final norm and pooling are in the released checkpoints but have no part in anything: they are frozen.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.openvla.config import OpenVLAConfigError, Tower

CHANNELS = 6  # of a view: three for the first tower, three for the second


class FilmBlock(nn.Module):
    """A block of a vision transformer whose tokens the language scales and shifts after the attention.

    Args:
        block: of timm.
        width: of its tokens.
        language_width: of the language model.
    """

    def __init__(self, block: Any, width: int, language_width: int):
        super().__init__()
        self.block = block
        self.scale = nn.Linear(language_width, width)
        self.shift = nn.Linear(language_width, width)

    def forward(self, x_BPC: Tensor, language_BD: Tensor) -> Tensor:
        b, language_B1D = self.block, language_BD[:, None]
        x_BPC = x_BPC + b.drop_path1(b.ls1(b.attn(b.norm1(x_BPC))))
        x_BPC = x_BPC * (1 + self.scale(language_B1D)) + self.shift(language_B1D)
        return x_BPC + b.drop_path2(b.ls2(b.mlp(b.norm2(x_BPC))))


class VisionBackbone(nn.Module):
    """Vision backbone: pixel values to patch tokens, one view at a time.

    Args:
        towers: the two vision transformers.
        views: cameras whose channels are stacked in the pixel values.
        language_width: of the language model, whose mean token modulates the blocks (FiLM); None without.

    Raises:
        OpenVLAConfigError: timm has no such model, or it is none whose patches lie on the other's grid.
        MissingDependencyError: timm is not installed.
    """

    def __init__(self, towers: tuple[Tower, ...], views: int, language_width: int | None = None):
        super().__init__()
        self.views, self.image_size, self.film = views, towers[0].image_size, language_width is not None
        self.featurizer, self.fused_featurizer = (_build(tower) for tower in towers)
        grids = [tower.patch_embed.grid_size for tower in self._towers()]
        if grids[0] != grids[1] or towers[0].image_size != towers[1].image_size:
            raise OpenVLAConfigError(
                f"The two vision towers must have one grid of patches and one image size, found "
                f"{grids[0]} and {grids[1]} at {towers[0].image_size} and {towers[1].image_size} pixels."
            )
        self.rows, self.cols = grids[0]
        self.width: int = sum(tower.embed_dim for tower in self._towers())
        if language_width is not None:
            for tower in self._towers():
                blocks = (FilmBlock(block, tower.embed_dim, language_width) for block in tower.blocks)
                tower.blocks = nn.Sequential(*blocks)
        for parameter in self.unused():
            parameter.requires_grad_(False)

    def _towers(self) -> tuple[Any, Any]:
        return self.featurizer, self.fused_featurizer

    def unused(self) -> Iterator[nn.Parameter]:
        """Parameters that no output depends on."""
        for tower in self._towers():
            for part in (tower.blocks[-1], tower.norm, getattr(tower, "attn_pool", None)):
                if part is not None:
                    yield from part.parameters()

    def forward(self, pixel_values_BCHW: Tensor, language_BD: Tensor | None = None) -> Tensor:
        """Computes the patch tokens of all views.

        Args:
            pixel_values_BCHW: floating point, six channels per view: normalised for the first tower, then for
                the second; see `pixel_values`.
            language_BD: mean embedding of the text; needed with FiLM, and not read without.

        Returns:
            features_BNC, view by view, each row by row.

        Raises:
            ValueError: for pixel values of a wrong shape.
        """
        expected = (CHANNELS * self.views, self.image_size, self.image_size)
        if pixel_values_BCHW.dim() != 4 or tuple(pixel_values_BCHW.shape[1:]) != expected:
            raise ValueError(
                f"Expected pixel values of shape (batch, {', '.join(map(str, expected))}), six channels "
                f"for each of {self.views} views, got {tuple(pixel_values_BCHW.shape)}."
            )
        views_B6HW = pixel_values_BCHW.unflatten(1, (self.views, CHANNELS)).flatten(0, 1)
        halves = views_B6HW.split(3, dim=1)
        language = self._language(language_BD)
        features = [_features(t, half, language) for t, half in zip(self._towers(), halves, strict=True)]
        return torch.cat(features, dim=-1).unflatten(0, (-1, self.views)).flatten(1, 2)

    def _language(self, language_BD: Tensor | None) -> Tensor | None:
        if not self.film:
            return None
        if language_BD is None:
            raise ValueError("FiLM needs language_BD, the mean embedding of the text.")
        return language_BD.repeat_interleave(self.views, dim=0)

    def pixel_values(self, images_BV3HW: Tensor) -> Tensor:
        """Pixel values (B, 6 V, H, W) of images in [0, 1], which must have the towers' size already."""
        normalised = []
        for tower in self._towers():
            mean, std = (
                images_BV3HW.new_tensor(tower.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std")
            )
            normalised.append((images_BV3HW - mean) / std)
        return torch.cat(normalised, dim=2).flatten(1, 2)


def _build(tower: Tower) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("timm", "openvla") from error
    try:
        return timm.create_model(
            tower.model,
            pretrained=False,
            num_classes=0,
            img_size=tower.image_size,
            act_layer=tower.act_layer,
            **tower.arguments,
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise OpenVLAConfigError(f"timm cannot build the vision tower {tower.model!r}: {error}") from error


def _features(tower: Any, images_B3HW: Tensor, language_BD: Tensor | None) -> Tensor:
    images_B3HW = images_B3HW.to(tower.patch_embed.proj.weight.dtype)
    if language_BD is not None:
        return _film_features(tower, images_B3HW, language_BD)
    (features_BPC,) = tower.forward_intermediates(
        images_B3HW,
        indices=[len(tower.blocks) - 2],
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return features_BPC


def _film_features(tower: Any, images_B3HW: Tensor, language_BD: Tensor) -> Tensor:
    """As timm's `forward_intermediates`, which has no place for a second input of the blocks."""
    x_BPC = tower.norm_pre(tower.patch_drop(tower._pos_embed(tower.patch_embed(images_B3HW))))
    for block in tower.blocks[:-1]:
        x_BPC = block(x_BPC, language_BD.to(x_BPC.dtype))
    return x_BPC[:, tower.num_prefix_tokens :]
