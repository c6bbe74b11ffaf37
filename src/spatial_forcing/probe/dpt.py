"""DPT head of the depth probe, its published form: on the tokens of four layers, host frozen.

arXiv 2510.12276 reads depth from a frozen policy with a DPT head (arXiv 2103.13413) over the aligned layer
and the three before it. Its code is not public; what it leaves open is fixed here: every token goes through
a two-layer MLP of its layer (layer norm, D wide, GELU), the four maps are merged as VGGT's depth head does
(``teachers/vggt_heads.py``), and depth is read at the cells on which the linear head is judged, too.

    loss = mean over cells with depth of |log p - log t|          AdamW, cosine to zero, fixed steps

Its training frames are a random sample of fixed size, drawn while they stream by (reservoir sampling), so
that memory does not grow with the data set.

Shapes: F frames, V views, H W rows and columns of tokens, C channels, N tokens of a view, h w cells of the
depth map, k cells per side of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.teachers.vggt_heads import DPTHead

LAYERS = 4


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters of the DPT head; fixed, so that numbers are comparable.

    Attributes:
        steps, batch_size: of training; a batch is frames with all their views.
        learning_rate, weight_decay: of AdamW; the rate falls to zero along a cosine.
        width: D, channels of the MLPs and of the decoder.
        sample_bytes: most memory of the training sample.
        most_frames: most frames in it.
    """

    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    width: int = 24
    sample_bytes: int = 512 * 2**20
    most_frames: int = 2000


class TokenSample:
    """A random sample, of fixed size, of the frames that were added (Vitter's algorithm R).

    Tokens are kept in float16, divided by their largest number where that is too large for it.

    Args:
        recipe: for the sizes.
        seed: of what is kept.
    """

    def __init__(self, recipe: Recipe, seed: int = 0):
        self.recipe, self._draw = recipe, torch.Generator().manual_seed(seed)
        self.seen, self.size = 0, 0
        self.layers: list[Tensor] = []
        self.cells_FVhw = torch.empty(0)

    def add(self, layers_FVHWC: Sequence[Tensor], cells_FVhw: Tensor) -> None:
        """Offers some frames to the sample: the tokens of four layers, and their depth."""
        if not self.layers:
            a_frame = sum(2 * of[0].numel() for of in layers_FVHWC) + 4 * cells_FVhw[0].numel()
            self.size = max(1, min(self.recipe.most_frames, self.recipe.sample_bytes // a_frame))
            self.layers = [of.new_empty(0, *of.shape[1:], dtype=torch.float16) for of in layers_FVHWC]
            self.cells_FVhw = cells_FVhw.new_empty(0, *cells_FVhw.shape[1:])
        room = self.size - len(self.cells_FVhw)
        if room > 0:
            self.layers = [
                torch.cat([kept, _half(of[:room])])
                for kept, of in zip(self.layers, layers_FVHWC, strict=True)
            ]
            self.cells_FVhw = torch.cat([self.cells_FVhw, cells_FVhw[:room]])
        for i in range(max(0, room), len(cells_FVhw)):
            at = int(torch.randint(self.seen + i + 1, (), generator=self._draw))
            if at < self.size:
                for kept, of in zip(self.layers, layers_FVHWC, strict=True):
                    kept[at] = _half(of[i])
                self.cells_FVhw[at] = cells_FVhw[i]
        self.seen += len(cells_FVhw)

    @property
    def bytes(self) -> int:
        """Memory of the sample in bytes."""
        return self.cells_FVhw.nbytes + sum(of.nbytes for of in self.layers)


def _half(tokens: Tensor) -> Tensor:
    return tokens.clamp(-6e4, 6e4).half()


class DPTProbe(nn.Module):
    """DPT depth head on the tokens of four layers: two-layer MLPs and DPT's decoder."""

    def __init__(self, width: int, sub_grid: int, recipe: Recipe):
        super().__init__()
        D = recipe.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(LAYERS))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, D), nn.GELU(), nn.Linear(D, D)) for _ in range(LAYERS)
        )
        self.head = DPTHead(
            D, patch=sub_grid, outputs=2, activation="exp", features=D, channels=(D,) * LAYERS, hidden=D // 2
        )
        self.sub_grid = sub_grid
        self.scales = [1.0] * LAYERS
        self.seen = (0.0, float("inf"))

    def forward(self, layers_FVHWC: Sequence[Tensor]) -> Tensor:
        """Predicts depth_FVhw on the cells, in metres, clamped to the range seen in training."""
        H, W = layers_FVHWC[0].shape[2:4]
        read = []
        for x_FVHWC, scale, norm, mlp in zip(layers_FVHWC, self.scales, self.norms, self.mlps, strict=True):
            read.append(mlp(norm(x_FVHWC.flatten(2, 3).float() / scale)))
        value_FVhw1, _ = self.head(read, (H * self.sub_grid, W * self.sub_grid))
        return value_FVhw1.squeeze(-1).clamp(*self.seen)


def fit_dpt(sample: TokenSample, sub_grid: int, recipe: Recipe, seed: int, device: str = "cpu") -> DPTProbe:
    """Trains a DPT head on a sample.

    Args:
        sample: of the training frames.
        sub_grid: k, cells per side of a token.
        recipe: how.
        seed: of its first weights and of the order of frames.

    Raises:
        ProbeError: no frame of the sample has depth.
    """
    known_F = (~sample.cells_FVhw.isnan()).flatten(1).any(1)
    usable = known_F.nonzero()[:, 0]
    if not len(usable):
        raise ProbeError("No frame of the sample for the DPT head has depth in range.")
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = DPTProbe(sample.layers[0].shape[-1], sub_grid, recipe).to(device)
    probe.scales = [max(1e-6, float(of[usable[:64]].float().std())) for of in sample.layers]
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        at = usable[torch.randint(len(usable), (recipe.batch_size,), generator=draw)]
        predicted = probe([of[at].to(device) for of in sample.layers])
        true = sample.cells_FVhw[at].to(device)
        known = ~true.isnan()
        loss = (predicted[known].log() - true[known].log()).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    seen = sample.cells_FVhw[~sample.cells_FVhw.isnan()]
    probe.seen = (float(seen.min()), float(seen.max()))
    return probe.cpu().eval().requires_grad_(False)
