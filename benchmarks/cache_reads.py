"""Where to read stored features: in the training process, or in the data loader's workers?

    python benchmarks/cache_reads.py                    # VGGT-shaped features, batch 32
    python benchmarks/cache_reads.py --grid 8 8 --width 224 --components 12

A cache of random features in the shape of a teacher's, and a stand-in for a training step: matrix products
that keep the process busy for a while, on images that workers load. The kinds of step take turns, 20 steps
each: without features, with stored features read by the training process, with stored features read by the
workers and handed over. What a kind costs is its time over that without features. Decoding is the same matrix
product either way, done where the policy is; its time on this CPU is given by itself. Writes
benchmarks/cache_reads.json.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from record import made_with, quartiles
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import Source
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.write import write_features
from spatial_forcing.features import Features

VIEWS = 2


@dataclass
class Args:
    """Options of the benchmark."""

    frames: int = 512
    """Frames in the cache."""
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of the teacher's grid."""
    width: int = 2048
    """Channels of the teacher."""
    components: int = 128
    """Numbers stored a token."""
    batch: int = 32
    """Frames a step."""
    workers: int = 1
    """Of the data loader."""
    step_seconds: float = 0.5
    """How long the stand-in for a training step takes, about."""
    rounds: int = 5
    """How often each kind is timed, in turns."""
    out: Path = Path(__file__).parent / "cache_reads.json"
    """Where the numbers go."""


class Frames(Dataset):
    """Images to load, and with a store the stored features beside them."""

    def __init__(self, count: int, store: FeatureStore | None = None):
        self.count, self.store = count, store

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        item: dict[str, Any] = {"index": i, "images": torch.full((VIEWS, 3, 224, 224), i / self.count)}
        if self.store is not None:
            item |= {name: rows[0] for name, rows in self.store.read_stored([i]).items()}
        return item


def main(args: Args) -> None:
    """Times the kinds in turns and writes the numbers."""
    made = made_with(args)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(random_cache(Path(folder) / "features", args))
        step = busy_step(args.step_seconds)
        loaders = {"without": None, "training process": None, "workers": store}
        streams = {name: batches(Frames(args.frames, where), args) for name, where in loaders.items()}
        readers: dict[str, Callable[[dict[str, Any]], object]] = {
            "without": lambda batch: None,
            "training process": lambda batch: store.read_stored(batch["index"].tolist()),
            "workers": lambda batch: (batch["codes"], batch["scale"]),
        }
        times: dict[str, list[float]] = {name: [] for name in streams}
        for round_ in range(args.rounds + 1):
            for name, stream in streams.items():
                start = time.perf_counter()
                for _ in range(20):
                    readers[name](next(stream))
                    step()
                if round_:  # the first warms up
                    times[name].append((time.perf_counter() - start) / 20)
        chosen = [torch.randint(args.frames, (args.batch,)).tolist() for _ in range(20)]
        reading = [timed(lambda i=i: store.read_stored(i)) for i in chosen]
        stored = store.read_stored(chosen[0])
        decoding = [timed(lambda: store.decoded(stored)) for _ in range(20)]
        stored_bytes = store.codec.bytes_per_token * VIEWS * args.grid[0] * args.grid[1]
    result = made | {
        "stored_kib_per_frame": round(stored_bytes / 1024, 1),
        "read_seconds_per_batch": quartiles(reading),
        "decode_seconds_per_batch": quartiles(decoding),
        "step_seconds": {name: quartiles(values) for name, values in times.items()},
        "ratio_to_without": {
            name: quartiles([a / b for a, b in zip(values, times["without"], strict=True)])
            for name, values in times.items()
        },
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, ratio in result["ratio_to_without"].items():
        print(f"{name:<18}{ratio['median']:.3f} x   (quartiles {ratio['low']:.3f} to {ratio['high']:.3f})")
    for what in ("read", "decode"):
        print(f"{what}: {1000 * result[f'{what}_seconds_per_batch']['median']:.1f} ms per batch")
    print(args.out)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def busy_step(seconds: float) -> Callable[[], None]:
    """Matrix products that take about so long on one thread."""
    a = torch.randn(768, 768)
    one = min(timed(lambda: a @ a) for _ in range(20))

    def step() -> None:
        for _ in range(max(1, round(seconds / one))):
            a @ a

    return step


def batches(frames: Frames, args: Args) -> Iterator[dict[str, Any]]:
    """Batches without end, from workers that stay."""
    loader = DataLoader(
        frames, args.batch, shuffle=True, drop_last=True, num_workers=args.workers, persistent_workers=True
    )
    while True:
        yield from loader


def random_cache(root: Path, args: Args) -> Path:
    """A feature cache of random numbers."""
    cameras = tuple(f"view{v}" for v in range(VIEWS))
    source = Source("random", "0" * 16, "none", "0" * 16, cameras, args.frames)

    def look(images_BV3HW: Tensor) -> Features:
        tokens = torch.randn(len(images_BV3HW), VIEWS, *args.grid, args.width)
        return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool))

    def images(indices: list[int]) -> Tensor:
        return torch.zeros(len(indices), VIEWS, 3, 8, 8)

    options = CodecOptions("pca-int8", components=args.components)
    return write_features(root, source, images, look, options=options, batch_size=16)


if __name__ == "__main__":
    main(tyro.cli(Args))
