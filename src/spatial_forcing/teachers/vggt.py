"""VGGT, the Visual Geometry Grounded Transformer (arXiv 2503.11651), as a module of our own.

Parameter names are those of the released checkpoint; `VGGTConfig()` is the released 1B, smaller ones are a
matter of numbers. Build only the parts that are wanted: features need the aggregator alone.

B: batch, V: views of a scene, H, W: pixels, P: patches, N: tokens of a view (camera, registers, P), C: width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers.model import (
    Model,
    check_heads,
    check_patches,
    checked,
    initialise,
    layer_index,
    normalised,
)
from spatial_forcing.teachers.vggt_heads import CameraHead, DPTHead
from spatial_forcing.teachers.vggt_layers import Block, PatchEncoder, rope_2d

MODULES = ("aggregator", "camera_head", "depth_head", "point_head")


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of a VGGT. The defaults are VGGT-1B.

    Attributes:
        img_size: side in pixels of the square image the position embedding is learned at.
        patch: side of a patch in pixels.
        embed_dim: width of the tokens; features are twice as wide (frame, then global attention).
        depth: pairs of frame and global attention.
        vit_depth: blocks of the DINOv2 patch encoder.
        num_heads: attention heads, everywhere.
        mlp_ratio: hidden width of the feed-forward layers over their width.
        registers: register tokens, of the patch encoder and of the aggregator.
        layer_scale, vit_layer_scale: initial layer scale of the aggregator and of the patch encoder.
        rope_base: base of the 2D rotary embedding.
        camera_depth, camera_iterations: blocks and refinements of the camera head.
        dpt_layers: the four aggregator layers the dense heads read.
        dpt_features, dpt_channels, dpt_hidden: channels of the dense heads' decoder, inputs and last layer.
    """

    img_size: int = 518
    patch: int = 14
    embed_dim: int = 1024
    depth: int = 24
    vit_depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    registers: int = 4
    layer_scale: float = 0.01
    vit_layer_scale: float = 1.0
    rope_base: float = 100.0
    camera_depth: int = 4
    camera_iterations: int = 4
    dpt_layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    dpt_features: int = 256
    dpt_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    dpt_hidden: int = 32

    def __post_init__(self):
        object.__setattr__(self, "dpt_layers", tuple(self.dpt_layers))  # JSON gives lists
        object.__setattr__(self, "dpt_channels", tuple(self.dpt_channels))
        check_patches(self.img_size, self.patch)
        check_heads(self.embed_dim, self.num_heads)
        if any(not 0 <= layer < self.depth for layer in self.dpt_layers):
            raise ValueError(
                f"dpt_layers {self.dpt_layers} must lie between 0 and {self.depth - 1} (depth - 1)."
            )


