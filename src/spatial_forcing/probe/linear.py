"""Linear head of the depth probe: ridge regression from a token to the depth of its own patch.

    d = x W + b_p,      min_W  mean over tokens of |(x̂ - x̂_p) W - (d - d_p)|² + λ |W|²      (ridge regression)

x: a token; d: the depth of its patch's k x k cells, in metres; p: its position (view, row, column); x̂: x,
each channel divided by its standard deviation at one position; x̂_p and d_p: means over the training frames at
p. W serves all positions. The offset b_p is free for every position and cell: the mean error there is zero.
So position is given to every source of tokens, and W = 0 is the mean depth of each cell.

Shapes: F frames, V views, H W rows and columns of tokens, C channels, N tokens, k cells per side of a token,
K = k*k, h = H*k and w = W*k rows and columns of the depth map, R ridge strengths, M = R*K outputs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR, ProbeError, cell_depth

SUB_GRID = 4
# Relative to standardised inputs: from almost none to nearly the mean.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# One training episode in so many is held back to choose the ridge strength.
VALIDATION_EVERY = 5
# Frames that are converted to float64 at once.
CHUNK = 32


class DepthProbe:
    """Linear depth probe: depth of a token's own patch on a k x k sub-grid, with an offset for each cell.

    Ridge regression in closed form, in float64, on standardised inputs. One map serves every position in the
    image, and every cell of the depth map has an offset of its own: tokens need not say where they lie, and
    tokens that never change give each cell's mean depth. The map is fitted on tokens whose whole patch has
    depth in range, the offsets on every cell in range; a cell that never was is predicted at the mean of all
    others. Predictions are kept inside the range of depth seen in training.

    Args:
        sub_grid: k; 8 x 8 tokens and k = 4 give a 32 x 32 map.
        far: depth is in range between 0 and this, in metres.
        ridges: strengths λ to choose from, by the error on one training episode in five; the head is then
            fitted again on all of them.

    Attributes:
        ridge: the chosen strength, after :meth:`fit`.
    """

    def __init__(self, sub_grid: int = SUB_GRID, far: float = FAR, ridges: Iterable[float] = RIDGES):
        self.sub_grid, self.far, self.ridges = sub_grid, far, tuple(ridges)
        if sub_grid < 1:
            raise ProbeError(f"The sub-grid of a token must be at least 1, got {sub_grid}.")
        if not far > 0:
            raise ProbeError(f"The farthest depth must be above zero, got {far}.")
        if not self.ridges or not all(0 <= ridge < inf for ridge in self.ridges):
            raise ProbeError(f"The probe needs ridge strengths, zero or more, got {self.ridges}.")
        self.ridge: float | None = None
        self._head: Head | None = None
        self._range = (0.0, far)

    @classmethod
    def fitted(
        cls, head: "Head", ridge: float, seen: tuple[float, float], *, sub_grid: int, far: float
    ) -> "DepthProbe":
        """Builds a probe from a fitted head; ``seen`` is the range of depth it was fitted on."""
        probe = cls(sub_grid, far, [ridge])
        probe.ridge, probe._head, probe._range = ridge, head, seen
        return probe

    def fit(self, tokens_FVHWC: Tensor, depth_FVHW: Tensor, episode_F: Tensor) -> "DepthProbe":
        """Fits the head by ridge regression.

        Args:
            tokens_FVHWC: any floating dtype.
            depth_FVHW: metres, of what the grid of tokens covers, any resolution that fills the sub-grid. For
                hosts that pad or crop that is not the image: see :meth:`VisualTokens.depth`.
            episode_F: the episode of each frame; at least two episodes.

        Raises:
            ProbeError: shapes that do not fit, tokens that are not finite, fewer than two episodes, or no
                token whose depth is in range.
        """
        H, W = checked_grid(tokens_FVHWC, depth_FVHW, episode_F)
        depth_FVhw = cell_depth(depth_FVHW, H * self.sub_grid, W * self.sub_grid, self.far)
        tokens_FVHWC, target_FVHWK = tokens_FVHWC.cpu(), per_token(depth_FVhw, self.sub_grid)
        held_F = validation_frames(episode_F).cpu()
        whole_FVHW = ~target_FVHWK.isnan().any(-1)
        if not whole_FVHW[held_F].any() or not whole_FVHW[~held_F].any():
            raise ProbeError(f"No patch lies wholly between 0 and {self.far} m: is the depth in metres?")
        if not (tokens_FVHWC.isfinite().all(-1) | target_FVHWK.isnan().all(-1)).all():
            raise ProbeError("Some tokens to fit are NaN or infinite.")
        heads = fit_head(tokens_FVHWC[~held_F], target_FVHWK[~held_F], self.ridges)
        self.ridge = self.ridges[int(heads.errors(tokens_FVHWC[held_F], target_FVHWK[held_F]).argmin())]
        self._head = fit_head(tokens_FVHWC, target_FVHWK, [self.ridge])
        seen = depth_FVhw[~depth_FVhw.isnan()]
        self._range = (float(seen.min()), float(seen.max()))
        return self

    def predict(self, tokens_FVHWC: Tensor) -> Tensor:
        """Predicts depth_FVhw in metres, float32, on the CPU, from tokens of the fitted grid and width."""
        if self._head is None:
            raise ProbeError("The probe has not been fitted: call fit() first.")
        V, H, W, C = (*self._head.offset_VHWM.shape[:3], len(self._head.weight_CM))
        if tokens_FVHWC.shape[1:] != (V, H, W, C):
            raise ProbeError(f"Expected tokens (F, {V}, {H}, {W}, {C}), got {tuple(tokens_FVHWC.shape)}.")
        low, high = self._range
        depth_FVHWK = torch.cat([self._head(x_fVHWC.cpu()) for x_fVHWC in tokens_FVHWC.split(CHUNK)])
        if not depth_FVHWK.isfinite().all():
            raise ProbeError("Some tokens to predict from are NaN or infinite.")
        return self._per_cell(depth_FVHWK).clamp(low, high).float()

    def _per_cell(self, map_FVHWK: Tensor) -> Tensor:
        k = self.sub_grid
        return map_FVHWK.unflatten(4, (k, k)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def per_token(map_FVhw: Tensor, k: int) -> Tensor:
    """Groups a map by token: map_FVHWK with the k x k cells of each."""
    return map_FVhw.unflatten(3, (-1, k)).unflatten(2, (-1, k)).transpose(3, 4).flatten(4)


@dataclass(frozen=True)
class Head:
    """Linear head: W and b_p on raw tokens, in float64, for one ridge strength or several side by side.

    A cell without an offset (NaN) is predicted at ``mean``, whatever its token.
    """

    weight_CM: Tensor
    offset_VHWM: Tensor
    mean: Tensor

    @classmethod
    def of(cls, weight_CM: Tensor, tokens_FVHWC: Tensor, target_FVHWK: Tensor) -> "Head":
        """Builds a head with the offsets that make each cell's mean error zero, over known targets."""
        times = weight_CM.shape[1] // target_FVHWK.shape[-1]
        chunks = _chunks(tokens_FVHWC, target_FVHWK)
        offset_VHWM = _mean(y.repeat(1, 1, 1, 1, times) - x @ weight_CM for x, y in chunks)
        return cls(weight_CM, offset_VHWM, target_FVHWK.double().nanmean(0).nanmean())

    def __call__(self, tokens_FVHWC: Tensor) -> Tensor:
        read_FVHWM = tokens_FVHWC.double() @ self.weight_CM + self.offset_VHWM
        return torch.where(self.offset_VHWM.isnan(), self.mean, read_FVHWM)

    def errors(self, tokens_FVHWC: Tensor, target_FVHWK: Tensor) -> Tensor:
        """Mean squared error of each ridge strength, over known targets."""
        K = target_FVHWK.shape[-1]
        wrong = (
            self(x).unflatten(-1, (-1, K)) - y[..., None, :] for x, y in _chunks(tokens_FVHWC, target_FVHWK)
        )
        return _mean(wrong_fVHWRK.square().flatten(0, 3) for wrong_fVHWRK in wrong).mean(-1)


