"""Token sources of a probe (sites and references): their heads are fitted and evaluated in one pass.

Shapes: F frames, V views, h w cells of the depth map, k cells per side of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR, ProbeError
from spatial_forcing.probe.dpt import DPTProbe, Recipe, TokenSample, fit_dpt
from spatial_forcing.probe.linear import RIDGES, DepthProbe
from spatial_forcing.probe.moments import StreamedProbe
from spatial_forcing.probe.points import PointProbe
from spatial_forcing.probe.quality import Judge, Tallies
from spatial_forcing.probe.visual import VisualTokens

# Cells of the depth map on the longer side of an image, whatever the grid of tokens: sites of finer and of
# coarser tokens are judged on equal maps.
CELLS = 32
HEADS = ("linear", "dpt")


def sub_grid_of(rows: int, cols: int) -> int:
    """Cells per token side, k, for a map about 32 cells long: 4 for 8 x 8 tokens, 2 for 16 x 16."""
    return max(1, round(CELLS / max(rows, cols)))


@dataclass(frozen=True)
class HeadSettings:
    """Settings of the heads.

    Attributes:
        heads: of :data:`HEADS`.
        seeds: of the DPT head.
        far: depth is in range between 0 and this.
        ridges: strengths for the linear heads.
        recipe: of the DPT head.
        device: where sums are added up and DPT heads are trained.
    """

    heads: tuple[str, ...] = ("linear",)
    seeds: tuple[int, ...] = (0,)
    far: float = FAR
    ridges: tuple[float, ...] = RIDGES
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "cpu"


@dataclass(frozen=True)
class Known:
    """Ground truth of a batch of frames: depth, episodes, positions.

    Attributes:
        maps: depth_Fhw of each camera.
        episode_F, held_F: the episode of each, and whether it chooses the ridge strength.
        positions_FK: 3 coordinates of each position side by side, or None.
    """

    maps: list[Tensor]
    episode_F: Tensor
    held_F: Tensor
    positions_FK: Tensor | None = None


@dataclass
class SourceNumbers:
    """Results of one source of tokens.

    Attributes:
        linear: tallies of the linear head; None if it was not asked for.
        ridge: its strength.
        dpt: tallies of the DPT head of each seed.
        points_nK: by episode, the mean distance in cm of each position.
    """

    linear: Tallies | None = None
    ridge: float | None = None
    dpt: list[Tallies] = field(default_factory=list)
    points_nK: np.ndarray | None = None


class Source:
    """One source of tokens (a site of a policy, or a reference) with its heads, fitted and tested in batches.

    Args:
        settings: how it is read.
        dpt: whether it is read by DPT heads; then it is given the tokens of four layers.
        linear: whether it is read by the linear head.
        points: whether positions are read from it.
    """

    def __init__(self, settings: HeadSettings, *, dpt: bool, linear: bool = True, points: bool = True):
        self.settings = settings
        self._stream: StreamedProbe | None = None
        self._linear: DepthProbe | None = None
        self._sample = TokenSample(settings.recipe) if dpt else None
        self._dpt: list[DPTProbe] = []
        self._points: PointProbe | None = PointProbe() if points else None
        self._wants_linear = linear
        self._judge, self._judges = Judge(), [Judge() for _ in settings.seeds]
        self._distances: dict[int, list[Tensor]] = {}

    def learn(self, layers: Sequence[VisualTokens], known: Known) -> None:
        """Adds training frames; the last of ``layers`` is what the linear head reads."""
        tokens = layers[-1]
        cells_FVhw = self.cells(tokens, known)
        seen = tokens.masked(tokens.valid_FVHW).tokens_FVHWC
        if self._wants_linear:
            if self._stream is None:
                k = sub_grid_of(*tokens.tokens_FVHWC.shape[2:4])
                self._stream = StreamedProbe(k, self.settings.far, self.settings.ridges, self.settings.device)
            self._stream.add(seen, cells_FVhw, known.held_F)
        if self._sample is not None:
            self._sample.add([of.masked(of.valid_FVHW).tokens_FVHWC for of in layers], cells_FVhw)
        if self._points is not None and known.positions_FK is not None:
            self._points.add(tokens, known.positions_FK, known.held_F)

    def fit(self) -> None:
        """Fits every head and frees the memory needed for it."""
        if self._stream is not None:
            self._linear, self._stream = self._stream.fit(), None
        if self._sample is not None:
            k = sub_grid_of(*self._sample.layers[0].shape[2:4])
            how = (self.settings.recipe, self.settings.device)
            self._dpt = [fit_dpt(self._sample, k, how[0], seed, how[1]) for seed in self.settings.seeds]
            self._sample = None
        if self._points is not None and self._points.started:
            self._points.fit()

    def judge(self, layers: Sequence[VisualTokens], known: Known) -> dict[str, Tensor]:
        """Evaluates test frames; returns each head's prediction, depth_FVhw, of DPT the first seed's."""
        tokens = layers[-1]
        cells_FVhw, predicted = self.cells(tokens, known), {}
        if self._linear is not None:
            predicted["linear"] = self._linear.predict(tokens.masked(tokens.valid_FVHW).tokens_FVHWC)
            self._judge.add(predicted["linear"], cells_FVhw, known.episode_F)
        seen = [of.masked(of.valid_FVHW).tokens_FVHWC for of in layers]
        for judge, probe in zip(self._judges, self._dpt, strict=False):
            depth_FVhw = probe(seen)
            predicted.setdefault("dpt", depth_FVhw)
            judge.add(depth_FVhw, cells_FVhw, known.episode_F)
        if self._points is not None and known.positions_FK is not None and self._points.started:
            for row_K, episode in zip(
                self._points.errors_cm(tokens, known.positions_FK), known.episode_F.tolist(), strict=True
            ):
                self._distances.setdefault(episode, []).append(row_K)
        return predicted

    def numbers(self) -> SourceNumbers:
        """The results; raises :class:`ProbeError` if no test cell had depth in range."""
        linear = self._judge.tallies() if self._linear is not None else None
        dpt = (
            [tallies for judge in self._judges if (tallies := judge.tallies()) is not None]
            if self._dpt
            else []
        )
        if (self._linear is not None and linear is None) or (self._dpt and not dpt):
            raise ProbeError(
                f"No cell of the test episodes has depth from 0 to {self.settings.far:g}: is it in metres?"
            )
        points = [torch.stack(self._distances[e]).mean(0) for e in sorted(self._distances)]
        return SourceNumbers(
            linear,
            None if self._linear is None else self._linear.ridge,
            dpt,
            torch.stack(points).numpy() if points else None,
        )

    def cells(self, tokens: VisualTokens, known: Known) -> Tensor:
        """True depth_FVhw of what each token sees, on the cells of evaluation."""
        k = sub_grid_of(*tokens.tokens_FVHWC.shape[2:4])
        return tokens.depth(known.maps, k, self.settings.far)


class OtherFrames:
    """The "shuffled" reference: tokens of frames of other episodes, in place of each frame's own.

    A few frames that went by are kept, at random; of each frame of a batch one of them is taken that is of
    another episode. While there is none, a frame is left out.
    """

    KEPT = 64

    def __init__(self, seed: int = 0):
        self._draw = torch.Generator().manual_seed(seed)
        self._kept: list[tuple[int, list[Tensor]]] = []
        self._seen = 0

    def __call__(
        self, layers: Sequence[VisualTokens], episode_F: Tensor
    ) -> tuple[list[int], list[Tensor]] | None:
        """Indices of the frames that have a replacement, and its tokens_FVHWC for each layer."""
        at, taken = [], []
        for i, episode in enumerate(episode_F.tolist()):
            others = [tokens for kept, tokens in self._kept if kept != episode]
            if others:
                at.append(i)
                taken.append(others[int(torch.randint(len(others), (), generator=self._draw))])
            self._keep(episode, [of.tokens_FVHWC[i].clone() for of in layers])
        return (at, [torch.stack(of) for of in zip(*taken, strict=True)]) if at else None

    def _keep(self, episode: int, tokens: list[Tensor]) -> None:
        self._seen += 1
        if len(self._kept) < self.KEPT:
            self._kept.append((episode, tokens))
        elif (at := int(torch.randint(self._seen, (), generator=self._draw))) < self.KEPT:
            self._kept[at] = (episode, tokens)


def part_of(known: Known, at: Sequence[int]) -> Known:
    """Ground truth of a subset of the frames."""
    chosen = list(at)
    positions = None if known.positions_FK is None else known.positions_FK[chosen]
    return Known([of[chosen] for of in known.maps], known.episode_F[chosen], known.held_F[chosen], positions)
