"""Action chunks without the pictures beside them.

LeRobot 0.6 reads the rows of a chunk whole and then keeps the action column: of a data set that stores
pictures (not videos), it decodes the pictures of every frame of the chunk to throw them away. That is most of
the time it takes to load a frame.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def chunks_without_pictures() -> Iterator[None]:
    """While open, data sets read from a chunk's rows only the columns asked for; the numbers are the same."""
    from lerobot.datasets.dataset_reader import DatasetReader

    plain = DatasetReader._query_hf_dataset

    def query(reader: Any, query_indices: dict[str, list[int]]) -> dict[str, Any]:
        whole = reader.hf_dataset
        columns = [key for key in query_indices if key in whole.column_names]
        kept = getattr(reader, "_chunk_columns", None)
        if kept is None or kept[0] is not whole or kept[1] != columns:
            kept = reader._chunk_columns = (whole, columns, whole.select_columns(columns))
        reader.hf_dataset = kept[2]
        try:
            return plain(reader, query_indices)
        finally:
            reader.hf_dataset = whole

    DatasetReader._query_hf_dataset = query  # type: ignore[method-assign]
    try:
        yield
    finally:
        DatasetReader._query_hf_dataset = plain  # type: ignore[method-assign]
