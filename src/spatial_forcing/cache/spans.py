"""Spans of frames: the part of a data set that a cache covers, where that is not all of it.

A span (start, stop) is the frames start to stop - 1 of the data set. A cache stores the frames of its spans
one after the other, as rows.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from spatial_forcing.errors import SpatialForcingError

Span = tuple[int, int]


class Spans:
    """Mapping between frames of a data set and rows of a cache.

    Args:
        frames: rows of the cache.
        spans: ascending, without overlap; None if row i is frame i.
    """

    def __init__(self, frames: int, spans: Sequence[Span] | None = None):
        self.spans = [(0, frames)] if spans is None else list(spans)
        self._starts = [start for start, _ in self.spans]
        *self._rows, self.frames = accumulate((stop - start for start, stop in self.spans), initial=0)

    def row_of(self, frame: int) -> int | None:
        """The row of a frame of the data set; None if it is in no span."""
        at = bisect_right(self._starts, frame) - 1
        if at < 0 or frame >= self.spans[at][1]:
            return None
        return self._rows[at] + frame - self._starts[at]

    def frame_of(self, row: int) -> int:
        """The frame of the data set that a row is of."""
        at = bisect_right(self._rows, row) - 1
        return self._starts[at] + row - self._rows[at]


def spans_of_episodes(meta: Any, episodes: Sequence[int]) -> list[Span]:
    """The spans of some episodes of a LeRobotDataset, those next to each other as one.

    Args:
        meta: the data set's metadata.
        episodes: in any order.

    Raises:
        SpatialForcingError: it has no such episode, one is named twice, or none is.
    """
    if not episodes or len(set(episodes)) < len(episodes):
        raise SpatialForcingError(
            f"Name at least one episode, and none twice; got {', '.join(map(str, episodes)) or 'none'}."
        )
    unknown = [episode for episode in episodes if not 0 <= episode < meta.total_episodes]
    if unknown:
        raise SpatialForcingError(
            f"The data set has the episodes 0 to {meta.total_episodes - 1}; there is no episode {unknown[0]}."
        )
    spans: list[Span] = []
    for episode in sorted(episodes):
        row = meta.episodes[episode]
        start, stop = int(row["dataset_from_index"]), int(row["dataset_to_index"])
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return spans
