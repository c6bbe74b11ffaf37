"""Faster reading of action chunks: without decoding the images of every frame in a chunk.

Of a data set that stores images (not videos) LeRobot 0.6 reads the rows of a chunk whole and then keeps the
action column: it decodes the images of every frame of the chunk to throw them away. That is most of the time
it takes to load a frame. A :class:`ChunkReader` reads from the rows of a chunk the asked column alone. Frames
are the same bit for bit.

Of a data set of one's own, :func:`read_chunks_alone` gives that data set such a reader. Data sets that
LeRobot opens itself, in its trainer, need ``patches.read_chunks_without_images``.
"""

import copy
from typing import Any

from lerobot.datasets.dataset_reader import DatasetReader


class ChunkReader(DatasetReader):
    """LeRobot's data set reader, with only the wanted column read for action chunks.

    A class in a module of its own, so that worker processes that are started anew (spawned) find it when the
    data set is handed to them.
    """

    _columns: tuple[Any, dict[str, Any]] | None = None  # of a data set: itself, and each of its columns alone

    def _query_hf_dataset(self, query_indices: dict[str, list[int]]) -> dict[str, Any]:
        if not self._meta.image_keys:
            return super()._query_hf_dataset(query_indices)
        chunks: dict[str, Any] = {}
        for key, frames in query_indices.items():
            narrow = copy.copy(self)  # threads may read the same data set
            narrow.hf_dataset = self._alone(key)
            chunks |= DatasetReader._query_hf_dataset(narrow, {key: frames})
        return chunks

    def _alone(self, key: str) -> Any:
        """The data set with one column only; all of it if it has no such column (videos are files)."""
        whole: Any = self.hf_dataset
        if key not in whole.column_names:
            return whole
        if self._columns is None or self._columns[0] is not whole:
            self._columns = (whole, {})
        columns = self._columns[1]
        if key not in columns:
            columns[key] = whole.select_columns([key])
        return columns[key]


def read_chunks_alone(dataset: Any) -> Any:
    """Makes a LeRobotDataset read action chunks without decoding the images beside them; returns it.

    A data set whose reader is of another class than LeRobot's own is left alone.
    """
    if type(dataset.reader) is DatasetReader:
        dataset.reader.__class__ = ChunkReader
    return dataset
