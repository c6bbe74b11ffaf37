"""Frames per second of a teacher, against a straightforward implementation and against the hardware.

    python benchmarks/teacher_speed.py --device cuda            # VGGT-1B's architecture, random weights
    python benchmarks/teacher_speed.py --device cuda --model da3-large
    python benchmarks/teacher_speed.py --device cpu --model vggt-tiny-sim --resolutions 112 --batch 8

The straightforward way, as in public training code: weights in float32 under autocast, one frame (all its
views) at a time, the tokens of every layer kept. Ours: matrix products in --dtype, a batch of frames, one
layer. The two take turns. Operations are counted by torch, the hardware's peak is a large matrix product in
--dtype measured in the same run. Errors are relative, against float32 throughout. Speed does not depend on
the values of weights. Writes benchmarks/teacher_speed_<model>_<device>.json.
"""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from record import made_with, quartiles
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spatial_forcing.teachers import RECORDS, FrozenTeacher, load_teacher
from spatial_forcing.teachers.da3 import DA3
from spatial_forcing.teachers.da3_teacher import DA3Teacher
from spatial_forcing.teachers.mapanything import MapAnything
from spatial_forcing.teachers.mapanything_teacher import MapAnythingTeacher
from spatial_forcing.teachers.model import Model
from spatial_forcing.teachers.vggt import VGGT
from spatial_forcing.teachers.vggt_teacher import VGGTTeacher

# By the beginning of a teacher's name: model, the part of it that gives features, and the class of teachers.
ARCHITECTURES: dict[str, tuple[Any, str, Any]] = {
    "vggt": (VGGT, "aggregator", VGGTTeacher),
    "da3": (DA3, "backbone", DA3Teacher),
    "mapanything": (MapAnything, "trunk", MapAnythingTeacher),
}


@dataclass
class Args:
    """Options of the benchmark."""

    model: Literal[
        "vggt-1b", "vggt-tiny-sim", "da3-small", "da3-base", "da3-large", "da3-giant", "mapanything"
    ] = "vggt-1b"
    """Architecture; those that do not come with this package get random weights."""
    device: str = "cuda"
    """cuda or cpu."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of our matrix products; bfloat16 on a GPU, float32 on a CPU if None."""
    resolutions: tuple[int, ...] = (224, 518)
    """Sides of the images, pixels."""
    views: int = 2
    """Images a frame."""
    batch: int = 32
    """Frames at a time in ours."""
    frames: int = 64
    """Frames a round."""
    rounds: int = 5
    """How often each way is timed, in turns, after one round that is not."""
    out: Path | None = None
    """Where the numbers go."""


def main(args: Args) -> None:
    """Times both ways at every resolution and writes the numbers."""
    made = made_with(args)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
    model = architecture(args)
    peak = matmul_peak(args.device, dtype)
    rows = [measured(args, model, dtype, side, peak) for side in args.resolutions]
    result = made | {
        "dtype": str(dtype),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "matmul_peak_tflops": round(peak / 1e12, 3),
        "rows": rows,
    }
    out = args.out or Path(__file__).parent / f"teacher_speed_{args.model}_{args.device}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['resolution']} px: {row['frames_per_second']['ours']['median']:.1f} frames/s, "
            f"{row['ratio']['median']:.2f} x straightforward, {row['part_of_peak']:.0%} of the matmul peak, "
            f"error {row['error']['ours']:.1e} (straightforward {row['error']['straightforward']:.1e})"
        )
    print(out)


def architecture(args: Args) -> Model:
    """The part of the model that gives features, in float32 on the device."""
    model_class, part, _ = ARCHITECTURES[args.model.partition("-")[0]]
    config = RECORDS[args.model].config
    if config is not None:
        with torch.device(args.device):
            return model_class(config, (part,)).eval().requires_grad_(False)
    teacher: Any = load_teacher(args.model)
    model = VGGT(teacher.aggregator.config, ("aggregator",))
    model.aggregator.load_state_dict(teacher.aggregator.state_dict())
    return model.to(args.device).eval().requires_grad_(False)


def teacher_of(args: Args, model: Model, side: int, dtype: torch.dtype, batch: int) -> FrozenTeacher:
    """A teacher with a copy of the model."""
    said = {"name": args.model, "licence": "Apache-2.0", "multi_view": True, "resolution": side}
    kind = ARCHITECTURES[args.model.partition("-")[0]][2]
    return kind(copy.deepcopy(model), dtype=dtype, batch_size=batch, **said)


@torch.no_grad()
def measured(args: Args, model: Model, dtype: torch.dtype, side: int, peak: float) -> dict[str, Any]:
    """Both ways at one resolution."""
    teacher = teacher_of(args, model, side, dtype, args.batch)
    plain = teacher_of(args, model, side, torch.float32, 1)
    images = torch.rand(args.frames, args.views, 3, side, side, device=args.device)

    def straightforward() -> None:
        for frame in images:
            all_layers(plain, frame[None], args.device, dtype)

    ways: dict[str, Callable[[], object]] = {
        "straightforward": straightforward,
        "ours": lambda: teacher(images),
    }
    with FlopCounterMode(display=False) as counter:
        ours = teacher(images[:1]).tokens_BVHWC
    seconds = in_turns(ways, args)
    rates = {name: [args.frames / s for s in values] for name, values in seconds.items()}
    exact = plain(images[:1]).tokens_BVHWC
    theirs = all_layers(plain, images[:1], args.device, dtype)
    per_second = counter.get_total_flops() * quartiles(rates["ours"])["median"]
    return {
        "resolution": side,
        "frames_per_second": {name: quartiles(values) for name, values in rates.items()},
        "ratio": quartiles([a / b for a, b in zip(rates["ours"], rates["straightforward"], strict=True)]),
        "tflop_per_frame": round(counter.get_total_flops() / 1e12, 4),
        "part_of_peak": round(per_second / peak, 4),
        "error": {
            "ours": ((ours - exact).norm() / exact.norm()).item(),
            "straightforward": ((theirs - exact).norm() / exact.norm()).item(),
        },
    }


def all_layers(teacher: FrozenTeacher, images_BV3HW: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """The last layer's tokens after every layer's were kept, as public training code gets them."""
    layers = tuple(range(teacher.layers or 1))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return teacher.layers_of(images_BV3HW, layers)[layers[-1]].tokens_BVHWC.float()


def in_turns(ways: dict[str, Callable[[], object]], args: Args) -> dict[str, list[float]]:
    """Seconds a round by way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(args.rounds + 1):
        for name, work in ways.items():
            spent = timed(work, args.device)
            if round_:
                seconds[name].append(spent)
    return seconds


def timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of many."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, device) for _ in range(20))


if __name__ == "__main__":
    main(tyro.cli(Args))
