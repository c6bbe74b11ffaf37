"""How much faster two processes write a feature cache than one, sharing it without a coordinator.

    spatial-forcing collect --out demos
    python benchmarks/cache_speed.py --dataset demos

A process each, a core each (decoding included), the embedded teacher, every byte written. The kinds take
turns, so that whatever else the machine does hits both; a round's ratio is the time of one process over that
of two. "Writing" counts from the first shard to the finished manifest. "All" counts from the start of the
processes, with LeRobot's imports, opening the data set and the search for the codec, which every process
does: on a data set of seconds that is noticed, on one of hours it is not. Writes benchmarks/cache_speed.json.
"""

import faulthandler
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro
from record import made_with, quartiles

from spatial_forcing import load_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.cache.layout import MANIFEST
from spatial_forcing.cache.write import Share, Watch
from spatial_forcing.processes import end_with_parent

DEADLINE = 3600.0  # seconds for one extraction


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
    root, start, context = folder / "features", time.perf_counter(), get_context("fork")
    children = [
        context.Process(target=write_share, args=(args, teacher, folder, root, Share(rank, processes)))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()  # which ends by itself at the deadline
    end = time.perf_counter()
    if any(child.exitcode for child in children) or not (root / MANIFEST).is_file():
        sys.exit("an extraction failed")
    first_shard = min(float((folder / str(rank)).read_text()) for rank in range(processes))
    return end - start, end - first_shard


def write_share(args: Args, teacher: torch.nn.Module, folder: Path, root: Path, share: Share) -> None:
    """One process's part, on a core of its own; notes when the first shard was begun."""
    end_with_parent()
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[share.rank % len(cores)]})
    extract(
        args.dataset,
        teacher,
        args.teacher,
        root,
        Extraction(codec=CodecOptions("pca-int8"), decoders=1),
        share=share,
        watch=Watch(announce=lambda plan: (folder / str(share.rank)).write_text(str(time.perf_counter()))),
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
