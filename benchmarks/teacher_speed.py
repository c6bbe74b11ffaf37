"""Frames per second of the teacher, against a straightforward implementation and against the hardware.

    python benchmarks/teacher_speed.py --device cuda            # VGGT-1B's architecture, random weights
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

from spatial_forcing.teachers import load_teacher
from spatial_forcing.teachers.vggt import VGGT, VGGTConfig
from spatial_forcing.teachers.vggt_teacher import VGGTTeacher


@dataclass
class Args:
    """Options of the benchmark."""

    model: Literal["vggt-1b", "vggt-tiny-sim"] = "vggt-1b"
    """Architecture; vggt-1b gets random weights."""
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


def architecture(args: Args) -> VGGT:
    """The aggregator in float32 on the device."""
    if args.model == "vggt-1b":
        with torch.device(args.device):
            return VGGT(VGGTConfig(), ("aggregator",)).eval().requires_grad_(False)
    teacher: Any = load_teacher(args.model)
    model = VGGT(teacher.aggregator.config, ("aggregator",))
    model.aggregator.load_state_dict(teacher.aggregator.state_dict())
    return model.to(args.device).eval().requires_grad_(False)


@torch.no_grad()
def measured(args: Args, model: VGGT, dtype: torch.dtype, side: int, peak: float) -> dict[str, Any]:
    """Both ways at one resolution."""
    teacher = VGGTTeacher(
        copy.deepcopy(model),
        name=args.model,
        licence="Apache-2.0",
        resolution=side,
        dtype=dtype,
        batch_size=args.batch,
    )
    images = torch.rand(args.frames, args.views, 3, side, side, device=args.device)

    def straightforward() -> None:
        for frame in images:
            all_layers(model, frame[None], args.device, dtype)

    ways: dict[str, Callable[[], object]] = {
        "straightforward": straightforward,
        "ours": lambda: teacher(images),
    }
    with FlopCounterMode(display=False) as counter:
        ours = teacher(images[:1]).tokens_BVHWC
    seconds = in_turns(ways, args)
    rates = {name: [args.frames / s for s in values] for name, values in seconds.items()}
    exact = patches(model.aggregator(images[:1], (-1,))[0], model)
    plain = patches(all_layers(model, images[:1], args.device, dtype)[-1], model)
    per_second = counter.get_total_flops() * quartiles(rates["ours"])["median"]
    return {
        "resolution": side,
        "frames_per_second": {name: quartiles(values) for name, values in rates.items()},
        "ratio": quartiles([a / b for a, b in zip(rates["ours"], rates["straightforward"], strict=True)]),
        "tflop_per_frame": round(counter.get_total_flops() / 1e12, 4),
        "part_of_peak": round(per_second / peak, 4),
        "error": {
            "ours": ((ours.flatten(2, 3) - exact).norm() / exact.norm()).item(),
            "straightforward": ((plain - exact).norm() / exact.norm()).item(),
        },
    }


def all_layers(model: VGGT, images_BV3HW: Tensor, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Every layer's tokens, as public training code gets them."""
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return model.aggregator(images_BV3HW, range(model.config.depth))


def patches(tokens_BVNC: Tensor, model: VGGT) -> Tensor:
    return tokens_BVNC[:, :, model.aggregator.special :].float()


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
