"""Bootstrap intervals of a probe's metrics over test episodes, and paired differences.

Shapes: F frames, V views, h w cells of the depth map, n episodes, K quantities, R resamples.
"""

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.bootstrap import percentile_interval, pooled_resamples
from spatial_forcing.probe.depth import cell_errors
from spatial_forcing.results import Difference

CONFIDENCE = 0.95


class Spread:
    """Metrics of one source in bootstrap resamples of the test episodes; the same resamples for every source.

    The probe and the tokens are as they are: neither other training seeds nor other episodes to fit on are in
    it.

    Args:
        predicted_FVhw, true_FVhw: depth; NaN in ``true_FVhw`` where nothing is judged.
        episode_F: the episode of each frame.
    """

    def __init__(self, predicted_FVhw: Tensor, true_FVhw: Tensor, episode_F: Tensor):
        totals, counts = [], []
        for episode in episode_F.unique():
            true = true_FVhw[episode_F == episode]
            known = ~true.isnan()
            if known.any():
                errors = cell_errors(
                    predicted_FVhw[episode_F == episode][known].double(), true[known].double()
                )
                totals.append(errors.sum(1))
                counts.append(int(known.sum()))
        totals_nK, counts_n = torch.stack(totals).numpy(), np.array(counts)
        self.absrel = float(totals_nK[:, 0].sum() / counts_n.sum())
        self.means_RK = pooled_resamples(totals_nK, counts_n)

    def intervals(self) -> dict[str, list[float]] | None:
        """95 % intervals of absrel, rmse_m and delta1; None with one episode."""
        if self.means_RK is None:
            return None
        absrel_R, square_R, within_R = self.means_RK.T
        by_name = {"absrel": absrel_R, "rmse_m": np.sqrt(square_R), "delta1": within_R}
        return {name: list(percentile_interval(values_R, CONFIDENCE)) for name, values_R in by_name.items()}

    def against(self, other: "Spread") -> Difference:
        """Paired difference in AbsRel to another source."""
        value = self.absrel - other.absrel
        if self.means_RK is None or other.means_RK is None:
            return Difference(absrel=value)
        low, high = percentile_interval(self.means_RK[:, 0] - other.means_RK[:, 0], CONFIDENCE)
        return Difference(absrel=value, low=low, high=high)
