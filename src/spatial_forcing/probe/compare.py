"""Depth probes of several sources of tokens on the same frames, with the references that give them a scale.

Shapes: F frames, V views, H W rows and columns of tokens or pixels, C channels, h w cells of the depth map.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR, DepthMetrics, ProbeError, cell_depth, metrics
from spatial_forcing.probe.linear import SUB_GRID, DepthProbe, checked_grid

MEAN = "mean depth"


@dataclass(frozen=True)
class ProbeRow:
    """One source of tokens: its metrics on the test episodes and its ridge strength (None for mean depth)."""

    name: str
    metrics: DepthMetrics
    ridge: float | None = None


@dataclass
class ProbeResult:
    """A row a source, and the predicted maps behind them.

    Attributes:
        rows: the sources in the order given, then the references: "pixels" (if given) and "mean depth".
        train_frames, test_frames: how many frames the probes were fitted on and judged on.
        sub_grid, far: as given.
        depth_FVhw: true depth of the test frames on the sub-grid, NaN out of range.
        predicted: depth_FVhw a row.
    """

    rows: list[ProbeRow]
    train_frames: int
    test_frames: int
    sub_grid: int
    far: float
    depth_FVhw: Tensor = field(repr=False)
    predicted: dict[str, Tensor] = field(repr=False)

    def to_dict(self, picture: str | None = None) -> dict[str, Any]:
        """What the report reads, as plain data; ``picture`` is the path of :meth:`pictures`, for the
        report."""
        return {
            "rows": [{"name": row.name, **asdict(row.metrics), "ridge": row.ridge} for row in self.rows],
            "picture": picture,
            "train_frames": self.train_frames,
            "test_frames": self.test_frames,
            "sub_grid": self.sub_grid,
            "far_m": self.far,
        }

    def pictures(self, images_FV3HW: Tensor, path: Path, frames: int = 3, view: int = 0) -> Path:
        """Draws test frames: picture, true depth, and each source's depth with its error below.

        Places without depth in range are grey in all of them.

        Args:
            images_FV3HW: the test frames in [0, 1].
            path: the PNG to write.
            frames: how many, evenly spread over the test frames.
            view: which view.

        Raises:
            ProbeError: the pictures are not those of the test frames.
            MissingDependencyError: matplotlib is not installed.
        """
        from spatial_forcing.probe.picture import probe_picture

        if len(images_FV3HW) != self.test_frames or not 0 <= view < images_FV3HW.shape[1]:
            found = tuple(images_FV3HW.shape)
            raise ProbeError(f"Expected the {self.test_frames} test frames with a view {view}, got {found}.")
        chosen = torch.linspace(0, self.test_frames - 1, min(frames, self.test_frames)).round().long()
        return probe_picture(
            images_FV3HW[chosen, view],
            self.depth_FVhw[chosen, view],
            {name: depth_FVhw[chosen, view] for name, depth_FVhw in self.predicted.items()},
            path,
        )


def run_probe(
    sources: Mapping[str, tuple[Tensor, Tensor]],
    train_depth: Tensor,
    test_depth: Tensor,
    train_episodes: Tensor,
    test_episodes: Tensor,
    *,
    images: tuple[Tensor, Tensor] | None = None,
    sub_grid: int = SUB_GRID,
    far: float = FAR,
) -> ProbeResult:
    """Fits one depth probe a source on the same frames, and judges all of them on the same test frames.

    Two references are added. "mean depth" sees nothing: it is the same probe on tokens that never change,
    whose linear map is zero, and predicts the training frames' mean depth of each cell. What a source gains
    over it is read from its tokens. "pixels" is the same probe on raw patches, if pictures are given.

    Args:
        sources: name -> (train tokens, test tokens), each tokens_FVHWC, all on one grid.
        train_depth, test_depth: depth_FVHW in metres.
        train_episodes, test_episodes: the episode_F of each frame; the two must share none.
        images: (train, test) pictures_FV3HW in [0, 1]; sides must be multiples of the grid.
        sub_grid, far: see :class:`DepthProbe`.

    Raises:
        ProbeError: an episode is in both, sources on different grids, or shapes that do not fit.
    """
    _check_disjoint(train_episodes, test_episodes)
    H, W = _common_grid(sources, (train_depth, train_episodes), (test_depth, test_episodes))
    if images is not None:
        sources = {**sources, "pixels": (_patches(images[0], H, W), _patches(images[1], H, W))}
    # Averaged once; averaging what lies on the sub-grid already changes nothing.
    train_cells = cell_depth(train_depth, H * sub_grid, W * sub_grid, far)
    test_cells = cell_depth(test_depth, H * sub_grid, W * sub_grid, far)
    predicted: dict[str, Tensor] = {}
    ridges: dict[str, float | None] = {}
    same = tuple(torch.zeros(*depth.shape[:2], H, W, 1) for depth in (train_depth, test_depth))
    for name, (train_tokens, test_tokens) in {**sources, MEAN: same}.items():
        probe = DepthProbe(sub_grid, far).fit(train_tokens, train_cells, train_episodes)
        predicted[name], ridges[name] = probe.predict(test_tokens), probe.ridge
    ridges[MEAN] = None  # nothing was fitted but offsets
    return ProbeResult(
        rows=[ProbeRow(name, metrics(p, test_cells, far), ridges[name]) for name, p in predicted.items()],
        train_frames=len(train_depth),
        test_frames=len(test_depth),
        sub_grid=sub_grid,
        far=far,
        depth_FVhw=test_cells,
        predicted=predicted,
    )


def _patches(images_FV3HW: Tensor, rows: int, cols: int) -> Tensor:
    """Raw patches as tokens_FVHWC, C = 3 x height x width of a patch."""
    height, width = images_FV3HW.shape[-2:]
    if height % rows or width % cols:
        raise ProbeError(f"Pictures of {height} x {width} cannot be cut into {rows} x {cols} equal patches.")
    cut_FV3HpWq = images_FV3HW.unflatten(-1, (cols, -1)).unflatten(-3, (rows, -1))
    return cut_FV3HpWq.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)


def _check_disjoint(train_episodes: Tensor, test_episodes: Tensor) -> None:
    shared = sorted(set(train_episodes.tolist()) & set(test_episodes.tolist()))
    if shared:
        names = ", ".join(map(str, shared[:5])) + (", ..." if len(shared) > 5 else "")
        raise ProbeError(
            f"{len(shared)} episodes are in both training and test: {names}. Test on other ones."
        )


def _common_grid(
    sources: Mapping[str, tuple[Tensor, Tensor]], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> tuple[int, int]:
    """(rows, columns) of the grid that all sources share; ``train`` and ``test`` are (depth, episodes)."""
    if not sources:
        raise ProbeError("There is no source of tokens to probe.")
    grids = {}
    for name, (train_tokens, test_tokens) in sources.items():
        grids[f"{name}, training"] = checked_grid(train_tokens, *train, what=f"{name}, training")
        grids[f"{name}, test"] = checked_grid(test_tokens, *test, what=f"{name}, test")
    if len(set(grids.values())) > 1:
        raise ProbeError(f"Sources must share one grid to be comparable, got {grids}: use resample().")
    return next(iter(grids.values()))
