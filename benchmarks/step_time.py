"""What Spatial Forcing costs a training step: stored features, diagnostics, the teacher online.

    make bench    # python benchmarks/step_time.py --batch 16 --rounds 20

The kinds of step take turns in one process, so that whatever else the machine does hits all alike;
reported are median and quartiles of the step times, and of the ratios to the plain step of the same round;
of diagnostics also the mean cost where one step in 50 has them, the default, as a ratio to stored features.
Writes benchmarks/step_time.json.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from record import made_with, quartiles

from spatial_forcing import SpatialForcing, host_of, load_teacher
from spatial_forcing.hosts.tiny import TinyVLA, hash_words


@dataclass
class Args:
    """Options of the benchmark."""

    batch: int = 16
    """Frames a step."""
    rounds: int = 20
    """How often each kind of step is timed, after two rounds that are not."""
    teacher: str = "vggt-tiny-sim"
    """Teacher that runs online."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("benchmarks/step_time.json")
    """Where the numbers go."""


def main(args: Args) -> None:
    """Times all kinds of step and writes the numbers."""
    made = made_with(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps = build_steps(args)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 2:
                times[name].append(time.perf_counter() - start)
    result = made | {
        "step_seconds": {name: quartiles(values) for name, values in times.items()},
        "ratio_to_plain": {
            name: quartiles([a / b for a, b in zip(values, times["plain"], strict=True)])
            for name, values in times.items()
        },
        "diagnosed_one_in_50_to_stored": quartiles(
            [1 + (a / b - 1) / 50 for a, b in zip(times["diagnosed"], times["stored features"], strict=True)]
        ),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name in steps:
        seconds, ratio = result["step_seconds"][name], result["ratio_to_plain"][name]
        print(
            f"{name:<16}{seconds['median']:.3f} s a step   {ratio['median']:.2f} x plain"
            f"   (quartiles {ratio['low']:.2f} to {ratio['high']:.2f})"
        )
    mean = result["diagnosed_one_in_50_to_stored"]
    print(f"diagnosed one step in 50: {mean['median']} x stored ({mean['low']} to {mean['high']})")
    print(args.out)


def build_steps(args: Args) -> dict[str, Callable[[], None]]:
    """The kinds of step, on the same host and batch."""
    vla = TinyVLA()
    teacher = load_teacher(args.teacher)
    images, state = torch.rand(args.batch, 2, 3, 112, 112), torch.randn(args.batch, 4)
    actions = torch.randn(args.batch, 8, 4)
    words = hash_words(["move the hand to the ball"] * args.batch, vla.vocabulary, vla.max_words)
    sf = SpatialForcing(host_of(vla), teacher)
    optimizer = torch.optim.AdamW([*vla.parameters(), *sf.parameters()], lr=1e-3)
    features = teacher(images)

    def step(target: object, diagnose: bool = False) -> None:
        with sf.watch():
            loss = (vla(images, words, state) - actions).abs().mean()
        if target is not None:
            align = sf(target, diagnose=diagnose)
            if diagnose:
                sf.pull(loss, align)
            loss = loss + align
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "plain": lambda: step(None),
        "stored features": lambda: step(features),
        "diagnosed": lambda: step(features, diagnose=True),
        "teacher online": lambda: step(images),
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
