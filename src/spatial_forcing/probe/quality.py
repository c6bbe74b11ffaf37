"""Depth metrics of a probe, accumulated by episode: AbsRel, RMSE, log10, delta 1 to 3, depth order.

Of an image (one view of one frame) with predicted depth p and true depth t in M cells:

    AbsRel  mean |p - t| / t          RMSE  sqrt(mean (p - t)²)          log10  mean |log10 p - log10 t|
    delta_i fraction with max(p/t, t/p) < 1.25^i                         (Eigen et al. 2014, arXiv 1406.2283)
    aligned the same of s p + o, where s, o = argmin sum (s p + o - t)² for each image, kept above 1 cm
    order   fraction of pairs of cells with their depths in the right order, of pairs whose depths differ by
            more than 5 % (Chen et al. 2016, arXiv 1604.03901); equal predictions count half

Shapes: F frames, V views, h w cells of the depth map, I = F*V images, M = h*w, P pairs, K quantities, n
episodes, R resamples.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.bootstrap import percentile_interval, pooled_resamples

CONFIDENCE = 0.95
PAIRS, APART = 512, 1.05
NEAREST_ALIGNED = 0.01
PLAIN = ("absrel", "rmse", "log10", "delta1", "delta2", "delta3")
METRICS = (*PLAIN, *(f"{name}_aligned" for name in PLAIN), "order")
LOWER_IS_BETTER = {name for name in METRICS if not name.startswith(("delta", "order"))}


def errors_of(p: Tensor, t: Tensor) -> Tensor:
    """Errors of each cell (6, ...), in the order of :data:`PLAIN`; of RMSE the square."""
    ratio = torch.maximum(p / t, t / p)
    within = [(ratio < 1.25**i).to(p.dtype) for i in (1, 2, 3)]
    return torch.stack([(p - t).abs() / t, (p - t).square(), (p / t).log10().abs(), *within])


def aligned(predicted_IM: Tensor, true_IM: Tensor) -> Tensor:
    """Predictions aligned to the truth, s p + o per image, by least squares over cells without NaN."""
    known = ~true_IM.isnan()
    n = known.sum(1, keepdim=True).clamp(min=1)
    p, t = (torch.where(known, of, 0.0) for of in (predicted_IM, true_IM))
    p_mean, t_mean = p.sum(1, keepdim=True) / n, t.sum(1, keepdim=True) / n
    p_off = torch.where(known, p - p_mean, 0.0)
    square = p_off.square().sum(1, keepdim=True)
    s = torch.where(square > 1e-12 * n, (p_off * t).sum(1, keepdim=True) / square.clamp(min=1e-30), 0.0)
    return (s * (predicted_IM - p_mean) + t_mean).clamp(min=NEAREST_ALIGNED)


def order_of(predicted_IM: Tensor, true_IM: Tensor) -> tuple[Tensor, Tensor]:
    """Correctly ordered and counted pairs of each image, of the same random pairs of cells in all images."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randint(true_IM.shape[1], (2, PAIRS), generator=draw)
    ratio_IP = true_IM[:, a] / true_IM[:, b]
    judged = (ratio_IP > APART) | (ratio_IP < 1 / APART)  # False where either is NaN
    right = (predicted_IM[:, a] - predicted_IM[:, b]).sign() * (ratio_IP - 1).sign()
    won = torch.where(judged, (right + 1) / 2, 0.0)
    return won.sum(1), judged.sum(1)


@dataclass(frozen=True)
class Tallies:
    """Metric totals by episode: of :data:`METRICS` (RMSE: squares), with their numbers of cells and pairs."""

    totals_nK: np.ndarray
    cells_n: np.ndarray
    pairs_n: np.ndarray

    @property
    def values(self) -> dict[str, float]:
        """Every metric, pooled over the cells (the pairs) of all episodes."""
        return _named(self.totals_nK.sum(0)[None] / self._counts_nK.sum(0).clip(1)[None], 0)

    @cached_property
    def resampled(self) -> dict[str, np.ndarray] | None:
        """Every metric in resamples of the episodes; None with one episode."""
        cells = pooled_resamples(self.totals_nK[:, :-1], self.cells_n)
        if cells is None:
            return None
        paired = self.pairs_n > 0
        order = pooled_resamples(self.totals_nK[paired, -1:], self.pairs_n[paired]) if paired.any() else None
        order = np.full((len(cells), 1), np.nan) if order is None else order
        return _named(np.concatenate([cells, order], 1), slice(None))

    def comparable(self, other: "Tallies") -> bool:
        """Whether both count the same number of cells in each episode."""
        return np.array_equal(self.cells_n, other.cells_n)

    @property
    def _counts_nK(self) -> np.ndarray:
        return np.concatenate([np.repeat(self.cells_n[:, None], 12, 1), self.pairs_n[:, None]], 1)


def _named(means_RK: np.ndarray, rows: int | slice) -> dict:
    named = dict(zip(METRICS, means_RK[rows].T, strict=True))
    for name in ("rmse", "rmse_aligned"):
        named[name] = np.sqrt(named[name])
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in named.items()}


def mean_of(tallies: list[Tallies]) -> Tallies:
    """Tallies averaged over the heads of several seeds, on the same cells."""
    return Tallies(
        np.mean([one.totals_nK for one in tallies], axis=0), tallies[0].cells_n, tallies[0].pairs_n
    )


@dataclass
class Judge:
    """Accumulator of errors, batch by batch; its memory grows with the number of episodes alone."""

    _by_episode: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, predicted_FVhw: Tensor, true_FVhw: Tensor, episode_F: Tensor) -> None:
        """Adds the errors of some frames; cells that are NaN in ``true_FVhw`` are left out."""
        p, t = (of.double().flatten(2).flatten(0, 1) for of in (predicted_FVhw, true_FVhw))
        known = ~t.isnan()
        p, filled = torch.where(known, p, 1.0), torch.where(known, t, 1.0)
        errors = torch.cat([errors_of(p, filled), errors_of(aligned(p, t), filled)])
        totals_IK = torch.where(known, errors, 0.0).sum(-1).T
        won_I, pairs_I = order_of(p, t)
        rows_IK = torch.cat(
            [totals_IK, won_I[:, None], known.sum(1)[:, None].double(), pairs_I[:, None].double()], 1
        )
        rows_FK = rows_IK.unflatten(0, true_FVhw.shape[:2]).sum(1).numpy()
        for row_K, episode in zip(rows_FK, episode_F.tolist(), strict=True):
            self._by_episode[episode] = self._by_episode.get(episode, 0.0) + row_K

    def tallies(self) -> Tallies | None:
        """The totals by episode, episodes in ascending order; None if no cell had depth."""
        rows = [self._by_episode[e] for e in sorted(self._by_episode) if self._by_episode[e][-2] > 0]
        if not rows:
            return None
        rows_nK = np.stack(rows)
        return Tallies(rows_nK[:, :-2], rows_nK[:, -2], rows_nK[:, -1])


def interval(values_R: np.ndarray) -> list[float] | None:
    """Percentile interval: the middle 95 % of resamples; None if there are none."""
    if np.isnan(values_R).any():
        return None
    return list(percentile_interval(values_R, CONFIDENCE))