def fit_head(tokens_FVHWC: Tensor, target_FVHWK: Tensor, ridges: Iterable[float]) -> Head:
    """Fits ridge regressions of all strengths, from targets that are NaN where unknown.

    A channel that never varies at one position gets no weight.
    """
    whole_FVHW = ~target_FVHWK.isnan().any(-1)
    x_VHWC, y_VHWK = _position_mean(tokens_FVHWC, whole_FVHW), _position_mean(target_FVHWK, whole_FVHW)
    C, K = tokens_FVHWC.shape[-1], target_FVHWK.shape[-1]
    xx_CC, xy_CK, square_C = (torch.zeros(s, dtype=torch.float64) for s in ((C, C), (C, K), (C,)))
    for x_fVHWC, y_fVHWK in _chunks(tokens_FVHWC, target_FVHWK):
        whole_fVHW = ~y_fVHWK.isnan().any(-1)
        x_NC, y_NK = (x_fVHWC - x_VHWC)[whole_fVHW], (y_fVHWK - y_VHWK)[whole_fVHW]
        xx_CC, xy_CK = xx_CC + x_NC.T @ x_NC, xy_CK + x_NC.T @ y_NK
        square_C += x_fVHWC[whole_fVHW].square().sum(0)
    n = whole_FVHW.sum()
    varies_C = xx_CC.diagonal() > 1e-12 * square_C
    std_C = torch.where(varies_C, (xx_CC.diagonal() / n).sqrt(), torch.inf)
    correlation_CC = xx_CC / n / (std_C[:, None] * std_C)
    target_CK = xy_CK / n / std_C[:, None]
    eye_CC = torch.eye(C, dtype=torch.float64)
    solved = [torch.linalg.solve(correlation_CC + ridge * eye_CC, target_CK) for ridge in ridges]
    return Head.of(torch.cat(solved, 1) / std_C[:, None], tokens_FVHWC, target_FVHWK)


