"""Depth read linearly from teachers' features on held-out episodes: the probe of policies, for teachers.

Shapes: F frames, V views, h w rows and columns of tokens, C channels, H W pixels of a depth map.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from spatial_forcing.probe import Frames, VisualTokens, run_probe
from spatial_forcing.probe.compare import MEAN
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import recorded
from spatial_forcing.probe.frames import split_episodes
from spatial_forcing.probe.pseudo import pseudo
from spatial_forcing.probe.reading import sub_grid_of
from spatial_forcing.probe.run import LEAST_PIXELS
from spatial_forcing.results import ProbeRow
from spatial_forcing.structure.rank import BATCH, Sample
from spatial_forcing.structure.records import DepthRead, Score

TEST = 0.25


@dataclass(frozen=True)
class SampleDepth:
    """Depth of the frames of a sample, and which of their episodes are held out.

    Attributes:
        said: source, unit and episodes, for the results.
        train, test: depth and episodes of the frames.
        test_F: bool, which frames are held out.
    """

    said: DepthRead
    train: Frames
    test: Frames
    test_F: Tensor

    def absrel(self, tokens_FVhwC: Tensor) -> Score:
        """AbsRel of a linear head on these tokens, on the held-out episodes, with an interval over these."""
        return self._scores(tokens_FVhwC)["tokens"]

    def of_grid(self, grid: tuple[int, int]) -> DepthRead:
        """What was read, with the AbsRel of the mean depth of each position, which sees nothing."""
        nothing = torch.zeros(len(self.test_F), len(self.train.depth), *grid, 1)
        return self.said.model_copy(update={"mean": self._scores(nothing)[MEAN]})

    def _scores(self, tokens_FVhwC: Tensor) -> dict[str, Score]:
        train, test = (VisualTokens.whole(tokens_FVhwC[at]) for at in (~self.test_F, self.test_F))
        k = sub_grid_of(*tokens_FVhwC.shape[2:4])
        found = run_probe({"tokens": (train, test)}, self.train, self.test, sub_grid=k)
        return {row.name: _score(row) for row in found.rows}


def depth_of(dataset: Any, sample: Sample, source: str | None, device: str) -> SampleDepth | DepthRead:
    """The depth of a sample's frames; without a source only why there is none, if there is none.

    Args:
        dataset: opened, all episodes.
        source: "recorded", "pseudo:<model>", or None for recorded depth where there is some.

    Raises:
        ProbeError: a source was named and gives no depth of these frames.
        UnknownNameError: no such model.
    """
    try:
        return _read(dataset, sample, source or "recorded", device)
    except ProbeError as error:
        if source is not None:
            raise
        return DepthRead(absent=str(error))


def _read(dataset: Any, sample: Sample, source: str, device: str) -> SampleDepth:
    kind, _, model = source.partition(":")
    sampled = sorted(set(sample.episodes))
    split = split_episodes(len(sampled), TEST)
    depths = recorded(dataset, sample.cameras) if kind == "recorded" else pseudo(model, device)
    frames = DataLoader(Subset(dataset, list(sample.indices)), batch_size=BATCH)
    maps = zip(*(depths.maps(batch, sample.cameras, LEAST_PIXELS) for batch in frames), strict=True)
    depth = [torch.cat(of) for of in maps]
    episode_F = torch.tensor(sample.episodes)
    test_F = torch.isin(episode_F, torch.tensor([sampled[at] for at in split.test]))
    train, test = (Frames([of[at] for of in depth], episode_F[at]) for at in (~test_F, test_F))
    said = DepthRead(
        name=depths.name, unit=depths.unit, train_episodes=len(split.train), test_episodes=len(split.test)
    )
    return SampleDepth(said, train, test, test_F)


def _score(row: ProbeRow) -> Score:
    low, high = (row.intervals or {}).get("absrel", (None, None))
    return Score(value=row.absrel, low=low, high=high)
