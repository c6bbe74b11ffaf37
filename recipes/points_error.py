"""How far the points of a feature cache are from those of another of the same frames (docs/geometry.md).

python recipes/points_error.py --predicted features --recorded features-depth
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from torch import Tensor

from spatial_forcing.cache.spans import Spans
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.guard import guarded

EVERY = 4  # frames


def points_of(root: Path, frames: Tensor) -> Tensor:
    """The points of some frames, points_BVHW3."""
    points_BVHW3 = FeatureStore(root, points=True).read(frames).points_BVHW3
    assert points_BVHW3 is not None
    return points_BVHW3


def main() -> None:
    """Prints the median and the quartiles of the distances."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name in ("--predicted", "--recorded"):
        parser.add_argument(name, type=Path, required=True, help="folder of features with points")
    options = parser.parse_args()
    source = FeatureStore(options.predicted).source
    of = Spans(source.frames, source.spans)
    frames = torch.tensor([of.frame_of(row) for row in range(0, of.frames, EVERY)])
    ours, true = (points_of(root, frames) for root in (options.predicted, options.recorded))
    off = (ours - true).norm(dim=-1)
    known = off[off.isfinite()]
    if not len(known):
        raise SpatialForcingError("There is no token whose point is known in both.")
    low, median, high = (100 * known.quantile(torch.tensor([0.25, 0.5, 0.75]))).tolist()
    print(
        f"{len(frames)} frames, {len(known) / off.numel():.0%} of the tokens known in both: {median:.1f} cm "
        f"off (median; quartiles {low:.1f} and {high:.1f} cm)"
    )
    alone = (ours.isfinite().all(-1) & ~true.isfinite().all(-1)).float().mean()
    print(
        f"a further {alone:.0%} have a predicted point alone: recorded depth is unknown there, or beyond 3 m"
    )


if __name__ == "__main__":
    guarded(main, lambda: "Nothing was changed.")
