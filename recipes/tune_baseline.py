r"""Tunes the built-in policy by its own held-out error, before any forced arm is run.

    python recipes/tune_baseline.py --out outputs/tune --results recipes/results/tune_baseline.json

A gain over a baseline that lacks something shows only that it lacked it. So one option after another of the
policy's architecture and optimiser is searched, over several seeds, with demonstrations and seeds that no
comparison uses; each round keeps the value with the lowest mean error. Two cores, nothing beside it: about
half an hour. An interrupted search continues.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from rich.console import Console

from spatial_forcing.console import stages
from spatial_forcing.demo import collect_demos, demo_arms
from spatial_forcing.demo_settings import DemoSettings
from spatial_forcing.provenance import made_with
from spatial_forcing.study import Arm, evaluations_of, run_arms

# Searched in this order; the first value of each is where the search starts.
ROUNDS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("position_std", (0.02, 0.2, 0.5, 1.0, 2.0)),
    ("optimizer_lr", (1e-3, 5e-4, 2e-3)),
)


@dataclass
class Args:
    """Options of the search."""

    out: Path = Path("outputs/tune")
    """Folder of the runs."""
    results: Path | None = None
    """File for the numbers; <out>/tune.json if None."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds of weights and data order; comparisons use others."""
    demo_seed: int = 7
    """Seed of the demonstrations; comparisons use others."""
    steps: int = DemoSettings.steps
    """Training steps."""
    workers: int = 2
    """Policies side by side."""


def main(args: Args) -> None:
    """Searches round by round and writes every error."""
    out = args.out.resolve()
    made = made_with()
    settings = DemoSettings(steps=args.steps, seed=args.demo_seed, evaluations=1, eval_episodes=0)
    best: dict[str, Any] = {name: values[0] for name, values in ROUNDS}
    rounds: list[dict[str, Any]] = []
    with stages(Console()) as bars:
        train, heldout = collect_demos(settings, out, args.workers, bars)
        plain = demo_arms(settings, train, heldout, out)[0]
        for name, values in ROUNDS:
            candidates = [best | {name: value} for value in values]
            arms = {
                arm.name: arm
                for options in candidates
                for seed in args.seeds
                for arm in [candidate_arm(plain, options, seed)]
            }
            row = bars.add_task(name, total=args.steps * len(arms))
            run_arms(
                list(arms.values()),
                out / "runs",
                workers=args.workers,
                watch=lambda progress, row=row: bars.update(
                    row, completed=sum(p.step for p in progress.values())
                ),
            )
            errors = [
                [heldout_of(out / "runs" / candidate_arm(plain, options, seed).name) for seed in args.seeds]
                for options in candidates
            ]
            best = candidates[min(range(len(values)), key=lambda i: mean(errors[i]))]
            tried = [
                {"value": value, "errors": by_seed, "mean": round(mean(by_seed), 4)}
                for value, by_seed in zip(values, errors, strict=True)
            ]
            rounds.append({"option": name, "tried": tried, "kept": best[name]})
            print(json.dumps(rounds[-1]))
    options = {k: v for k, v in asdict(args).items() if k not in ("out", "results", "workers")}
    path = args.results or out / "tune.json"
    path.write_text(json.dumps(made | options | {"rounds": rounds, "best": best}, indent=1) + "\n")
    print(path)


def candidate_arm(plain: Arm, options: dict[str, Any], seed: int) -> Arm:
    """A policy with these options, named after them. The learning rate decays to a tenth, as everywhere."""
    policy = plain.policy | options | {"decay_lr": options["optimizer_lr"] / 10}
    name = "-".join([*(f"{key}{value:g}" for key, value in options.items()), f"s{seed}"])
    return replace(plain, name=name, seed=seed, forcing=None, policy=policy)


def heldout_of(folder: Path) -> float:
    """Held-out action error of an arm's last checkpoint."""
    return round(evaluations_of(folder)[-1].heldout_error, 4)


if __name__ == "__main__":
    main(tyro.cli(Args))
