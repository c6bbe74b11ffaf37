r"""Tunes the built-in policy without forcing for the middle of training: held-out loss at 300 of 600 steps.

    python recipes/tune_early.py --dataset outputs/reach-points --out outputs/tune-early

The gain that docs/results.md reports is in the middle of training, and the policy's options were chosen by
its error at the end. Perhaps another learning rate or warm-up leaves the plateau as early as forcing does. So
one option after another is tried, over seeds that no comparison uses, each beside the options of all studies
(the first line); no policy here has forcing. The loss is the policy's own training loss on the last tenth of
the demonstrations. Writes docs/results/tuning/early.json; it took 41 minutes on two cores that also did other
things. An interrupted search continues.
"""

import json
import shutil
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from rich.console import Console

from spatial_forcing import provenance
from spatial_forcing.compare.launch import take_share
from spatial_forcing.console import stages
from spatial_forcing.files import write_json
from spatial_forcing.guard import guarded
from spatial_forcing.processes import run_jobs
from spatial_forcing.train import METRICS

STEPS, MIDDLE = 600, 300
# As in all studies (recipes/studies.sh). LeRobot scales a schedule of 2000 steps to 600: 50 steps of warm-up
# are 15.
STUDIES = {"optimizer_lr": 1e-3, "warmup_steps": 50, "position_std": 1.0, "optimizer_weight_decay": 1e-4}
TRIED: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("optimizer_lr", (7e-4, 1.4e-3, 2e-3)),
    ("warmup_steps", (0, 200, 400)),
    ("position_std", (0.7, 1.4)),
    ("optimizer_weight_decay", (1e-2,)),
)


@dataclass
class Args:
    """Options of the search."""

    dataset: Path
    out: Path
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds of weights and data order; comparisons use others."""
    workers: int = 2
    results: Path = Path(__file__).resolve().parents[1] / "docs" / "results" / "tuning" / "early.json"


@dataclass(frozen=True)
class Run:
    """A training of one candidate with one seed."""

    options: tuple[tuple[str, float], ...]
    seed: int
    dataset: Path
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / "-".join([*(f"{name}{value:g}" for name, value in self.options), f"s{self.seed}"])

    @property
    def flags(self) -> list[str]:
        """The flags of the training; the rate decays to a tenth, as everywhere."""
        policy = dict(self.options)
        policy["decay_lr"] = policy["optimizer_lr"] / 10
        return [
            "--policy.type=tiny",
            *(f"--policy.{name}={value:g}" for name, value in policy.items()),
            *("--policy.chunk_size=4", "--policy.n_action_steps=4", "--policy.device=cpu"),
            *("--policy.push_to_hub=false", "--batch_size=16", "--num_workers=0", f"--steps={STEPS}"),
            *(f"--seed={self.seed}", "--save_checkpoint=false", "--log_freq=50"),
            *(f"--dataset.repo_id=local/{self.dataset.name}", f"--dataset.root={self.dataset}"),
            *("--dataset.eval_split=0.1", "--eval_steps=100", f"--output_dir={self.folder}"),
        ]

    def losses(self) -> dict[int, float]:
        """Held-out loss by step; empty before the run is finished."""
        path = self.folder / METRICS
        if not path.is_file():
            return {}
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
        return found if STEPS in found else {}


def train(run: Run) -> None:
    """Trains one policy, with what it prints in a file beside its folder."""
    from spatial_forcing.flags import read_config
    from spatial_forcing.output import output_to
    from spatial_forcing.train import train_policy

    shutil.rmtree(run.folder, ignore_errors=True)  # of a search that was interrupted
    with output_to(run.out / f"{run.folder.name}.txt"):
        train_policy(read_config(run.flags))


def candidates() -> list[dict[str, float]]:
    """The options of all studies, then one of them changed."""
    return [STUDIES, *(STUDIES | {name: value} for name, values in TRIED for value in values)]


def main(args: Args) -> None:
    """Trains every candidate with every seed, and prints and writes their losses."""
    made, out = provenance.made_with(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    runs = [
        [Run(tuple(one.items()), seed, args.dataset.resolve(), out) for seed in args.seeds]
        for one in candidates()
    ]
    waiting = deque(run for of in runs for run in of if not run.losses())
    with stages(Console()) as bars:
        bar = bars.add_task("policies", total=sum(map(len, runs)))

        def done() -> None:
            bars.update(bar, completed=sum(bool(run.losses()) for of in runs for run in of))

        if waiting:
            setup = partial(take_share, out, args.workers, 0)
            run_jobs(train, [waiting] * args.workers, setup=setup, poll=done, every=5.0)
    lines: list[dict[str, Any]] = []
    for of in runs:
        changed = {name: value for name, value in of[0].options if STUDIES[name] != value}
        by_step = {step: [run.losses()[step] for run in of] for step in (MIDDLE, STEPS)}
        lines.append({"changed": changed, "losses": by_step})
        said = ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "as in all studies"
        print(f"{said}: " + ", ".join(f"{mean(by):.3f} at {step}" for step, by in by_step.items()))
    asked = {"seeds": args.seeds, "dataset": args.dataset.name, "options": STUDIES}
    write_json(args.results, made | asked | {"candidates": lines})


if __name__ == "__main__":
    guarded(lambda: main(tyro.cli(Args)), lambda: "Finished policies are kept; the same command goes on.")
