"""TinyVLA: the built-in small vision-language-action model, which trains on a CPU.

One transformer reads one sequence, everything attending to everything:

    instruction words | patches of view 1 | patches of view 2 | ... | proprioception | action queries

The action queries also carry the instruction and the proprioception, and come out as a chunk of actions. It
has what Spatial Forcing needs of a host (visual tokens in a residual stream) and what a comparison needs of
a policy: nothing pretrained, one optimizer setting, seconds to build.

Shapes: B batch, V views, H W pixels, N patches, P points of a patch, L sequence, K words, S proprioception, T
chunk, A action, D width.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.tap import Host

# Metres, of the waves in which an oracle's points are told: from the room to the fingers.
WAVELENGTHS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)


def hash_words(instructions: Sequence[str], vocabulary: int, length: int) -> Tensor:
    """Hashed word ids words_BK of instructions: a checksum of each lower-case word, 0 where there is none.

    No tokenizer to train or ship; two words collide once in ``vocabulary`` - 1 times.
    """
    rows = []
    for text in instructions:
        ids = [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in text.lower().split()[:length]]
        rows.append(ids + [0] * (length - len(ids)))
    return torch.tensor(rows, dtype=torch.long)


def waves(points: Tensor) -> Tensor:
    """Sines and cosines of coordinates (..., 3) in metres at all wavelengths, (..., 6 W)."""
    turns = points[..., None] / points.new_tensor(WAVELENGTHS) * (2 * torch.pi)
    return torch.cat([turns.sin(), turns.cos()], -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D))


class Block(nn.Module):
    """A pre-norm transformer block: the residual stream enters through ``norm1``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD))
        return x_BLD + self.mlp(self.norm2(x_BLD))


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a TinyVLA, checked.

    Args:
        views: V; 0 makes a blind policy.
        image_size: images are image_size x image_size pixels.
        patch: side of a patch in pixels; divides image_size.
        state_dim, action_dim, chunk: S, A, T.
        width, depth, heads: of the transformer.
        vocabulary, max_words: of the hashed instruction.
        position_std: deviation that the position embedding of the patches is drawn with. Far below that of
            the patches themselves (0.3), attention hardly sees where a token is, and whatever says so in
            another way looks like progress.
        points: 3D points per side of each patch that the *oracle* reference is given beside the images; 0 for
            none.

    Raises:
        SpatialForcingError: a size below 1, a width that ``heads`` do not divide, or an image that patches do
            not.
    """

    views: int = 2
    image_size: int = 112
    patch: int = 14
    state_dim: int = 4
    action_dim: int = 4
    chunk: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    vocabulary: int = 512
    max_words: int = 12
    position_std: float = 1.0
    points: int = 0

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if name not in ("views", "position_std", "points") and size < 1:
                raise SpatialForcingError(f"{name} must be at least 1, got {size}.")
        if self.width % self.heads:
            raise SpatialForcingError(f"The width {self.width} is not a multiple of heads, {self.heads}.")
        if self.image_size % self.patch:
            raise SpatialForcingError(
                f"The image size {self.image_size} is not a multiple of the patch size {self.patch}."
            )


class TinyVLA(nn.Module):
    """Network of the built-in VLA: images, instruction and proprioception in, a chunk of actions out.

    Args:
        sizes: of the network; the defaults of :class:`TinySizes` if None.
        changes: single sizes by name, over those.
    """

    def __init__(self, sizes: TinySizes | None = None, **changes: Any):
        super().__init__()
        sizes = replace(sizes or TinySizes(), **changes)
        side, width = sizes.image_size // sizes.patch, sizes.width
        self.layout = Layout(sizes.views, side, side) if sizes.views else None
        self.image_size, self.vocabulary, self.max_words = sizes.image_size, sizes.vocabulary, sizes.max_words
        self.words = nn.Embedding(sizes.vocabulary, width, padding_idx=0)
        self.word_position = nn.Parameter(0.02 * torch.randn(sizes.max_words, width))
        self.patches = nn.Conv2d(3, width, sizes.patch, sizes.patch)
        position_ND = torch.randn(sizes.views * side * side, width)
        self.patch_position = nn.Parameter(sizes.position_std * position_ND)
        self.state = nn.Linear(sizes.state_dim, width)
        self.queries = nn.Parameter(0.02 * torch.randn(sizes.chunk, width))
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.depth))
        self.final_norm = nn.LayerNorm(width)
        self.actions = nn.Linear(width, sizes.action_dim)
        # Last, so that all other weights are drawn as without it.
        self.points = nn.Linear(6 * len(WAVELENGTHS) * sizes.points**2, width) if sizes.points else None

    def forward(
        self,
        images_BV3HW: Tensor | None,
        words_BK: Tensor,
        state_BS: Tensor,
        points_BNP3: Tensor | None = None,
    ) -> Tensor:
        """Predicts actions_BTA.

        Args:
            images_BV3HW: float in [0, 1], or None for a blind policy.
            words_BK: from :func:`hash_words`.
            state_BS: proprioception, standardised.
            points_BNP3: of each patch in the order of the visual tokens, metres; for the oracle only.
        """
        words_BKD = self.words(words_BK) + self.word_position
        state_B1D = self.state(state_BS)[:, None]
        task_B1D = words_BKD.mean(1, keepdim=True)
        queries_BTD = self.queries + state_B1D + task_B1D
        visual_BND = self._visual(images_BV3HW, state_BS.shape[0])
        if self.points is not None:
            assert points_BNP3 is not None
            visual_BND = visual_BND + self.points(waves(points_BNP3).flatten(2))
        x_BLD = torch.cat([words_BKD, visual_BND, state_B1D, queries_BTD], dim=1)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.actions(self.final_norm(x_BLD)[:, -self.queries.shape[0] :])

    def _visual(self, images_BV3HW: Tensor | None, batch: int) -> Tensor:
        if self.layout is None:
            return self.queries.new_zeros(batch, 0, self.queries.shape[1])
        expected = (self.layout.views, 3, self.image_size, self.image_size)
        if images_BV3HW is None or tuple(images_BV3HW.shape[1:]) != expected:
            found = None if images_BV3HW is None else tuple(images_BV3HW.shape[1:])
            raise SpatialForcingError(
                f"TinyVLA expects images of shape (views, 3, H, W) = {expected}, got {found}."
            )
        # Centred, so that the first layer does not have to learn the mean of the images.
        patches_bDhw = self.patches(2 * images_BV3HW.flatten(0, 1) - 1)
        patches_BND = patches_bDhw.flatten(2).transpose(1, 2).reshape(batch, -1, patches_bDhw.shape[1])
        return patches_BND + self.patch_position

    def spatial_forcing_host(self) -> Host:
        """Host record: the visual tokens come after the words, view by view."""
        if self.layout is None:
            raise SpatialForcingError(
                "A blind TinyVLA has no visual tokens: Spatial Forcing has nothing to act on."
            )
        visual = slice(self.max_words, self.max_words + self.layout.tokens)
        return Host(
            name="TinyVLA",
            blocks=tuple(self.blocks),
            final_norm=self.final_norm,
            width=self.queries.shape[1],
            layout=self.layout,
            visual=lambda hidden_BLD: hidden_BLD[:, visual],
            entry="norm1",
        )


RECORDS = (
    PolicyRecord(
        type="tiny",
        config="TinyConfig",
        module="spatial_forcing.hosts.tiny_policy",
        host=lambda policy, views: policy.model.spatial_forcing_host(),
        upstream=lambda policy: [policy.model.patches],
        sequence="[words] [view 1] [view 2] [state] [action queries]",
        language_model=False,
        tap="block 3 of 4",
        tokens="8 x 8 a view",
        trains="always does",
    ),
)
