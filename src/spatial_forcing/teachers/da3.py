"""Depth Anything 3 (arXiv 2511.10647) as a module of our own: one DINOv2 whose later blocks see all views.

Parameter names are those of the released checkpoints, less their leading `model.`. Build only the parts that
are wanted: features need the backbone alone.

B: batch, V: views of a scene, H, W: pixels, P: patches, N: tokens of a view (class or camera token, P),
E: width, C: twice the width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers.da3_heads import CameraDecoder, CameraEncoder, Cameras, DualDPTHead
from spatial_forcing.teachers.model import (
    Model,
    check_heads,
    check_patches,
    checked,
    initialise,
    layer_index,
    normalised,
)
from spatial_forcing.teachers.vggt_layers import Block, PatchProjection, Rope, rope_2d, rope_at

MODULES = ("backbone", "head", "cam_dec", "cam_enc")
ReferenceView = Literal["saddle_balanced", "first", "middle"]
REFERENCE_VIEWS: tuple[ReferenceView, ...] = ("saddle_balanced", "first", "middle")
# From so many views on one of them is chosen as the reference; with fewer it is the first.
CHOOSES_FROM = 3
# The position embedding is resampled by a factor that is off by this much of a patch, as in DINOv2's code.
OFFSET = 0.1


@dataclass(frozen=True)
class DA3Config:
    """Sizes of a Depth Anything 3. The defaults are DA3-SMALL.

    Attributes:
        img_size: side in pixels of the square image the position embedding is learned at.
        patch: side of a patch in pixels.
        embed_dim: width of the tokens; features are twice as wide (within the view, then the stream).
        depth, num_heads, mlp_ratio: of the transformer.
        swiglu: whether its feed-forward networks are gated (GIANT).
        alt_start: the first block from which on odd-numbered blocks attend across views; before it the camera
            token takes the place of the class token.
        qknorm_start, rope_start: the first block with norms of queries and keys, and with rotary positions.
        rope_base: base of the 2D rotary embedding.
        out_layers: the four blocks that the heads read.
        head_features, head_channels: channels of the dense head's decoder and inputs.
        camera_depth, camera_heads: blocks and attention heads of the encoder of given cameras.
    """

    img_size: int = 518
    patch: int = 14
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    swiglu: bool = False
    alt_start: int = 4
    qknorm_start: int = 4
    rope_start: int = 4
    rope_base: float = 100.0
    out_layers: tuple[int, int, int, int] = (5, 7, 9, 11)
    head_features: int = 64
    head_channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    camera_depth: int = 4
    camera_heads: int = 16

    def __post_init__(self):
        object.__setattr__(self, "out_layers", tuple(self.out_layers))  # JSON gives lists
        object.__setattr__(self, "head_channels", tuple(self.head_channels))
        check_patches(self.img_size, self.patch)
        check_heads(self.embed_dim, self.num_heads)
        if not 1 <= self.alt_start <= self.depth:
            raise ValueError(f"alt_start {self.alt_start} must lie between 1 and the depth, {self.depth}.")
        if any(not 0 <= layer < self.depth for layer in self.out_layers):
            raise ValueError(f"out_layers {self.out_layers} must lie between 0 and {self.depth - 1}.")


class LayerTokens(NamedTuple):
    """Tokens after a block, views in the order of the images.

    local_BVNE are those after the last block within the views, tokens_BVNE those of the stream: the same, if
    this is such a block. The first token of a view is the class token, later the camera token.
    """

    local_BVNE: Tensor
    tokens_BVNE: Tensor


class Backbone(nn.Module):
    """DINOv2 whose odd-numbered blocks, from `alt_start` on, attend across all views of a scene."""

    def __init__(self, config: DA3Config):
        super().__init__()
        c = self.config = config
        side = c.img_size // c.patch
        self.patch_embed = PatchProjection(c.patch, c.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim))
        # The first is for the reference view, the second for every other view.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, c.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, c.embed_dim))
        self.blocks = nn.ModuleList(self._block(i) for i in range(c.depth))
        self.norm = nn.LayerNorm(c.embed_dim)

    def _block(self, i: int) -> Block:
        c = self.config
        return Block(
            c.embed_dim,
            c.num_heads,
            mlp_ratio=c.mlp_ratio,
            layer_scale=1.0,
            qk_norm=i >= c.qknorm_start,
            eps=1e-6,
            swiglu=c.swiglu,
        )

    def forward(
        self,
        images_BV3HW: Tensor,
        layers: Sequence[int] = (-1,),
        *,
        camera_BVE: Tensor | None = None,
        reference: ReferenceView = "saddle_balanced",
    ) -> list[LayerTokens]:
        """Computes the tokens after the wanted blocks; others are not kept, and deeper ones not computed.

        Args:
            images_BV3HW: floating point, values in [0, 1], H and W multiples of the patch size.
            layers: wanted blocks, 0 to depth - 1, or counted from the end as -1, -2, ...
            camera_BVE: tokens of known cameras, of `CameraEncoder`; then the first view is the reference.
            reference: how the reference view is chosen among three or more. "saddle_balanced" does not depend
                on the order of the views.

        Raises:
            ValueError: for images of a wrong shape; IndexError for a layer that does not exist.
        """
        c, wanted = self.config, [layer_index(layer, self.config.depth) for layer in layers]
        B, V, _, H, W = checked(images_BV3HW, c.patch).shape
        tokens_BVNE = local_BVNE = self._embed(images_BV3HW)
        view_rope, scene_rope = self._ropes(H // c.patch, W // c.patch, V, images_BV3HW.device)
        order_BV = torch.arange(V, device=images_BV3HW.device).expand(B, V)
        kept = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            if i == c.alt_start - 1 and V >= CHOOSES_FROM and camera_BVE is None:
                order_BV = reference_first(choose(tokens_BVNE[:, :, 0], reference), V)
                tokens_BVNE, local_BVNE = reordered(tokens_BVNE, order_BV), reordered(local_BVNE, order_BV)
            if i == c.alt_start:
                # All blocks before it are local: both streams are the same tokens, and get the camera token.
                tokens_BVNE = local_BVNE = self._with_cameras(tokens_BVNE, camera_BVE)
            across = i >= c.alt_start and i % 2 == 1
            rope = None if i < c.rope_start else scene_rope if across else view_rope
            if across:
                tokens_BVNE = block(tokens_BVNE.flatten(1, 2), rope).unflatten(1, (V, -1))
            else:
                tokens_BVNE = local_BVNE = block(tokens_BVNE.flatten(0, 1), rope).unflatten(0, (B, V))
            if i in wanted:
                back_BV = order_BV.argsort(1)
                kept[i] = LayerTokens(reordered(local_BVNE, back_BV), reordered(tokens_BVNE, back_BV))
        return [kept[i] for i in wanted]

    def features(self, layer: LayerTokens) -> Tensor:
        """Patch features_BVPC as the heads read them: within the view, and the stream after the last norm."""
        return torch.cat([layer.local_BVNE, self.norm(layer.tokens_BVNE)], dim=-1)[:, :, 1:]

    def _embed(self, images_BV3HW: Tensor) -> Tensor:
        patches_BPE = self.patch_embed(normalised(images_BV3HW).flatten(0, 1)).to(self.pos_embed.dtype)
        rows, cols = (side // self.config.patch for side in images_BV3HW.shape[-2:])
        cls_B1E = self.cls_token.expand(len(patches_BPE), -1, -1)
        x_BNE = torch.cat([cls_B1E, patches_BPE], dim=1) + positions(self.pos_embed, rows, cols)
        return x_BNE.unflatten(0, images_BV3HW.shape[:2])

    def _with_cameras(self, tokens_BVNE: Tensor, camera_BVE: Tensor | None) -> Tensor:
        """The tokens with the camera token in place of the class token; the reference view comes first."""
        if camera_BVE is None:
            B, V = tokens_BVNE.shape[:2]
            first, others = self.camera_token.expand(B, -1, -1).split(1, dim=1)
            camera_BVE = torch.cat([first, others.expand(-1, V - 1, -1)], dim=1)
        return torch.cat([camera_BVE[:, :, None], tokens_BVNE[:, :, 1:]], dim=2)

    def _ropes(self, rows: int, cols: int, views: int, device: torch.device) -> tuple[Rope, Rope]:
        """Rotary tables within a view, and across views, where all patches share one place."""
        head_width, base = self.config.embed_dim // self.config.num_heads, self.config.rope_base
        place_N = torch.ones(1 + rows * cols, device=device)
        place_N[0] = 0
        scene = rope_at(place_N.repeat(2, views), head_width, base)
        return rope_2d(rows, cols, 1, head_width, base, device), scene


def positions(pos_embed_1NE: Tensor, rows: int, cols: int) -> Tensor:
    """DINOv2's position embedding for a grid: the class token's, and the patches' resampled (bicubic)."""
    grid_1PE = pos_embed_1NE[:, 1:]
    side = math.isqrt(grid_1PE.shape[1])
    if (rows, cols) == (side, side):
        return pos_embed_1NE
    grid_1Ehw = grid_1PE.transpose(1, 2).unflatten(-1, (side, side))
    factor = ((rows + OFFSET) / side, (cols + OFFSET) / side)
    grid_1Ehw = F.interpolate(grid_1Ehw, scale_factor=factor, mode="bicubic")
    return torch.cat([pos_embed_1NE[:, :1], grid_1Ehw.flatten(2).transpose(1, 2)], dim=1)