class Aggregator(nn.Module):
    """Alternating-attention transformer: attention within each view, then across all views of a scene."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        c = self.config = config
        self.special = 1 + c.registers
        self.patch_embed = PatchEncoder(
            img_size=c.img_size,
            patch=c.patch,
            width=c.embed_dim,
            depth=c.vit_depth,
            heads=c.num_heads,
            mlp_ratio=c.mlp_ratio,
            registers=c.registers,
            layer_scale=c.vit_layer_scale,
        )
        # The first token of each pair is for the first view, the second for every other view.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, c.embed_dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, c.registers, c.embed_dim))
        self.frame_blocks = nn.ModuleList(self._block() for _ in range(c.depth))
        self.global_blocks = nn.ModuleList(self._block() for _ in range(c.depth))

    def _block(self) -> Block:
        c = self.config
        return Block(c.embed_dim, c.num_heads, mlp_ratio=c.mlp_ratio, layer_scale=c.layer_scale, qk_norm=True)

    def forward(
        self, images_BV3HW: Tensor, layers: Sequence[int] = (-1,), mask_BVP: Tensor | None = None
    ) -> list[Tensor]:
        """Computes the tokens after the wanted layers; others are not kept, and deeper ones not computed.

        Args:
            images_BV3HW: floating point, values in [0, 1], H and W multiples of the patch size.
            layers: wanted layers, 0 to depth - 1, or counted from the end as -1, -2, ...
            mask_BVP: True where a patch is hidden (masked modelling); none by default.

        Returns:
            One tokens_BVNC with C = 2 x embed_dim (frame, then global attention) for each wanted layer, in
            the order asked for; the special tokens (camera, registers) come first.

        Raises:
            ValueError: for images of a wrong shape; IndexError for a layer that does not exist.
        """
        wanted = [layer_index(layer, self.config.depth) for layer in layers]
        B, V, _, H, W = checked(images_BV3HW, self.config.patch).shape
        rows, cols = H // self.config.patch, W // self.config.patch
        tokens_BVNC = self._embed(images_BV3HW, mask_BVP)
        cos_ND, sin_ND = rope_2d(
            rows,
            cols,
            self.special,
            self.config.embed_dim // self.config.num_heads,
            self.config.rope_base,
            images_BV3HW.device,
        )
        rope, scene_rope = (cos_ND, sin_ND), (cos_ND.repeat(V, 1), sin_ND.repeat(V, 1))
        kept = {}
        for layer in range(max(wanted, default=-1) + 1):
            frame, scene = self.frame_blocks[layer], self.global_blocks[layer]
            frame_BVNC = frame(tokens_BVNC.flatten(0, 1), rope).unflatten(0, (B, V))
            tokens_BVNC = scene(frame_BVNC.flatten(1, 2), scene_rope).unflatten(1, (V, -1))
            if layer in wanted:
                kept[layer] = torch.cat([frame_BVNC, tokens_BVNC], dim=-1)
        return [kept[layer] for layer in wanted]

    def _embed(self, images_BV3HW: Tensor, mask_BVP: Tensor | None) -> Tensor:
        B, V = images_BV3HW.shape[:2]
        mask = None if mask_BVP is None else mask_BVP.flatten(0, 1)
        normed_B3HW = normalised(images_BV3HW).flatten(0, 1)
        patches_BVPC = self.patch_embed(normed_B3HW, mask).unflatten(0, (B, V))
        special_12XC = torch.cat([self.camera_token, self.register_token], dim=2)
        first, others = special_12XC.expand(B, -1, -1, -1).split(1, dim=1)
        special_BVXC = torch.cat([first, others.expand(-1, V - 1, -1, -1)], dim=1)
        return torch.cat([special_BVXC, patches_BVPC], dim=2)


class Predictions(NamedTuple):
    """Predictions of the heads for the views of a scene; None where a head was not built.

    pose_IBV9 are the encodings of `CameraHead` after each refinement; confidences are above one.
    """

    pose_IBV9: Tensor | None
    depth_BVHW: Tensor | None
    depth_confidence_BVHW: Tensor | None
    points_BVHW3: Tensor | None
    points_confidence_BVHW: Tensor | None


class VGGT(Model):
    """VGGT model: the aggregator and the requested heads.

    Args:
        config: sizes; VGGT-1B by default.
        modules: which of `MODULES` to build; heads need the aggregator.
    """

    def __init__(self, config: VGGTConfig | None = None, modules: Iterable[str] = MODULES):
        super().__init__()
        c = self.config = config or VGGTConfig()
        self.modules_built = tuple(modules)
        for name in self.modules_built:
            if name not in MODULES:
                raise UnknownNameError("VGGT module", name, MODULES)
        width, built = 2 * c.embed_dim, self.modules_built
        self.aggregator = Aggregator(c)
        if "camera_head" in built:
            self.camera_head = CameraHead(
                width,
                c.num_heads,
                depth=c.camera_depth,
                mlp_ratio=c.mlp_ratio,
                iterations=c.camera_iterations,
            )
        if "depth_head" in built:
            self.depth_head = self._dense_head(outputs=2, activation="exp")
        if "point_head" in built:
            self.point_head = self._dense_head(outputs=4, activation="inv_log")
        if not self.aggregator.camera_token.is_meta:  # there, it would only take seconds
            self.reset_parameters()

    def _dense_head(self, **kwargs) -> DPTHead:
        c = self.config
        return DPTHead(
            2 * c.embed_dim,
            patch=c.patch,
            features=c.dpt_features,
            channels=c.dpt_channels,
            hidden=c.dpt_hidden,
            **kwargs,
        )

    def reset_parameters(self) -> None:
        """Initialises the learned tokens and the patch encoder's linear weights (truncated normal, 0.02)."""
        encoder, aggregator = self.aggregator.patch_embed, self.aggregator
        tokens = (encoder.pos_embed, encoder.cls_token, encoder.register_tokens, encoder.mask_token)
        initialise((*tokens, aggregator.camera_token, aggregator.register_token), [encoder.blocks])

    def trunk(self) -> list[nn.Module]:
        return [self.aggregator]

    def forward(self, images_BV3HW: Tensor) -> Predictions:
        """Predictions of the heads that were built; images as for `Aggregator.forward`."""
        size = images_BV3HW.shape[-2:]
        *dense, last = self.aggregator(images_BV3HW, (*self.config.dpt_layers, -1))
        pose = depth = depth_confidence = points = points_confidence = None
        if "camera_head" in self.modules_built:
            pose = self.camera_head(last)
        if "depth_head" in self.modules_built:
            depth, depth_confidence = self.depth_head(dense, size)
            depth = depth.squeeze(-1)
        if "point_head" in self.modules_built:
            points, points_confidence = self.point_head(dense, size)
        return Predictions(pose, depth, depth_confidence, points, points_confidence)
