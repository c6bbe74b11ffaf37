"""Visual tokens of some frames with their positions in the images.

A host may pad or crop its images, look beyond their edges, or lack a camera. A token must be fitted
to and evaluated on the depth of what it sees, so tokens, affine and validity are kept together.

Shapes: F frames, V views, H W rows and columns of tokens or pixels, C channels, N = V*H*W, h w rows and
columns of cells of a depth map, k of them a side of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spatial_forcing.features import Features
from spatial_forcing.grid import VALID_COVERAGE, Layout, compose, identity, resample
from spatial_forcing.probe.depth import FAR, ProbeError, area_mean, cell_depth

# Frames whose features are resampled at once.
CHUNK = 32
# Along a side of a patch whose pixels stand in for a token.
MOST_PIXELS = 16


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens with their positions in the images: made by ``tapped_tokens``, compared by ``run_probe``.

    Images, depth maps and features that are given to a method are of the same frames and views, of any
    resolution, and show what the image in the data set shows: one tensor, or one for each view where
    cameras differ in size.

    Attributes:
        tokens_FVHWC: floating numbers, on the CPU.
        affine_FV23: from the grid of tokens to the image, in unit coordinates (``spatial_forcing.grid``).
        valid_FVHW: bool, False for tokens of padding and of cameras that were missing; they are neither
            fitted nor judged.
        coverage: how much of its cell a token needs in the image to take features: see ``grid.resample``.
        cameras: a name for each view, if the policy has names.
    """

    tokens_FVHWC: Tensor
    affine_FV23: Tensor
    valid_FVHW: Tensor
    coverage: float = VALID_COVERAGE
    cameras: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        tokens = self.tokens_FVHWC
        if tokens.ndim != 5 or not tokens.is_floating_point():
            raise ProbeError(
                f"Visual tokens must be floating numbers (frames, views, rows, columns, channels), got "
                f"{tokens.dtype} {tuple(tokens.shape)}."
            )
        F, V = tokens.shape[:2]
        if self.affine_FV23.shape != (F, V, 2, 3) or self.valid_FVHW.shape != tokens.shape[:4]:
            raise ProbeError(
                f"Tokens {tuple(tokens.shape)} need an affine {(F, V, 2, 3)} and a mask "
                f"{tuple(tokens.shape[:4])}, got {tuple(self.affine_FV23.shape)} and "
                f"{tuple(self.valid_FVHW.shape)}."
            )

    @classmethod
    def whole(cls, tokens_FVHWC: Tensor, valid_FVHW: Tensor | None = None) -> "VisualTokens":
        """Tokens whose grid covers the whole image and nothing else."""
        affine_FV23 = identity().expand(*tokens_FVHWC.shape[:2], 2, 3)
        if valid_FVHW is None:
            valid_FVHW = torch.ones(tokens_FVHWC.shape[:4], dtype=torch.bool)
        return cls(tokens_FVHWC, affine_FV23, valid_FVHW)

    @classmethod
    def laid_out(
        cls,
        visual_FNC: Tensor,
        layout: Layout,
        sizes: Sequence[tuple[int, int]],
        *,
        present_FV: Tensor | None = None,
        affine_FV23: Tensor | None = None,
        cameras: Sequence[str] | None = None,
    ) -> "VisualTokens":
        """Tokens of a host's first ``len(sizes)`` views on its layout; further views are left out.

        Args:
            visual_FNC: as the tap reads them.
            layout: the host's.
            sizes: height and width of the image of each view that the host was given.
            present_FV: bool, False where a frame lacks a view.
            affine_FV23: from the images that the host was given to those of the data set.
            cameras: a name for each view.
        """
        if not 0 < len(sizes) <= layout.views:
            raise ProbeError(f"Got images of {len(sizes)} views for a host with tokens for {layout.views}.")
        shape = (layout.views, layout.rows, layout.cols)
        tokens_FVHWC = visual_FNC.to("cpu", torch.float32).unflatten(1, shape)[:, : len(sizes)]
        F, V = tokens_FVHWC.shape[:2]
        position_FV23 = torch.stack([layout.affine_23(*size) for size in sizes]).expand(F, V, 2, 3)
        if affine_FV23 is not None:
            position_FV23 = compose(affine_FV23.to("cpu", torch.float32), position_FV23)
        valid_FVHW = torch.stack([layout.valid_mask(*size) for size in sizes]).expand(F, -1, -1, -1)
        if present_FV is not None:
            valid_FVHW = valid_FVHW & present_FV.cpu()[:, :, None, None]
        names = None if cameras is None else tuple(cameras)
        return cls(tokens_FVHWC, position_FV23, valid_FVHW, layout.coverage, names)

    @classmethod
    def joined(cls, parts: Sequence["VisualTokens"]) -> "VisualTokens":
        """Concatenates the frames of tokens of the same views.

        Raises:
            ProbeError: views, rows, columns or channels differ.
        """
        first = parts[0]
        found = {(part.tokens_FVHWC.shape[1:], part.cameras, part.coverage) for part in parts}
        if len(found) > 1:
            grids = ", ".join(sorted({str(tuple(shape)) for shape, _, _ in found}))
            raise ProbeError(
                f"The batches have different grids of tokens (views, rows, columns, channels): {grids}. "
                "Probe images of one size, of the same cameras."
            )
        return replace(
            first,
            tokens_FVHWC=torch.cat([part.tokens_FVHWC for part in parts]),
            affine_FV23=torch.cat([part.affine_FV23 for part in parts]),
            valid_FVHW=torch.cat([part.valid_FVHW for part in parts]),
        )

    @property
    def frames(self) -> int:
        return len(self.tokens_FVHWC)

    def of_cameras(self, cameras: Sequence[str]) -> "VisualTokens":
        """Selects the views of ``cameras``, in this order; a missing view is masked."""
        assert self.cameras is not None
        F, _, H, W, C = self.tokens_FVHWC.shape
        V = len(cameras)
        tokens_FVHWC, valid_FVHW = torch.zeros(F, V, H, W, C), torch.zeros(F, V, H, W, dtype=torch.bool)
        # Of a view that is not there nothing is read; another's affine is one that its images can fill.
        affine_FV23 = self.affine_FV23[:, :1].repeat(1, V, 1, 1)
        for view, name in enumerate(self.cameras):
            to = list(cameras).index(name)
            tokens_FVHWC[:, to], valid_FVHW[:, to] = self.tokens_FVHWC[:, view], self.valid_FVHW[:, view]
            affine_FV23[:, to] = self.affine_FV23[:, view]
        return VisualTokens(tokens_FVHWC, affine_FV23, valid_FVHW, self.coverage, tuple(cameras))

    def positioned_like(self, other: "VisualTokens") -> bool:
        """Whether both see the same parts of the same views."""
        return self.tokens_FVHWC.shape[:4] == other.tokens_FVHWC.shape[:4] and torch.allclose(
            self.affine_FV23, other.affine_FV23, rtol=0, atol=1e-5
        )

    def masked(self, valid_FVHW: Tensor) -> "VisualTokens":
        """Zeroes tokens where ``valid_FVHW`` is False: the content of padding tokens must not matter."""
        if valid_FVHW.all():
            return replace(self, valid_FVHW=valid_FVHW)
        tokens_FVHWC = torch.where(valid_FVHW[..., None], self.tokens_FVHWC, 0.0)
        return replace(self, tokens_FVHWC=tokens_FVHWC, valid_FVHW=valid_FVHW)

    # ---- what the tokens see ---------------------------------------------------------------------------

    def depth(self, depth: Tensor | Sequence[Tensor], sub_grid: int, far: float = FAR) -> Tensor:
        """Depth of what each token sees, on ``sub_grid`` x ``sub_grid`` cells of it: depth_FVhw.

        NaN beyond the image, where a token is not valid, and where depth is out of range on more than half
        of a cell.

        Args:
            depth: depth_FVHW in metres, or depth_FHW for each view.
            sub_grid, far: see ``DepthProbe`` and ``cell_depth``.
        """
        H, W = (side * sub_grid for side in self.tokens_FVHWC.shape[2:4])
        cells_FVhw = torch.cat(
            [cell_depth(map_FvHW, H, W, far, affine) for map_FvHW, affine in self._views(depth, "depth", 3)],
            dim=1,
        )
        return torch.where(self.on_cells(sub_grid), cells_FVhw, torch.nan)

    def on_cells(self, sub_grid: int) -> Tensor:
        """Mask valid_FVhw of the tokens, repeated for each of their cells."""
        return self.valid_FVHW.repeat_interleave(sub_grid, 2).repeat_interleave(sub_grid, 3)

    def patches(self, images: Tensor | Sequence[Tensor]) -> "VisualTokens":
        """Pixel patches at the positions of the tokens, as tokens: C = 3 x height x width of a patch.

        Patches have as many pixels per side as the image has there, rounded down, and :data:`MOST_PIXELS` at
        most: a linear head's moments grow with the square of their number.

        Args:
            images: images_FV3HW, or images_F3HW for each view.
        """
        rows, cols = self.tokens_FVHWC.shape[2:4]
        views = self._views(images, "images", 4)
        high = min(_pixels(image.shape[-2], affine[..., 1, 1], rows) for image, affine in views)
        wide = min(_pixels(image.shape[-1], affine[..., 0, 0], cols) for image, affine in views)
        high, wide = min(high, MOST_PIXELS), min(wide, MOST_PIXELS)
        # Views are one tensor, or each a tensor of one.
        seen_FV3HW = torch.cat(
            [
                image.cpu()
                if image.shape[-2:] == (rows * high, cols * wide) and (affine == identity()).all()
                else area_mean(image.cpu(), rows * high, cols * wide, affine)
                for image, affine in views
            ],
            dim=1,
        )
        cut_FV3HpWq = seen_FV3HW.unflatten(-1, (cols, -1)).unflatten(-3, (rows, -1))
        return replace(self, tokens_FVHWC=cut_FV3HpWq.permute(0, 1, 3, 5, 2, 4, 6).flatten(4))

    def carry(self, features: Features) -> "VisualTokens":
        """Resamples a teacher's features of the whole images to this grid, as the training target would be.

        Args:
            features: of the same frames and views, any grid.
        """
        tokens, valid = features.checked()
        if tokens.shape[:2] != self.tokens_FVHWC.shape[:2]:
            raise ProbeError(
                f"Got features of {tuple(tokens.shape[:2])} frames and views for tokens of "
                f"{tuple(self.tokens_FVHWC.shape[:2])}."
            )
        rows, cols = self.tokens_FVHWC.shape[2:4]
        shared = bool((self.affine_FV23 == self.affine_FV23[:1]).all())
        parts = []
        for x_fVHWC, valid_fVHW, affine_fV23 in zip(
            *(of.split(CHUNK) for of in (tokens, valid, self.affine_FV23)), strict=True
        ):
            of = Features(x_fVHWC.to("cpu", torch.float32), valid_fVHW.cpu())
            affine = affine_fV23[:1] if shared else affine_fV23
            parts.append(resample(of, rows, cols, affine, coverage=self.coverage))
        carried_FVHWC, seen_FVHW = (torch.cat(part) for part in zip(*parts, strict=True))
        return replace(self, tokens_FVHWC=carried_FVHWC, valid_FVHW=self.valid_FVHW & seen_FVHW)

    def _views(self, maps: Tensor | Sequence[Tensor], what: str, dims: int) -> list[tuple[Tensor, Tensor]]:
        """Pairs (maps_FvHW, affine_Fv23): one of all views, or one of each where they are given singly."""
        F, V = self.tokens_FVHWC.shape[:2]
        if isinstance(maps, Tensor):
            found = tuple(maps.shape)
            right = maps.ndim == dims + 1 and found[:2] == (F, V)
            pairs = [(maps, self.affine_FV23)]
        else:
            found = [tuple(one.shape) for one in maps]
            right = len(maps) == V and all(one.ndim == dims and len(one) == F for one in maps)
            pairs = [(one[:, None], self.affine_FV23[:, v : v + 1]) for v, one in enumerate(maps[:V])]
        if not right:
            names = "" if self.cameras is None else f" ({', '.join(self.cameras)})"
            raise ProbeError(
                f"Expected {what} of the same {F} frames and {V} views{names} as the tokens, got {found}."
            )
        return pairs


def _pixels(side: int, scale_FV: Tensor, tokens: int) -> int:
    """Number of image pixels that one token spans along a side, at least one."""
    return max(1, int(float(scale_FV.abs().min()) * side / tokens + 1e-3))