def _chunks(*maps: Tensor) -> Iterator[list[Tensor]]:
    """Iterates over maps in chunks of a few frames, in float64."""
    for parts in zip(*(map_.split(CHUNK) for map_ in maps), strict=True):
        yield [part.double() for part in parts]


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """Mean over the first dimension of all parts together, ignoring NaN; NaN where all are."""
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.long)
    for part in parts:
        total, count = total + part.nansum(0), count + (~part.isnan()).sum(0)
    return total / count


def _position_mean(map_FVHWC: Tensor, chosen_FVHW: Tensor) -> Tensor:
    """Mean over the chosen frames at each position, in float64; 0 where none is chosen."""
    total_VHWC = torch.zeros(map_FVHWC.shape[1:], dtype=torch.float64)
    for x_fVHWC, chosen_fVHW in zip(map_FVHWC.split(CHUNK), chosen_FVHW.split(CHUNK), strict=True):
        total_VHWC += torch.where(chosen_fVHW[..., None], x_fVHWC, 0.0).sum(0, dtype=torch.float64)
    return total_VHWC / chosen_FVHW.sum(0).clamp(min=1)[..., None]


def checked_grid(
    tokens_FVHWC: Tensor, depth_FVHW: Tensor, episode_F: Tensor, what: str = "tokens"
) -> tuple[int, int]:
    """Validates shapes and values; returns (rows, columns) of the token grid, or raises ProbeError."""
    found = f"{what}: got tokens {tokens_FVHWC.dtype} {tuple(tokens_FVHWC.shape)}"
    if tokens_FVHWC.ndim != 5 or not tokens_FVHWC.is_floating_point():
        raise ProbeError(f"{found}, expected floating numbers (frames, views, rows, columns, channels).")
    if depth_FVHW.ndim != 4 or depth_FVHW.shape[:2] != tokens_FVHWC.shape[:2]:
        raise ProbeError(
            f"{found} and depth {tuple(depth_FVHW.shape)}, expected (frames, views, rows, columns) of the "
            "same frames and views."
        )
    if episode_F.shape != tokens_FVHWC.shape[:1]:
        raise ProbeError(f"{found} and episodes {tuple(episode_F.shape)}, expected one episode a frame.")
    return tokens_FVHWC.shape[2], tokens_FVHWC.shape[3]


def validation_frames(episode_F: Tensor) -> Tensor:
    """Mask of the validation frames: every fifth episode, at least one and never all."""
    episodes = episode_F.unique()
    if len(episodes) < 2:
        raise ProbeError(
            "Fitting needs frames of at least two episodes, one of them to choose the ridge strength."
        )
    every = min(VALIDATION_EVERY, len(episodes))
    return torch.isin(episode_F, episodes[every - 1 :: every])
