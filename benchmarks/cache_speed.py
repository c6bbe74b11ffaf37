"""How much faster two processes write a feature cache than one, sharing it without a coordinator.

    spatial-forcing demos --out demos
    python benchmarks/cache_speed.py --dataset demos

A process each, one thread each, the embedded teacher, every byte written. The kinds take turns, so that
whatever else the machine does hits both; a round's ratio is the time of one process over that of two. Time
counts from the start of the processes' work (imports done, nothing computed) to the finished manifest, with
the search for the codec, which is not shared. Writes benchmarks/cache_speed.json.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from record import made_with, quartiles

from spatial_forcing import load_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import extract
from spatial_forcing.cache.layout import MANIFEST
from spatial_forcing.cache.write import Share


@dataclass
class Args:
    """Options of the benchmark."""

    dataset: Path
    """A LeRobotDataset's folder."""
    teacher: str = "vggt-tiny-sim"
    """A registered teacher."""
    processes: int = 2
    """Processes to compare with one."""
    rounds: int = 5
    """How often each kind is timed, in turns."""
    out: Path = Path(__file__).parent / "cache_speed.json"
    """Where the numbers go."""


def main(args: Args) -> None:
    """Times both kinds in turns and writes the numbers."""
    made = made_with(args)
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    teacher = load_teacher(args.teacher)
    times: dict[int, list[float]] = {1: [], args.processes: []}
    for _ in range(args.rounds):
        for processes, seconds in times.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(timed_extraction(args, teacher, Path(folder) / "features", processes))
    alone, together = times[1], times[args.processes]
    result = made | {
        "seconds": {str(processes): quartiles(seconds) for processes, seconds in times.items()},
        "speed_up": quartiles([a / b for a, b in zip(alone, together, strict=True)]),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    ratio = result["speed_up"]
    print(f"{args.processes} processes: {ratio['median']:.2f} x as fast as one")
    print(f"(quartiles {ratio['low']:.2f} to {ratio['high']:.2f})\n{args.out}")


def timed_extraction(args: Args, teacher: torch.nn.Module, root: Path, processes: int) -> float:
    """Seconds until the cache is finished."""
    start, children = time.perf_counter(), []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            extract(
                args.dataset,
                teacher,
                args.teacher,
                root,
                options=CodecOptions("pca-int8"),
                share=Share(rank, processes),
                decoders=1,
            )
            os._exit(0)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    seconds = time.perf_counter() - start
    if failed or not (root / MANIFEST).is_file():
        sys.exit("an extraction failed")
    return seconds


if __name__ == "__main__":
    main(tyro.cli(Args))
