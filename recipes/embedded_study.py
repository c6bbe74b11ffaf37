"""Does geometry help, or any picture model? Several seeds and teachers on the embedded world.

    python recipes/embedded_study.py --out outputs/study --seeds 0 1 2

Arms of every seed share demonstrations, first weights, batches and evaluation episodes: no forcing, forced
toward each teacher, and the blind and state references. Two cores: about 5 minutes an arm and core. Writes
<out>/study.json; LOG.md has the numbers of our runs. An interrupted study continues.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from spatial_forcing.demo import DemoSettings, collect_demos, demo_arms, stages, teacher_features
from spatial_forcing.provenance import command_line, commit, hardware, versions
from spatial_forcing.stats import mcnemar, wilson
from spatial_forcing.study import Arm, claim, run_arms
from spatial_forcing.train import read_metrics


@dataclass
class Args:
    """Options of the study."""

    out: Path = Path("outputs/study")
    """Folder of the study."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and data order. The demonstrations are those of the first."""
    teachers: tuple[str, ...] = ("vggt-tiny-sim",)
    """Teachers to compare; add vggt-tiny-sim-2d once its weights are there (recipes/vggt_tiny_sim.py)."""
    steps: int = 600
    """Training steps."""
    task: str = "reach-v3"
    """Meta-World task."""
    weight: float = 0.5
    """Weight of the alignment loss."""
    learning_rate: float = 1e-3
    """Of all arms."""
    evaluations: int = 2
    """Checkpoints that are rolled out."""
    eval_episodes: int = 25
    """Rollouts a checkpoint."""
    references: bool = True
    """Train the blind and state references too."""
    baseline: bool = True
    """Train the baseline too."""
    workers: int = 2
    """Arms side by side."""


def main(args: Args) -> None:
    """Runs every arm and writes the numbers."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    claim(out / "settings.json", {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()})
    settings = DemoSettings(
        tasks=(args.task,),
        steps=args.steps,
        weight=args.weight,
        learning_rate=args.learning_rate,
        evaluations=args.evaluations,
        eval_episodes=args.eval_episodes,
        seed=args.seeds[0],
    )
    with stages(Console()) as bars:
        train_root, heldout_root = collect_demos(settings, out, args.workers, bars)
        features = {
            teacher: teacher_features(replace(settings, teacher=teacher), train_root, out, bars)
            for teacher in args.teachers
        }
        arms = study_arms(args, settings, train_root, heldout_root, features)
        row = bars.add_task("training and rollouts", total=args.steps * len(arms))
        run_arms(
            arms,
            out / "runs",
            workers=args.workers,
            watch=lambda progress: bars.update(row, completed=sum(p.step for p in progress.values())),
        )
    results = summarise(arms, out)
    (out / "study.json").write_text(json.dumps(results, indent=1) + "\n")
    for line in results["table"]:
        print(line)
    print(out / "study.json")


def study_arms(
    args: Args, settings: DemoSettings, train: Path, heldout: Path, features: dict[str, Path]
) -> list[Arm]:
    """The arms of every seed."""
    arms: list[Arm] = []
    for seed in args.seeds:
        for i, teacher in enumerate(args.teachers):
            one = replace(settings, seed=seed, teacher=teacher)
            baseline, forced, blind, state = demo_arms(one, train, heldout, features[teacher])
            if i == 0:
                arms += [baseline] * args.baseline + [blind, state] * args.references
                arms = [replace(a, name=f"{a.name}-s{seed}") if "-s" not in a.name else a for a in arms]
            arms.append(replace(forced, name=f"{teacher}-s{seed}", label=f"forced toward {teacher}"))
    return arms


def portable(value: Any, out: Path) -> Any:
    """The same data with paths inside ``out`` made relative to it."""
    if isinstance(value, dict):
        return {key: portable(one, out) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable(one, out) for one in value]
    return value.replace(f"{out}/", "") if isinstance(value, str) else value


def summarise(arms: list[Arm], out: Path) -> dict[str, Any]:
    """Every evaluation of every arm, and McNemar's test against the baseline of the same seed."""
    found: dict[str, list[dict]] = {}
    for arm in arms:
        folder = out / "runs" / arm.name
        found[arm.name] = [json.loads(p.read_text()) for p in sorted((folder / "eval").glob("[0-9]*.json"))]
    table, rows = [], {}
    for arm in arms:
        last = found[arm.name][-1]
        success = [bool(e["success"]) for e in last["episodes"]]
        rate = wilson(sum(success), len(success))
        closest = 100 * sum(e["closest_distance"] for e in last["episodes"]) / len(success)
        errors = {e["step"]: round(e["heldout_error"], 4) for e in found[arm.name]}
        line = (
            f"{arm.name:<24} {rate.successes:>3}/{rate.episodes} ({rate.low:.0%} to {rate.high:.0%})"
            f"  closest {closest:5.1f} cm  held-out error {errors}"
        )
        base = found.get(f"baseline-s{arm.seed}")
        if base and not arm.name.startswith("baseline"):
            other = [bool(e["success"]) for e in base[-1]["episodes"]]
            line += f"  p = {mcnemar(other, success).p_value:.3g} against the baseline"
        table.append(line)
        rows[arm.name] = {
            "successes": rate.successes,
            "episodes": rate.episodes,
            "closest_cm": round(closest, 2),
            "heldout_error": errors,
            "final_cosine": read_metrics(out / "runs" / arm.name / "train")[-1].get("cosine"),
        }
    return {
        "command": command_line(),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "arms": [portable(asdict(arm), out) for arm in arms],
        "rows": rows,
        "table": table,
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
