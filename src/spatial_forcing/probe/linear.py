"""The linear head of the depth probe.

    min_W,b  mean over tokens of |x̂ W + b - log d|² + λ |W|²,    x̂ = (x - mean) / std      (ridge
    regression)

Shapes: F frames, V views, H W rows and columns of tokens, C channels, N tokens, k cells a side of a token,
K = k*k, h = H*k and w = W*k rows and columns of the depth map.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

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
    """A linear head from a token to the log-depth of its own patch on a k x k sub-grid.

    Ridge regression in closed form, in float64, with an intercept and standardised inputs. One head serves
    every place in the picture: it knows where a token lies only if the token says so. A token is fitted only
    if its whole patch has depth in range. Predictions are kept inside the range of depth seen in training.

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
        self.ridge: float | None = None
        self._head: Head | None = None
        self._range = (0.0, far)

    def fit(self, tokens_FVHWC: Tensor, depth_FVHW: Tensor, episode_F: Tensor) -> "DepthProbe":
        """Fits the head.

        Args:
            tokens_FVHWC: any floating dtype.
            depth_FVHW: metres, any resolution that fills the sub-grid.
            episode_F: the episode of each frame; at least two episodes.

        Raises:
            ProbeError: shapes that do not fit, tokens that are not finite, fewer than two episodes, or no
                token whose depth is in range.
        """
        H, W = checked_grid(tokens_FVHWC, depth_FVHW, episode_F)
        depth_FVhw = cell_depth(depth_FVHW, H * self.sub_grid, W * self.sub_grid, self.far)
        held_F = _validation_frames(episode_F)
        target_FVHWK = self._per_token(depth_FVhw.log())
        fitted = _Moments.of(tokens_FVHWC[~held_F], target_FVHWK[~held_F])
        held = _Moments.of(tokens_FVHWC[held_F], target_FVHWK[held_F])
        if not fitted.count or not held.count:
            raise ProbeError(f"No patch lies wholly between 0 and {self.far} m: is the depth in metres?")
        if not (fitted + held).x_C.isfinite().all():
            raise ProbeError("Some tokens to fit are NaN or infinite.")
        heads = {ridge: fitted.solve(ridge) for ridge in self.ridges}
        self.ridge = min(heads, key=lambda ridge: held.error(heads[ridge]))
        self._head = (fitted + held).solve(self.ridge)
        seen = depth_FVhw[~depth_FVhw.isnan()]
        self._range = (float(seen.min()), float(seen.max()))
        return self

    def predict(self, tokens_FVHWC: Tensor) -> Tensor:
        """depth_FVhw in metres, float32, on the CPU, from tokens as wide as the fitted ones."""
        if self._head is None:
            raise ProbeError("The probe has not been fitted: call fit() first.")
        C = len(self._head.mean_C)
        if tokens_FVHWC.ndim != 5 or tokens_FVHWC.shape[-1] != C:
            raise ProbeError(f"Expected tokens (F, V, H, W, {C}), got {tuple(tokens_FVHWC.shape)}.")
        low, high = self._range
        log_depth_FVHWK = torch.cat([self._head(x_fVHWC.cpu()) for x_fVHWC in tokens_FVHWC.split(CHUNK)])
        if not log_depth_FVHWK.isfinite().all():
            raise ProbeError("Some tokens to predict from are NaN or infinite.")
        return self._per_cell(log_depth_FVHWK).exp().clamp(low, high).float()

    def _per_token(self, map_FVhw: Tensor) -> Tensor:
        k = self.sub_grid
        return map_FVhw.unflatten(3, (-1, k)).unflatten(2, (-1, k)).transpose(3, 4).flatten(4)

    def _per_cell(self, map_FVHWK: Tensor) -> Tensor:
        k = self.sub_grid
        return map_FVHWK.unflatten(4, (k, k)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


class Head(NamedTuple):
    """A linear map from tokens to targets on standardised inputs, in float64."""

    mean_C: Tensor
    std_C: Tensor
    weight_CK: Tensor
    bias_K: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        return ((tokens.double() - self.mean_C) / self.std_C) @ self.weight_CK + self.bias_K


@dataclass
class _Moments:
    """Sums over tokens from which every ridge solution and its error follow, in float64.

    They add up, so the tokens are passed through once, a few frames at a time.
    """

    count: int
    x_C: Tensor
    y_K: Tensor
    xx_CC: Tensor
    xy_CK: Tensor
    yy: Tensor

    @classmethod
    def of(cls, tokens_FVHWC: Tensor, target_FVHWK: Tensor) -> "_Moments":
        """Of the tokens whose targets are all known (not NaN)."""
        C, K = tokens_FVHWC.shape[-1], target_FVHWK.shape[-1]
        sums = cls(0, *(torch.zeros(shape, dtype=torch.float64) for shape in (C, K, (C, C), (C, K), ())))
        for x_fVHWC, y_fVHWK in zip(tokens_FVHWC.split(CHUNK), target_FVHWK.split(CHUNK), strict=True):
            known_fVHW = ~y_fVHWK.isnan().any(-1)
            x_NC, y_NK = x_fVHWC.cpu()[known_fVHW].double(), y_fVHWK[known_fVHW].double()
            xx_CC, xy_CK, yy = x_NC.T @ x_NC, x_NC.T @ y_NK, y_NK.square().sum()
            sums += cls(len(x_NC), x_NC.sum(0), y_NK.sum(0), xx_CC, xy_CK, yy)
        return sums

    def __add__(self, other: "_Moments") -> "_Moments":
        mine, theirs = vars(self), vars(other)
        return _Moments(**{name: mine[name] + theirs[name] for name in mine})

    def solve(self, ridge: float) -> Head:
        """The ridge regression of strength λ = ``ridge``; a channel that never varies gets no weight."""
        n, mean_C, bias_K = self.count, self.x_C / self.count, self.y_K / self.count
        covariance_CC = self.xx_CC / n - mean_C[:, None] * mean_C
        variance_C, square_C = covariance_CC.diagonal(), self.xx_CC.diagonal() / n
        std_C = torch.where(variance_C > 1e-12 * square_C, variance_C.clamp(min=0).sqrt(), torch.inf)
        correlation_CC = covariance_CC / (std_C[:, None] * std_C)
        target_CK = (self.xy_CK / n - mean_C[:, None] * bias_K) / std_C[:, None]
        eye_CC = torch.eye(len(mean_C), dtype=torch.float64)
        return Head(mean_C, std_C, torch.linalg.solve(correlation_CC + ridge * eye_CC, target_CK), bias_K)

    def error(self, head: Head) -> float:
        """Mean over these tokens of |x A + b - y|², where A and b are the head's on raw inputs."""
        A_CK = head.weight_CK / head.std_C[:, None]
        b_K = head.bias_K - head.mean_C @ A_CK
        cross = (A_CK * self.xy_CK).sum() + b_K @ self.y_K
        square = (A_CK * (self.xx_CC @ A_CK)).sum() + 2 * b_K @ (A_CK.T @ self.x_C) + self.count * b_K @ b_K
        return float((square - 2 * cross + self.yy) / self.count)


def checked_grid(
    tokens_FVHWC: Tensor, depth_FVHW: Tensor, episode_F: Tensor, what: str = "tokens"
) -> tuple[int, int]:
    """(rows, columns) of the tokens' grid, or a ProbeError that says what does not fit."""
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


def _validation_frames(episode_F: Tensor) -> Tensor:
    """Which frames belong to every fifth episode, at least one and never all."""
    episodes = episode_F.unique()
    if len(episodes) < 2:
        raise ProbeError(
            "Fitting needs frames of at least two episodes, one of them to choose the ridge strength."
        )
    every = min(VALIDATION_EVERY, len(episodes))
    return torch.isin(episode_F, episodes[every - 1 :: every])
