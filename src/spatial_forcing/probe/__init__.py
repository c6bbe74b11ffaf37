"""Linear depth probe: how much depth can be read from the visual tokens of a frozen layer.

A ridge regression reads, from one token alone, the depth of the token's own patch on a k x k sub-grid. The
linear map is the same everywhere; beside it every cell of the depth map has an offset of its own, so that a
token gains nothing by saying where in the image it lies. It is fitted on some episodes and judged on
others. The network stays as it is, so what a source gains over the mean depth of each cell, which is the same
probe without tokens, was in the tokens already and near the surface.

A host may pad or crop its images: :class:`VisualTokens` are tokens with the part of the image that each
sees, and are fitted to and judged by the depth there.

    train, test = tapped_tokens(policy, train_batches), tapped_tokens(policy, test_batches)
    result = run_probe(
        {"policy": (train, test)}, Frames(train_depth, train_episodes), Frames(test_depth, test_episodes)
    )
    result.draw(test_images, Path("probe.png"))
"""

from spatial_forcing.probe.compare import Frames, ProbeResult, run_probe
from spatial_forcing.probe.depth import DepthMetrics, ProbeError, cell_depth, metrics
from spatial_forcing.probe.linear import DepthProbe
from spatial_forcing.probe.tokens import tapped_tokens
from spatial_forcing.probe.visual import VisualTokens

__all__ = [
    "DepthMetrics",
    "DepthProbe",
    "Frames",
    "ProbeError",
    "ProbeResult",
    "VisualTokens",
    "cell_depth",
    "metrics",
    "run_probe",
    "tapped_tokens",
]
