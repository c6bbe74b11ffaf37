"""How much faster two processes write a feature cache than one, sharing it without a coordinator.

    spatial-forcing demos --out demos
    python benchmarks/cache_speed.py --dataset demos

A process each, a core each (decoding included), the embedded teacher, every byte written. The kinds take
turns, so that whatever else the machine does hits both; a round's ratio is the time of one process over that
of two. "Writing" counts from the first shard to the finished manifest. "All" counts from the start of the
processes, with LeRobot's imports, opening the data set and the search for the codec, which every process
does: on a data set of seconds that is noticed, on one of hours it is not. Writes benchmarks/cache_speed.json.
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
    writing: dict[int, list[float]] = {1: [], args.processes: []}
    whole: dict[int, list[float]] = {1: [], args.processes: []}
    for _ in range(args.rounds):
        for processes in whole:
            with tempfile.TemporaryDirectory() as folder:
                seconds = timed_extraction(args, teacher, Path(folder), processes)
            whole[processes].append(seconds[0])
            writing[processes].append(seconds[1])
    result = made
    for name, times in (("all", whole), ("writing", writing)):
        pairs = zip(times[1], times[args.processes], strict=True)
        result |= {
            f"seconds, {name}": {str(count): quartiles(seconds) for count, seconds in times.items()},
            f"speed-up, {name}": quartiles([one / several for one, several in pairs]),
        }
        ratio = result[f"speed-up, {name}"]
        print(
            f"{name}: {args.processes} processes are {ratio['median']:.2f} x as fast as one"
            f" (quartiles {ratio['low']:.2f} to {ratio['high']:.2f})"
        )
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(args.out)


def timed_extraction(
    args: Args, teacher: torch.nn.Module, folder: Path, processes: int
) -> tuple[float, float]:
    """Seconds until the cache is finished: from the start, and from the first shard."""
    root, start, children = folder / "features", time.perf_counter(), []
    cores = sorted(os.sched_getaffinity(0))
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
            extract(
                args.dataset,
                teacher,
                args.teacher,
                root,
                options=CodecOptions("pca-int8"),
                share=Share(rank, processes),
                decoders=1,
                announce=lambda plan, rank=rank: (folder / str(rank)).write_text(str(time.perf_counter())),
            )
            os._exit(0)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    end = time.perf_counter()
    if failed or not (root / MANIFEST).is_file():
        sys.exit("an extraction failed")
    first_shard = min(float((folder / str(rank)).read_text()) for rank in range(processes))
    return end - start, end - first_shard


if __name__ == "__main__":
    main(tyro.cli(Args))