# ---- the reference view ------------------------------------------------------------------------------------


def choose(cls_BVE: Tensor, how: ReferenceView) -> Tensor:
    """Index of the reference view of each scene, from the class tokens.

    "saddle_balanced" takes the view that is most average: in its similarity to the others, in its norm, and
    in the spread of its channels, each scaled to [0, 1] over the views.
    """
    B, V = cls_BVE.shape[:2]
    if how == "first":
        return cls_BVE.new_zeros(B, dtype=torch.long)
    if how == "middle":
        return torch.full((B,), V // 2, device=cls_BVE.device)
    if how != "saddle_balanced":
        raise UnknownNameError("choice of a reference view", how, REFERENCE_VIEWS)
    norm_BV1 = cls_BVE.norm(dim=-1, keepdim=True)
    unit_BVE = cls_BVE / norm_BV1
    similar_BVV = unit_BVE @ unit_BVE.mT
    similar_BV = (similar_BVV.sum(-1) - similar_BVV.diagonal(dim1=1, dim2=2)) / (V - 1)
    measures_BVM = torch.stack([similar_BV, norm_BV1[..., 0], unit_BVE.var(-1)], dim=-1)
    low, high = measures_BVM.amin(1, keepdim=True), measures_BVM.amax(1, keepdim=True)
    scaled_BVM = (measures_BVM - low) / (high - low + 1e-8)
    return (scaled_BVM - 0.5).abs().sum(-1).argmin(1)


def reference_first(reference_B: Tensor, views: int) -> Tensor:
    """Order of the views of each scene: the reference, then the others as they were."""
    index_V = torch.arange(views, device=reference_B.device)
    return (index_V + views * (index_V != reference_B[:, None])).argsort(1)


def reordered(x_BVNE: Tensor, order_BV: Tensor) -> Tensor:
    """The views in another order."""
    return x_BVNE.take_along_dim(order_BV[..., None, None], dim=1)


# ---- the model ---------------------------------------------------------------------------------------------


class Predictions(NamedTuple):
    """Predictions for the views of a scene; None where a head was not built.

    Depth is up to the scene's scale, confidences are above one; rays are at 8/14 of the images' resolution.
    """

    depth_BVHW: Tensor | None
    depth_confidence_BVHW: Tensor | None
    ray_BVhw6: Tensor | None
    ray_confidence_BVhw: Tensor | None
    cameras: Cameras | None


class DA3(Model):
    """Depth Anything 3: the backbone and the requested heads.

    Args:
        config: sizes; DA3-SMALL by default.
        modules: which of `MODULES` to build; the backbone always is.
    """

    def __init__(self, config: DA3Config | None = None, modules: Iterable[str] = MODULES):
        super().__init__()
        c = self.config = config or DA3Config()
        self.modules_built = tuple(modules)
        for name in self.modules_built:
            if name not in MODULES:
                raise UnknownNameError("DA3 module", name, MODULES)
        width, built = 2 * c.embed_dim, self.modules_built
        self.backbone = nn.ModuleDict({"pretrained": Backbone(c)})
        if "head" in built:
            self.head = DualDPTHead(width, patch=c.patch, features=c.head_features, channels=c.head_channels)
        if "cam_dec" in built:
            self.cam_dec = CameraDecoder(width)
        if "cam_enc" in built:
            self.cam_enc = CameraEncoder(c.embed_dim, c.camera_heads, c.camera_depth, c.mlp_ratio)
        if not self.features.cls_token.is_meta:  # there, it would only take seconds
            self.reset_parameters()

    @property
    def features(self) -> Backbone:
        """The backbone."""
        backbone = self.backbone["pretrained"]
        assert isinstance(backbone, Backbone)
        return backbone

    def reset_parameters(self) -> None:
        """Initialises the learned tokens and the backbone's linear weights (truncated normal, 0.02)."""
        backbone = self.features
        initialise((backbone.pos_embed, backbone.cls_token, backbone.camera_token), [backbone.blocks])

    def trunk(self) -> list[nn.Module]:
        return [self.backbone]

    def forward(
        self,
        images_BV3HW: Tensor,
        *,
        extrinsics_BV44: Tensor | None = None,
        intrinsics_BV33: Tensor | None = None,
        reference: ReferenceView = "saddle_balanced",
    ) -> Predictions:
        """Predictions of the heads that were built.

        Args:
            images_BV3HW: as for `Backbone.forward`.
            extrinsics_BV44, intrinsics_BV33: known cameras, world to camera and in pixels; needs "cam_enc".
            reference: see `Backbone.forward`.
        """
        size, camera_BVE = images_BV3HW.shape[-2:], None
        if extrinsics_BV44 is not None and intrinsics_BV33 is not None:
            camera_BVE = self.cam_enc(extrinsics_BV44, intrinsics_BV33, size)
        layers = self.features(
            images_BV3HW, self.config.out_layers, camera_BVE=camera_BVE, reference=reference
        )
        depth = confidence = ray = ray_confidence = cameras = None
        if "head" in self.modules_built:
            features = [self.features.features(layer) for layer in layers]
            depth, confidence, ray, ray_confidence = self.head.both(features, size)
        if "cam_dec" in self.modules_built:
            camera_BVC = torch.cat([tokens[:, :, 0] for tokens in layers[-1]], dim=-1)
            cameras = self.cam_dec(camera_BVC, size)
        return Predictions(depth, confidence, ray, ray_confidence, cameras)
