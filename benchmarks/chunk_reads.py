"""How fast a data set that stores images is read, as LeRobot does and without the images beside chunks.

    spatial-forcing collect --out demos
    python benchmarks/chunk_reads.py --dataset demos              # chunks of 8, as the built-in VLA
    python benchmarks/chunk_reads.py --dataset demos --chunk 50   # as SmolVLA

Both ways read the same frames in the same random order through torch's loader, taking turns; frames are
compared bit for bit first. A data set opened before the switch keeps LeRobot's reader, one opened after it
has ours. Writes benchmarks/chunk_reads_<chunk>.json.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from record import made_with, quartiles
from torch.utils.data import DataLoader, Subset

from spatial_forcing.chunks import read_chunks_alone
from spatial_forcing.datasets import open_dataset


@dataclass
class Args:
    """Options of the benchmark."""

    dataset: Path
    """Folder of a LeRobotDataset that stores images."""
    chunk: int = 8
    """Actions of a chunk."""
    frames: int = 400
    """Frames read a round."""
    batch: int = 32
    """Frames per batch."""
    workers: int = 0
    """Of the loader, spawned as LeRobot does; a round then includes their start."""
    rounds: int = 8
    """How often each way is timed, in turns."""
    seed: int = 0
    """Of the order of the frames."""
    out: Path = Path(__file__).parent
    """Folder for the numbers."""


def opened(args: Args) -> LeRobotDataset:
    """The data set with action chunks, as LeRobot's trainer opens it."""
    return open_dataset(args.dataset, lambda meta: {"action": [i / meta.fps for i in range(args.chunk)]})


def seconds(dataset: LeRobotDataset, order: list[int], args: Args) -> float:
    """Time to read the frames of ``order`` once."""
    loader = DataLoader(
        Subset(dataset, order),
        batch_size=args.batch,
        num_workers=args.workers,
        multiprocessing_context="spawn" if args.workers else None,
    )
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Frames are equal bit for bit."""
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def main(args: Args) -> None:
    """Times both ways in turns and writes the numbers."""
    made = made_with(args)
    torch.set_num_threads(1)
    ways = {"lerobot": opened(args)}
    ways["without images"] = read_chunks_alone(opened(args))
    random = torch.Generator().manual_seed(args.seed)
    count = len(ways["lerobot"])
    order = [torch.randperm(count, generator=random).tolist()[: args.frames] for _ in range(args.rounds)]
    for i in order[0][:50]:
        assert_same(ways["lerobot"][i], ways["without images"][i])
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number, indices in enumerate(order):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            taken[way].append(seconds(ways[way], indices, args))
    read = min(args.frames, count)
    shapes = ways["lerobot"].meta.features
    result = {
        "pictures": {key: shapes[key]["shape"] for key in ways["lerobot"].meta.image_keys},
        "frames_per_second": {way: quartiles([read / s for s in times]) for way, times in taken.items()},
        "times_as_fast": quartiles([a / b for a, b in zip(*taken.values(), strict=True)]),
    }
    path = args.out / f"chunk_reads_{args.chunk}.json"
    path.write_text(json.dumps(made | result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args))
