"""Images of an episode packed into a few arrays, for a file that waits to become part of a data set.

T frames of an episode, V views, C = 3 channels, H rows, W columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spatial_forcing.sim.dataset import encode_png, image_histogram


def packed(rgb_TVHW3: np.ndarray) -> dict[str, np.ndarray]:
    """PNG files of an episode's images, one after the other, with their sizes and histograms.

    Returns:
        Arrays of which those of several episodes can be joined along their first axis.
    """
    length, views = rgb_TVHW3.shape[:2]
    pngs = [encode_png(rgb_HW3) for rgb_VHW3 in rgb_TVHW3 for rgb_HW3 in rgb_VHW3]
    return {
        "length": np.array([length]),
        "png": np.frombuffer(b"".join(pngs), dtype=np.uint8),
        "png_size_TV": np.array([len(png) for png in pngs]).reshape(length, views),
        "histogram_VC256": np.stack([[image_histogram(rgb_TVHW3[:, v]) for v in range(views)]]),
    }


def unpacked(
    tensors: Mapping[str, np.ndarray], views: Sequence[str]
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The episodes of a file, one by one.

    Args:
        tensors: of ``packed``, joined.
        views: names of the cameras.

    Yields:
        Which rows of other columns are an episode's; its PNG files and histograms as ``write_dataset`` takes
        them.
    """
    frame = byte = 0
    for length, histogram_VC256 in zip(tensors["length"], tensors["histogram_VC256"], strict=True):
        rows = slice(frame, frame + length)
        ends_TV = byte + tensors["png_size_TV"][rows].ravel().cumsum().reshape(length, len(views))
        starts_TV = ends_TV - tensors["png_size_TV"][rows]
        episode: dict[str, Any] = {"png": {}, "histograms": {}}
        for v, view in enumerate(views):
            spans = zip(starts_TV[:, v], ends_TV[:, v], strict=True)
            episode["png"][f"observation.images.{view}"] = [tensors["png"][a:b].tobytes() for a, b in spans]
            episode["histograms"][f"observation.images.{view}"] = histogram_VC256[v]
        yield rows, episode
        frame, byte = frame + length, int(ends_TV[-1, -1])
