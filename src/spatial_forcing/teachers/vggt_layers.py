"""Transformer layers of VGGT (arXiv 2503.11651) and of the DINOv2 under it (arXiv 2304.07193, 2309.16588).

Depth Anything 3 and MapAnything are built of the same.

B: batch (or batch x views), N: tokens, C: width, H: heads, D: width of a head, P: patches.

Precision: the residual stream, norms, rotations and layer scales run in the dtype of their own parameters
(float32), the matrix products in the dtype of theirs: `Linear` and `Conv2d` weights may be half precision.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rope = tuple[Tensor, Tensor]  # cosines_ND and sines_ND


class Attention(nn.Module):
    """Multi-head self-attention, with optional norms of queries and keys and a rotary embedding."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else None
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, rope: Rope | None = None) -> Tensor:
        qkv = self.qkv(x_BNC.to(self.qkv.weight.dtype))
        q_BHND, k_BHND, v_BHND = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHND = self.q_norm(q_BHND.to(self.q_norm.weight.dtype))
            k_BHND = self.k_norm(k_BHND.to(self.k_norm.weight.dtype))
        if rope is not None:
            q_BHND, k_BHND = rotate(q_BHND, rope), rotate(k_BHND, rope)
        y_BHND = F.scaled_dot_product_attention(q_BHND.to(v_BHND.dtype), k_BHND.to(v_BHND.dtype), v_BHND)
        return self.proj(y_BHND.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Feed-forward network: two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class SwiGLU(nn.Module):
    """Gated feed-forward network of DINOv2's largest size: `w3(silu(a) * b)` with `a, b = w12(x)`.

    The hidden width is two thirds of the nominal one, rounded up to a multiple of eight.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        hidden = 8 * -(-int(hidden * 2 / 3) // 8)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x.to(self.w12.weight.dtype)).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: `x + ls1(attn(norm1(x)))`, then `x + ls2(mlp(norm2(x)))`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.01,
        qk_norm: bool = False,
        eps: float = 1e-5,
        swiglu: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = (SwiGLU if swiglu else Mlp)(width, int(width * mlp_ratio))
        self.ls2 = LayerScale(width, layer_scale)

    def forward(self, x_BNC: Tensor, rope: Rope | None = None) -> Tensor:
        x_BNC = x_BNC + self.ls1(self.attn(self.norm1(x_BNC), rope))
        return x_BNC + self.ls2(self.mlp(self.norm2(x_BNC)))


def rope_2d(rows: int, cols: int, special: int, head_width: int, base: float, device: torch.device) -> Rope:
    """Rotary tables of one view: `special` tokens at (0, 0), patch (r, c) at (r+1, c+1); see `rope_at`."""
    r_P = torch.arange(1, rows + 1, device=device).repeat_interleave(cols)
    c_P = torch.arange(1, cols + 1, device=device).repeat(rows)
    return rope_at(F.pad(torch.stack([r_P, c_P]).float(), (special, 0)), head_width, base)


def rope_at(position_2N: Tensor, head_width: int, base: float) -> Rope:
    """Tables of the 2D rotary embedding for tokens at the given rows and columns.

    The first half of a head turns with the row, the second with the column; within a half of width D/2 the
    frequencies are `base^(-2i / (D/2))`, `i = 0 .. D/4 - 1`, each for channels i and i + D/4.
    """
    i = torch.arange(0, head_width // 2, 2, device=position_2N.device, dtype=torch.float32)
    angle_2NF = position_2N[..., None] * (1.0 / base ** (i / (head_width // 2)))
    angle_ND = torch.cat([angle_2NF, angle_2NF], dim=-1).transpose(0, 1).flatten(1)
    return angle_ND.cos(), angle_ND.sin()


def rotate(x_BHND: Tensor, rope: Rope) -> Tensor:
    """Applies `rope_2d` tables; computed in the tables' float32 at least."""
    cos_ND, sin_ND = rope
    first, second = x_BHND.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned_BHND = torch.stack([-second, first], dim=-2).flatten(-3)
    return x_BHND * cos_ND + turned_BHND * sin_ND


class PatchProjection(nn.Module):
    """Patch embedding: cuts an image into patches and projects each."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.proj(images_B3HW.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class PatchEncoder(nn.Module):
    """DINOv2 with registers: images to normalised patch tokens, one view at a time."""

    def __init__(
        self,
        *,
        img_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        registers: int,
        layer_scale: float = 1.0,
    ):
        super().__init__()
        self.patch = patch
        side = img_size // patch
        self.patch_embed = PatchProjection(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, layer_scale=layer_scale, eps=1e-6) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images_B3HW: Tensor, mask_BP: Tensor | None = None) -> Tensor:
        """Patch tokens of normalised images. Where `mask_BP` is True the mask token hides the patch."""
        rows, cols = images_B3HW.shape[-2] // self.patch, images_B3HW.shape[-1] // self.patch
        x_BPC = self.patch_embed(images_B3HW).to(self.pos_embed.dtype)
        if mask_BP is not None:
            x_BPC = torch.where(mask_BP[..., None], self.mask_token, x_BPC)
        x_BPC = x_BPC + self.positions(rows, cols)
        cls_B1C = (self.cls_token + self.pos_embed[:, :1]).expand(len(x_BPC), -1, -1)
        x_BNC = torch.cat([cls_B1C, self.register_tokens.expand(len(x_BPC), -1, -1), x_BPC], dim=1)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return self.norm(x_BNC)[:, -rows * cols :]

    def positions(self, rows: int, cols: int) -> Tensor:
        """Position embedding of the patches, resampled (bicubic, antialiased) from the trained grid."""
        grid_1PC = self.pos_embed[:, 1:]
        side = math.isqrt(grid_1PC.shape[1])
        if (rows, cols) == (side, side):
            return grid_1PC
        grid_1CHW = grid_1PC.transpose(1, 2).unflatten(-1, (side, side))
        grid_1CHW = F.interpolate(grid_1CHW, size=(rows, cols), mode="bicubic", antialias=True)
        return grid_1CHW.flatten(2).transpose(1, 2)
