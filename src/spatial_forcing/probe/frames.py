"""Frames of a LeRobotDataset for a probe: train/test split by episode, evenly spread frames, batches.

Shapes: B batch, H W pixels.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.linear import VALIDATION_EVERY

Phase = Literal["train", "test"]
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Train/test split of a probe by episode.

    Raises:
        ProbeError: an episode is in both, there is no test episode, or fewer than two training episodes.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]

    def __post_init__(self) -> None:
        shared = sorted(set(self.train) & set(self.test))
        if shared:
            raise ProbeError(f"Episodes {shared} are in both training and test. Test on other ones.")
        if not self.test or len(self.train) < 2:
            raise ProbeError(
                "A probe needs at least three episodes: two to fit on, of which one chooses the ridge "
                f"strength, and one to test on. There are {len(self.train)} and {len(self.test)}."
            )

    @property
    def held(self) -> tuple[int, ...]:
        """The training episodes that choose the ridge strength: every fifth, at least one, never all."""
        every = min(VALIDATION_EVERY, len(self.train))
        return tuple(sorted(self.train)[every - 1 :: every])


def split_episodes(total: int, test: float | Sequence[int]) -> Split:
    """Splits a data set of ``total`` episodes into training and test episodes.

    Args:
        test: the test episodes; or their fraction, between 0 and 1, drawn with a fixed seed, so that
            it is the same for every policy and every time.

    Raises:
        ProbeError: a fraction out of range, an episode that does not exist, or too few episodes.
    """
    if isinstance(test, Sequence):
        missing = sorted({one for one in test if not 0 <= one < total})
        if missing:
            raise ProbeError(
                f"The data set has no episodes {missing} to test on: it has {total}, 0 to {total - 1}."
            )
        chosen = set(test)
    else:
        if not 0 < test < 1:
            raise ProbeError(
                f"The test episodes are a fraction between 0 and 1, or a list of them; got {test}."
            )
        draw = torch.Generator().manual_seed(SPLIT_SEED)
        chosen = set(torch.randperm(total, generator=draw)[: max(1, round(test * total))].tolist())
    return Split(tuple(e for e in range(total) if e not in chosen), tuple(sorted(chosen)))


class ProbeFrames:
    """Training and test frames of a probe: evenly subsampled from a data set.

    Args:
        dataset: a LeRobotDataset of all episodes.
        split: training and test episodes.
        max_frames: maximum number of frames, of both kinds together, in proportion; all if None.
        batch_size: frames per batch.
    """

    def __init__(self, dataset: Any, split: Split, max_frames: int | None = None, batch_size: int = 32):
        self.dataset, self.split, self.batch_size = dataset, split, batch_size
        rows = dataset.meta.episodes
        self.spans = {
            e: range(int(rows[e]["dataset_from_index"]), int(rows[e]["dataset_to_index"]))
            for e in range(len(rows))
        }
        every: dict[Phase, list[int]] = {
            "train": [i for e in split.train for i in self.spans[e]],
            "test": [i for e in split.test for i in self.spans[e]],
        }
        total = sum(map(len, every.values()))
        share = 1.0 if max_frames is None else min(1.0, max_frames / total)
        self.indices = {phase: _spread(indices, share) for phase, indices in every.items()}

    def count(self, phase: Phase) -> int:
        """Number of frames of a phase."""
        return len(self.indices[phase])

    def episodes(self, phase: Phase) -> list[int]:
        """The episodes of a phase with a frame that is looked at: of many episodes, some may have none."""
        episodes = self.split.train if phase == "train" else self.split.test
        starts = [span.start for span in self.spans.values()]
        looked_at = {bisect_right(starts, index) - 1 for index in self.indices[phase]}
        return [episode for episode in episodes if episode in looked_at]

    def batches(self, phase: Phase) -> Iterator[dict[str, Any]]:
        """Raw batches of a phase, in the order of the data set."""
        frames = Subset(self.dataset, self.indices[phase])
        yield from DataLoader(frames, batch_size=self.batch_size, shuffle=False, num_workers=0)

    def held_of(self, batch: dict[str, Any]) -> Tensor:
        """Mask (B,) of the frames that choose the ridge strength."""
        return torch.isin(batch["episode_index"], torch.tensor(self.split.held))


def latest(image: Tensor) -> Tensor:
    """The image image_B3HW of a camera; the last one of a history of observations."""
    return image[:, -1] if image.ndim == 5 else image


def _spread(indices: Sequence[int], share: float) -> list[int]:
    count = max(1, round(share * len(indices)))
    return [indices[i] for i in torch.linspace(0, len(indices) - 1, count).round().long().tolist()]
