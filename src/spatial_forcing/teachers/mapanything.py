"""MapAnything (arXiv 2509.13414) as a module of our own, for images alone.

A DINOv2 for each view, then blocks that attend across all views and within each in turn, and one token for
the scale of the scene: its depth and points are in metres. Parameter names are those of the released
checkpoint. Encoders of given cameras and depth are not built: without such input they add nothing.

B: batch, V: views of a scene, H, W: pixels, P: patches, N: tokens of a view (P, class token), C: width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers.da3 import positions
from spatial_forcing.teachers.model import Model, check_patches, checked, initialise, normalised
from spatial_forcing.teachers.vggt_heads import FusionBlock
from spatial_forcing.teachers.vggt_layers import Block, PatchProjection

MODULES = ("trunk", "dense_head", "scale_head")
# Of the parameters of the trunk in the checkpoint, which has no common prefix for them.
TRUNK = ("encoder.", "fusion_norm_layer.", "info_sharing.", "scale_token")
EPS = 1e-6
SCALE_WIDTH = 196
SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class MapAnythingConfig:
    """Sizes of a MapAnything. The defaults are the released model (the first version, 1.2 B parameters).

    Attributes:
        img_size: side in pixels of the square image the position embedding is learned at.
        patch: side of a patch in pixels.
        embed_dim: width of the tokens, everywhere.
        encoder_depth, encoder_heads: blocks and attention heads of the DINOv2 for each view.
        depth, num_heads: of the blocks over all views.
        mlp_ratio: nominal width of the gated feed-forward networks over the tokens'.
        read_layers: the two blocks that the dense head reads, beside the first and the last tokens.
        head_features, head_channels: channels of the dense head's decoder and inputs.
    """

    img_size: int = 518
    patch: int = 14
    embed_dim: int = 1536
    encoder_depth: int = 24
    encoder_heads: int = 24
    depth: int = 16
    num_heads: int = 24
    mlp_ratio: float = 4.0
    read_layers: tuple[int, int] = (7, 11)
    head_features: int = 256
    head_channels: tuple[int, int, int, int] = (96, 192, 384, 768)

    def __post_init__(self):
        object.__setattr__(self, "read_layers", tuple(self.read_layers))  # JSON gives lists
        object.__setattr__(self, "head_channels", tuple(self.head_channels))
        check_patches(self.img_size, self.patch)
        if any(not 0 <= layer < self.depth for layer in self.read_layers):
            raise ValueError(f"read_layers {self.read_layers} must lie between 0 and {self.depth - 1}.")


class Encoder(nn.Module):
    """DINOv2 without its last norm, one view at a time."""

    def __init__(self, config: MapAnythingConfig):
        super().__init__()
        c = self.config = config
        side = c.img_size // c.patch
        self.patch_embed = PatchProjection(c.patch, c.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, c.embed_dim))
        self.blocks = nn.ModuleList(
            _block(c.embed_dim, c.encoder_heads, c.mlp_ratio, 1.0) for _ in range(c.encoder_depth)
        )

    def forward(self, images_BV3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens_BVPC and class tokens_BV1C of images in [0, 1]."""
        patches_BPC = self.patch_embed(normalised(images_BV3HW).flatten(0, 1)).to(self.pos_embed.dtype)
        rows, cols = (side // self.config.patch for side in images_BV3HW.shape[-2:])
        cls_B1C = self.cls_token.expand(len(patches_BPC), -1, -1)
        x_BNC = torch.cat([cls_B1C, patches_BPC], dim=1) + positions(self.pos_embed, rows, cols)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        cls_BV1C, patches_BVPC = x_BNC.unflatten(0, images_BV3HW.shape[:2]).split([1, rows * cols], dim=2)
        return patches_BVPC, cls_BV1C


class InfoSharing(nn.Module):
    """Blocks over all views: even ones attend across the scene and the scale token, odd ones within views."""

    def __init__(self, config: MapAnythingConfig):
        super().__init__()
        c = config
        # Marks the tokens of the first view, in whose frame the scene is given.
        self.view_pos_table = nn.Parameter(torch.zeros(1, c.embed_dim))
        self.self_attention_blocks = nn.ModuleList(
            _block(c.embed_dim, c.num_heads, c.mlp_ratio, 1e-5) for _ in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.embed_dim, eps=EPS)

    def forward(
        self, tokens_BVNC: Tensor, scale_B1C: Tensor, layers: Sequence[int]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """By wanted block the tokens_BVNC and scale token_B1C after it, normed; deeper ones are not run."""
        V, N = tokens_BVNC.shape[1:3]
        first_BVNC, others_BVNC = tokens_BVNC.split([1, V - 1], dim=1)
        tokens_BVNC = torch.cat([first_BVNC + self.view_pos_table, others_BVNC], dim=1)
        kept = {}
        for i, block in enumerate(self.self_attention_blocks[: max(layers, default=-1) + 1]):
            if i % 2 == 0:
                scene_BMC = block(torch.cat([tokens_BVNC.flatten(1, 2), scale_B1C], dim=1))
                tokens_BVNC, scale_B1C = scene_BMC[:, :-1].unflatten(1, (V, N)), scene_BMC[:, -1:]
            else:
                tokens_BVNC = block(tokens_BVNC.flatten(0, 1)).unflatten(0, (-1, V))
            if i in layers:
                kept[i] = self.norm(tokens_BVNC), self.norm(scale_B1C)
        return kept


class Shared(NamedTuple):
    """Tokens of the trunk.

    fused_BVPC are the patches' before the blocks over all views, layers those after each wanted block,
    normed; scale_B1C is the scale token after the last of these.
    """

    fused_BVPC: Tensor
    layers: dict[int, Tensor]
    scale_B1C: Tensor


class MapAnything(Model):
    """MapAnything: the trunk, and the requested heads.

    Args:
        config: sizes; the released model by default.
        modules: which of `MODULES` to build; the trunk always is.
    """

    def __init__(self, config: MapAnythingConfig | None = None, modules: Iterable[str] = MODULES):
        super().__init__()
        c = self.config = config or MapAnythingConfig()
        self.modules_built = tuple(modules)
        for name in self.modules_built:
            if name not in MODULES:
                raise UnknownNameError("MapAnything module", name, MODULES)
        self.encoder = nn.ModuleDict({"model": Encoder(c)})
        self.fusion_norm_layer = nn.LayerNorm(c.embed_dim, eps=EPS)
        self.info_sharing = InfoSharing(c)
        self.scale_token = nn.Parameter(torch.zeros(c.embed_dim))
        if "dense_head" in self.modules_built:
            self.dense_head = DenseHead(c.embed_dim, c.head_features, c.head_channels)
        if "scale_head" in self.modules_built:
            self.scale_head = ScaleHead(c.embed_dim)
        if not self.scale_token.is_meta:  # there, it would only take seconds
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the learned tokens and the linear weights of the trunk (truncated normal, 0.02)."""
        encoder = self.encoder["model"]
        assert isinstance(encoder, Encoder)
        tokens = (encoder.pos_embed, encoder.cls_token, self.info_sharing.view_pos_table, self.scale_token)
        initialise(tokens, self.trunk())

    def trunk(self) -> list[nn.Module]:
        return [self.encoder, self.info_sharing]

    def shared(self, images_BV3HW: Tensor, layers: Sequence[int] = (-1,)) -> Shared:
        """Computes the tokens after the wanted blocks over all views; deeper ones are not computed.

        Args:
            images_BV3HW: floating point, values in [0, 1], H and W multiples of the patch size. The first
                view is the reference.
            layers: wanted blocks, 0 to depth - 1, or counted from the end as -1, -2, ...

        Raises:
            ValueError: for images of a wrong shape; IndexError for a layer that does not exist.
        """
        wanted = [self.layer_index(layer) for layer in layers]
        patches_BVPC, cls_BV1C = self.encoder["model"](checked(images_BV3HW, self.config.patch))
        fused_BVPC = self.fusion_norm_layer(patches_BVPC)
        tokens_BVNC = torch.cat([fused_BVPC, cls_BV1C], dim=2)
        scale_B1C = self.scale_token.expand(len(tokens_BVNC), 1, -1)
        kept = self.info_sharing(tokens_BVNC, scale_B1C, wanted)
        by_layer = {i: tokens_BVNC[:, :, :-1] for i, (tokens_BVNC, _) in kept.items()}
        return Shared(fused_BVPC, by_layer, kept[max(wanted)][1])

    def forward(self, images_BV3HW: Tensor) -> "Predictions":
        """Predictions of both heads, which must be built; images as for `shared`."""
        last = self.config.depth - 1
        shared = self.shared(images_BV3HW, (*self.config.read_layers, last))
        read = [shared.fused_BVPC, *(shared.layers[i] for i in (*self.config.read_layers, last))]
        grid = tuple(side // self.config.patch for side in images_BV3HW.shape[-2:])
        maps = [tokens_BVPC.flatten(0, 1).mT.unflatten(2, grid) for tokens_BVPC in read]
        x = self.dense_head(maps, images_BV3HW.shape[-2:]).unflatten(0, images_BV3HW.shape[:2])
        scale_B1 = self.scale_head(shared.scale_B1C[:, 0])
        ray_BVHW3 = F.normalize(x[:, :, :3].movedim(2, -1), dim=-1)
        distance_BVHW = x[:, :, 3].exp() * scale_B1[:, :, None, None]
        return Predictions(
            ray_BVHW3, distance_BVHW, 1 + x[:, :, 4].exp(), x[:, :, 5].sigmoid(), scale_B1.squeeze(1)
        )


class Predictions(NamedTuple):
    """Predictions for the views of a scene.

    ray_BVHW3 are unit vectors in the camera's frame, distance_BVHW is along them in metres. Confidences are
    above one, valid_BVHW is the probability that a pixel has a depth; scale_B is in the distances already.
    """

    ray_BVHW3: Tensor
    distance_BVHW: Tensor
    depth_confidence_BVHW: Tensor
    valid_BVHW: Tensor
    scale_B: Tensor

    @property
    def points_BVHW3(self) -> Tensor:
        """Points in the frame of each camera, metres."""
        return self.ray_BVHW3 * self.distance_BVHW[..., None]

    @property
    def depth_BVHW(self) -> Tensor:
        """Depth along the optical axis, metres."""
        return self.points_BVHW3[..., 2]


def _block(width: int, heads: int, mlp_ratio: float, layer_scale: float) -> Block:
    return Block(width, heads, mlp_ratio=mlp_ratio, layer_scale=layer_scale, eps=EPS, swiglu=True)


# ---- heads -------------------------------------------------------------------------------------------------


class DenseHead(nn.ModuleList):
    """DPT (arXiv 2103.13413): from maps of four layers to each pixel's ray, distance, confidence and mask."""

    def __init__(self, width: int, features: int, channels: Sequence[int]):
        super().__init__([_Fusion(width, features, channels), _Output(features, outputs=6)])

    def forward(self, maps: Sequence[Tensor], size: torch.Size | tuple[int, int]) -> Tensor:
        fusion, output = self
        return output(fusion(maps), size)


class _Fusion(nn.Module):
    """Projects the four maps to different scales and merges them, from coarse to fine."""

    def __init__(self, width: int, features: int, channels: Sequence[int]):
        super().__init__()
        c1, c2, _, c4 = channels
        resize = (
            [nn.ConvTranspose2d(c1, c1, kernel_size=4, stride=4)],
            [nn.ConvTranspose2d(c2, c2, kernel_size=2, stride=2)],
            [],
            [nn.Conv2d(c4, c4, kernel_size=3, stride=2, padding=1)],
        )
        self.input_process = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(width, c, kernel_size=1), *resized),
                nn.Conv2d(c, features, kernel_size=3, padding=1, bias=False),
            )
            for c, resized in zip(channels, resize, strict=True)
        )
        self.scratch = nn.ModuleDict(
            {f"refinenet{i}": FusionBlock(features, False, merges=i < 4) for i in range(1, 5)}
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        laterals = [process(x) for process, x in zip(self.input_process, maps, strict=True)]
        x = None
        for i in (4, 3, 2, 1):
            lateral = laterals[i - 1]
            x = self.scratch[f"refinenet{i}"](lateral, x, [2 * side for side in lateral.shape[-2:]])
            if i == 4:  # of a grid with odd sides, half and twice it are one more
                x = x[:, :, : laterals[2].shape[2], : laterals[2].shape[3]]
        assert x is not None
        return x


class _Output(nn.Module):
    def __init__(self, features: int, outputs: int):
        super().__init__()
        hidden = features // 2
        self.conv1 = nn.Conv2d(features, hidden, kernel_size=3, padding=1)
        self.conv2 = nn.Sequential(
            nn.Conv2d(hidden, hidden, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1)
        )

    def forward(self, x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
        return self.conv2(F.interpolate(self.conv1(x), size=tuple(size), mode="bilinear", align_corners=True))


class ScaleHead(nn.Module):
    """From the scale token to what the scene's distances are multiplied by to be metres."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, SCALE_WIDTH)
        self.mlp = nn.Sequential(
            *(nn.Sequential(nn.Linear(SCALE_WIDTH, SCALE_WIDTH), nn.ReLU()) for _ in range(2))
        )
        self.output_proj = nn.Linear(SCALE_WIDTH, 1)

    def forward(self, scale_BC: Tensor) -> Tensor:
        return self.output_proj(self.mlp(self.proj(scale_BC))).exp().clamp(min=SMALLEST_SCALE)
