"""Depth probes of several sources of tokens on the same frames, with reference lines.

Shapes: F frames, V views, H W rows and columns of tokens or pixels, C channels, h w cells of the depth map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR, ProbeError, metrics
from spatial_forcing.probe.linear import SUB_GRID, DepthProbe, checked_grid
from spatial_forcing.probe.spread import CONFIDENCE, Spread
from spatial_forcing.probe.visual import VisualTokens
from spatial_forcing.results import Probe, ProbeRow

MEAN = "mean depth"
Sources = Mapping[str, tuple[VisualTokens, VisualTokens]]
# One tensor of all views, or one for each view where cameras differ in size.
Maps = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Frames:
    """Ground truth of some frames: depth, episodes and images.

    Attributes:
        depth: depth_FVHW in metres of the images of the data set, before the host crops or pads them; or
            depth_FHW for each view.
        episodes: episode_F, the episode of each frame.
        images: images_FV3HW in [0, 1], or images_F3HW for each view; None to do without the "pixels" row.
    """

    depth: Maps
    episodes: Tensor
    images: Maps | None = None


@dataclass
class ProbeResult:
    """Results of depth probes: a row per source, and the predicted depth maps.

    Attributes:
        rows: the sources in the order given, then the references: "pixels" (if given) and "mean depth".
        train_frames, test_frames: how many frames the probes were fitted on and judged on.
        test_episodes: how many episodes those judged on are of.
        sub_grid, far: as given.
        depth_FVhw: true depth of what the tokens of the test frames see, on the sub-grid; NaN out of range,
            in padding and where a camera is missing.
        predicted: depth_FVhw a row; NaN where tokens are masked.
    """

    rows: list[ProbeRow]
    train_frames: int
    test_frames: int
    test_episodes: int
    sub_grid: int
    far: float
    depth_FVhw: Tensor = field(repr=False)
    predicted: dict[str, Tensor] = field(repr=False)

    def record(self, image: str | None = None) -> Probe:
        """The results as a record for the report; ``image`` is the path of the drawn test frames."""
        return Probe(
            rows=self.rows,
            image=image,
            train_frames=self.train_frames,
            test_frames=self.test_frames,
            test_episodes=self.test_episodes,
            confidence=CONFIDENCE,
            sub_grid=self.sub_grid,
            far_m=self.far,
        )

    def draw(self, images: Maps, path: Path, frames: int = 3, view: int = 0) -> Path:
        """Draws test frames: image, true depth, and each source's depth with its error below.

        Places without depth in range are grey in all of them.

        Args:
            images: the test frames in [0, 1], images_FV3HW or images_F3HW for each view.
            path: the PNG to write.
            frames: how many, evenly spread over the test frames.
            view: which view.

        Raises:
            ProbeError: the images are not those of the test frames.
            MissingDependencyError: matplotlib is not installed.
        """
        from spatial_forcing.probe.image import probe_image

        views = images.unbind(1) if isinstance(images, Tensor) else images
        if not 0 <= view < len(views) or len(views[view]) != self.test_frames:
            found = [tuple(of.shape) for of in views]
            raise ProbeError(f"Expected the {self.test_frames} test frames with a view {view}, got {found}.")
        chosen = torch.linspace(0, self.test_frames - 1, min(frames, self.test_frames)).round().long()
        return probe_image(
            views[view][chosen],
            self.depth_FVhw[chosen, view],
            {name: depth_FVhw[chosen, view] for name, depth_FVhw in self.predicted.items()},
            path,
        )


def run_probe(
    sources: Sources,
    train: Frames,
    test: Frames,
    *,
    baseline: str | None = None,
    sub_grid: int = SUB_GRID,
    far: float = FAR,
) -> ProbeResult:
    """Fits one depth probe per source on the same frames, and evaluates all of them on the same test frames.

    A token is fitted to and judged by the depth of what it sees, and tokens that see padding, or a camera
    that is missing, by none. Two references are added. "mean depth" sees nothing: it is the same probe on
    tokens that never change, whose linear map is zero, and predicts the training frames' mean depth of each
    cell. What a source gains over it is read from its tokens. "pixels" is the same probe on raw patches, if
    both sets of frames have images.

    Args:
        sources: name -> (train tokens, test tokens), all at the same positions in the images.
        train, test: the frames; the two must share no episode.
        baseline: the source that all others are compared with, beside mean depth.
        sub_grid, far: see :class:`DepthProbe`.

    Raises:
        ProbeError: an episode is in both, sources that see different parts of the images, no such baseline,
            or shapes that do not fit.
    """
    _check_disjoint(train.episodes, test.episodes)
    _check_sources(sources, baseline)
    grids = [_common_grid([pair[side] for pair in sources.values()]) for side in (0, 1)]
    cells = [of.depth(frames.depth, sub_grid, far) for of, frames in zip(grids, (train, test), strict=True)]
    for name, pair in sources.items():
        checked_grid(pair[0].tokens_FVHWC, cells[0], train.episodes, f"{name}, training")
        checked_grid(pair[1].tokens_FVHWC, cells[1], test.episodes, f"{name}, test")
    if train.images is not None and test.images is not None:
        sources = {**sources, "pixels": (grids[0].patches(train.images), grids[1].patches(test.images))}
    nothing = [replace(of, tokens_FVHWC=torch.zeros_like(of.tokens_FVHWC[..., :1])) for of in grids]
    predicted: dict[str, Tensor] = {}
    ridges: dict[str, float | None] = {}
    for name, pair in {**sources, MEAN: (nothing[0], nothing[1])}.items():
        seen = [of.masked(at.valid_FVHW).tokens_FVHWC for of, at in zip(pair, grids, strict=True)]
        probe = DepthProbe(sub_grid, far).fit(seen[0], cells[0], train.episodes)
        predicted[name] = torch.where(grids[1].on_cells(sub_grid), probe.predict(seen[1]), torch.nan)
        ridges[name] = probe.ridge
    ridges[MEAN] = None  # nothing was fitted but offsets
    return ProbeResult(
        rows=_rows(predicted, ridges, cells[1], test.episodes, far, baseline),
        train_frames=grids[0].frames,
        test_frames=grids[1].frames,
        test_episodes=len(test.episodes.unique()),
        sub_grid=sub_grid,
        far=far,
        depth_FVhw=cells[1],
        predicted=predicted,
    )


def _rows(
    predicted: Mapping[str, Tensor],
    ridges: Mapping[str, float | None],
    true_FVhw: Tensor,
    episode_F: Tensor,
    far: float,
    baseline: str | None,
) -> list[ProbeRow]:
    """Result rows: metrics with intervals, and differences to mean depth and to the baseline."""
    judged = {name: metrics(depth_FVhw, true_FVhw, far) for name, depth_FVhw in predicted.items()}
    spreads = {name: Spread(depth_FVhw, true_FVhw, episode_F) for name, depth_FVhw in predicted.items()}
    others = [other for other in (baseline, MEAN) if other is not None]
    return [
        ProbeRow(
            name=name,
            **asdict(judged[name]),
            ridge=ridges[name],
            intervals=spread.intervals(),
            differences={other: spread.against(spreads[other]) for other in others if other != name},
        )
        for name, spread in spreads.items()
    ]


def _common_grid(tokens: Sequence[VisualTokens]) -> VisualTokens:
    """The first of some tokens with the mask common to all, so that all are evaluated on the same cells."""
    valid_FVHW = tokens[0].valid_FVHW
    for other in tokens[1:]:
        valid_FVHW = valid_FVHW & other.valid_FVHW
    return replace(tokens[0], valid_FVHW=valid_FVHW)


def _check_disjoint(train_episodes: Tensor, test_episodes: Tensor) -> None:
    shared = sorted(set(train_episodes.tolist()) & set(test_episodes.tolist()))
    if shared:
        names = ", ".join(map(str, shared[:5])) + (", ..." if len(shared) > 5 else "")
        raise ProbeError(
            f"{len(shared)} episodes are in both training and test: {names}. Test on other ones."
        )


def _check_sources(sources: Sources, baseline: str | None) -> None:
    if not sources:
        raise ProbeError("There is no source of tokens to probe.")
    if baseline is not None and baseline not in sources:
        raise ProbeError(f"There is no source {baseline!r} to compare with. There are: {', '.join(sources)}.")
    for name, pair in sources.items():
        for tokens in pair:
            if not isinstance(tokens, VisualTokens):
                raise ProbeError(
                    f"{name}: expected VisualTokens, got {type(tokens).__name__}. tapped_tokens() gives "
                    "them; of tokens that cover the whole image: VisualTokens.whole(tokens)."
                )
    first, *others = sources
    for name in others:
        for mine, reference in zip(sources[name], sources[first], strict=True):
            if not mine.positioned_like(reference):
                found = [tuple(of.tokens_FVHWC.shape[:4]) for of in (reference, mine)]
                raise ProbeError(
                    "Sources must share one grid, at the same positions in the images, to be comparable, and "
                    f"{first} and {name} do not: (frames, views, rows, columns) are {found[0]} and "
                    f"{found[1]}. Carry a teacher's features over with VisualTokens.carry()."
                )
