"""Is a feature cache safe to kill? Extraction is killed (SIGKILL) at random moments and started again.

    python benchmarks/cache_kills.py --trials 100

The finished cache must have the bytes of one that was never disturbed. The small teacher looks at random
images; shards are made small, so that kills fall into all stages. Writes benchmarks/cache_kills.json.
"""

import faulthandler
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro
from record import made_with

from spatial_forcing import load_teacher
from spatial_forcing.cache import shards
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import MANIFEST, Source
from spatial_forcing.cache.write import write_features
from spatial_forcing.processes import end_with_parent

FRAMES = 96
DEADLINE = 600.0  # seconds for one extraction


@dataclass
class Args:
    """Options of the benchmark."""

    trials: int = 100
    """How often extraction is killed and started again."""
    seed: int = 0
    """Of the moments."""
    out: Path = Path(__file__).parent / "cache_kills.json"
    """Where the numbers go."""


def main(args: Args) -> None:
    """Kills, restarts and compares."""
    made = made_with(args)
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    shards.MOST_SHARD_FRAMES = 8
    rng, moments = random.Random(args.seed), []
    teacher = load_teacher("vggt-tiny-sim")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        extract(root / "straight", teacher, None)
        whole = time.perf_counter() - start
        wanted = contents(root / "straight")
        differ = early = 0
        for trial in range(args.trials):
            one = root / str(trial)
            moments.append(rng.uniform(0, whole))
            extract(one, teacher, moments[-1])
            early += not (one / MANIFEST).is_file()
            extract(one, teacher, None)
            differ += contents(one) != wanted
            shutil.rmtree(one)
            print(
                f"\rtrial {trial + 1}: {early} killed before the end, {differ} came out differently", end=""
            )
            sys.stdout.flush()
    result = made | {
        "undisturbed_seconds": round(whole, 2),
        "trials": args.trials,
        "killed_before_the_end": early,
        "came_out_differently": differ,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{args.out}")
    if differ:
        sys.exit(1)


def extract(root: Path, teacher: torch.nn.Module, kill_after: float | None) -> None:
    """Writes a cache in a process of its own, which is killed after some seconds."""
    child = get_context("fork").Process(target=write_cache, args=(root, teacher))
    child.start()
    child.join(DEADLINE if kill_after is None else kill_after)
    child.kill()
    child.join()
    if child.exitcode and kill_after is None:
        sys.exit("the undisturbed extraction failed")


def write_cache(root: Path, teacher: torch.nn.Module) -> None:
    end_with_parent()
    faulthandler.dump_traceback_later(DEADLINE - 5, exit=True)
    source = Source("vggt-tiny-sim", "f", "Apache-2.0", "random images", ("left", "right"), FRAMES)
    write_features(root, source, images, teacher, options=CodecOptions("pca-int8"), batch_size=4)


def images(indices: list[int]) -> torch.Tensor:
    return torch.stack(
        [torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(i)) for i in indices]
    )


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


if __name__ == "__main__":
    main(tyro.cli(Args))
