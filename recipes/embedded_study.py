r"""Does the teacher's content help, or any target, or more tuning? Equal-budget arms on the embedded world.

    python recipes/embedded_study.py --out outputs/study --teachers vggt-tiny-sim vggt-tiny-sim-2d
    python recipes/embedded_study.py --out outputs/long --steps 3000 --evaluations 10
    python recipes/embedded_study.py --out outputs/drawer --task drawer-open-v3 --start expert-warmup
    python recipes/embedded_study.py --out outputs/tune --seeds 100 --learning-rates 5e-4 1e-3 2e-3 \
        --weights 0.5 2
    python recipes/embedded_study.py --out outputs/targets --weights 2 --targets tokens coefficients

Arms of a seed share demonstrations, first weights, batches and evaluation episodes. Every learning rate is
given to every arm, so that no arm is tuned more than another. Every study has the two controls, targets that
know nothing of the frame: what a forced arm gains over no forcing and a control shares, the teacher's content
did not bring. Two cores: about 5 minutes an arm and core for 600 steps. Writes <out>/study.json; LOG.md has
the numbers of our runs. An interrupted study continues.
"""

import json
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from spatial_forcing.bootstrap import bootstrap_difference
from spatial_forcing.console import stages
from spatial_forcing.control import CONTROLS
from spatial_forcing.demo import collect_demos, demo_arms, teacher_features
from spatial_forcing.demo_settings import DemoSettings
from spatial_forcing.files import claim
from spatial_forcing.provenance import made_with
from spatial_forcing.results import Evaluation
from spatial_forcing.stats import mcnemar, wilson
from spatial_forcing.study import Arm, evaluations_of, run_arms
from spatial_forcing.train import read_metrics

# Evaluations by arm, for each seed.
Groups = dict[str, list[list[Evaluation]]]


@dataclass
class Args:
    """Options of the study."""

    out: Path = Path("outputs/study")
    """Folder of the study."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and data order. All share the demonstrations of --demo-seed."""
    demo_seed: int = 0
    """Seed of the demonstrations."""
    task: str = DemoSettings.tasks[0]
    """Meta-World task."""
    start: str = DemoSettings.start
    """How demonstrations begin; expert-warmup covers whole episodes of tasks with several stages."""
    episodes: int = DemoSettings.episodes
    """Demonstrations of 6 frames."""
    teachers: tuple[str, ...] = ("vggt-tiny-sim",)
    """Teachers to compare: vggt-tiny-sim, vggt-tiny-sim-2d, pixels, ..."""
    weights: tuple[float, ...] = (0.5,)
    """Weights of the alignment loss, each an arm of its own for each teacher."""
    targets: tuple[Literal["tokens", "pca", "raw-pca"], ...] = ("tokens",)
    """What is aligned to: standardised tokens, PCA coefficients in their geometry, or in that of raw ones."""
    fidelity: float = 0.99
    """Mean cosine that stored features keep: 8 coefficients a token at 0.99, 32 at 0.999."""
    learning_rates: tuple[float, ...] = (DemoSettings.learning_rate,)
    """Given to every arm, the baseline included."""
    steps: int = DemoSettings.steps
    """Training steps."""
    evaluations: int = 2
    """Checkpoints that are rolled out."""
    eval_episodes: int = DemoSettings.eval_episodes
    """Rollouts a checkpoint."""
    baseline: bool = True
    """Train the baseline."""
    forced: bool = True
    """Train the forced arms."""
    controls: bool = True
    """Train the controls: toward the first teacher's features of another frame, and the place alone."""
    references: bool = False
    """Train the blind and state references, at the first learning rate."""
    workers: int = 2
    """Arms side by side."""


def main(args: Args) -> None:
    """Runs every arm and writes the numbers."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    made = made_with()
    options = {k: v for k, v in asdict(args).items() if k not in ("out", "workers")}
    claim(out / "settings.json", options, what="study")
    settings = DemoSettings(
        tasks=(args.task,),
        start=args.start,
        episodes=args.episodes,
        steps=args.steps,
        evaluations=args.evaluations,
        eval_episodes=args.eval_episodes,
        seed=args.demo_seed,
    )
    with stages(Console()) as bars:
        train_root, heldout_root = collect_demos(settings, out, args.workers, bars)
        features = {
            teacher: teacher_features(
                replace(settings, teacher=teacher), train_root, out, bars, args.fidelity
            )
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
    results = made | summarise(arms, out)
    (out / "study.json").write_text(json.dumps(results, indent=1) + "\n")
    for line in results["table"]:
        print(line)
    print(out / "study.json")


def study_arms(
    args: Args, settings: DemoSettings, train: Path, heldout: Path, features: dict[str, Path]
) -> list[Arm]:
    """The arms of every seed and learning rate; names carry what is varied."""
    arms: dict[str, Arm] = {}

    def add(arm: Arm, *, tag: str, **named: float) -> None:
        varied = [f"{key}{value:g}" for key, value in named.items() if len(getattr(args, OPTION[key])) > 1]
        name = "-".join([tag, *varied, f"s{arm.seed}"])
        arms.setdefault(name, replace(arm, name=name))

    for seed in args.seeds:
        for lr in args.learning_rates:
            for teacher in args.teachers:
                for w in args.weights:
                    one = replace(settings, seed=seed, teacher=teacher, learning_rate=lr, loss_weight=w)
                    all_arms = {arm.name: arm for arm in demo_arms(one, train, heldout, features[teacher])}
                    if args.baseline:
                        add(all_arms["baseline"], tag="baseline", lr=lr)
                    if args.references and lr == args.learning_rates[0]:
                        add(all_arms["blind"], tag="blind")
                        add(all_arms["state"], tag="state")
                    if args.forced:
                        for arm in forced_arms(args, all_arms["forced"], teacher):
                            add(arm, tag=arm.name, lr=lr, w=w)
                    if args.controls and teacher == args.teachers[0]:
                        for name in CONTROLS:
                            add(all_arms[name], tag=name, lr=lr, w=w)
    return list(arms.values())


# Forcing options of what --targets names.
TARGETS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "pca": {"pca_targets": True},
    "raw-pca": {"pca_targets": True, "standardize": False},
}


def forced_arms(args: Args, forced: Arm, teacher: str) -> list[Arm]:
    """One forced arm for each target, named after teacher and target."""
    assert forced.forcing is not None
    return [
        replace(
            forced,
            name=teacher if target == "tokens" else f"{teacher}-{target}",
            label=f"forced toward {teacher}'s {target}",
            forcing=forced.forcing | TARGETS[target],
        )
        for target in args.targets
    ]


OPTION = {"lr": "learning_rates", "w": "weights"}


def portable(value: Any, out: Path) -> Any:
    """The same data with paths inside ``out`` made relative to it."""
    if isinstance(value, dict):
        return {key: portable(one, out) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable(one, out) for one in value]
    return value.replace(f"{out}/", "") if isinstance(value, str) else value


def summarise(arms: list[Arm], out: Path) -> dict[str, Any]:
    """Every evaluation of every arm, and the arms pooled over seeds and compared in pairs."""
    found = {arm.name: evaluations_of(out / "runs" / arm.name) for arm in arms}
    rows = {
        arm.name: {
            "successes": {e.step: sum(x.success for x in e.episodes) for e in found[arm.name]},
            "episodes": len(found[arm.name][-1].episodes),
            "closest_cm": {e.step: closest_cm(e) for e in found[arm.name]},
            "heldout_error": {e.step: round(e.heldout_error, 4) for e in found[arm.name]},
            "final_cosine": read_metrics(out / "runs" / arm.name / "train")[-1].get("cosine"),
        }
        for arm in arms
    }
    # Arms that differ in nothing but the seed.
    groups: Groups = {}
    for arm in arms:
        groups.setdefault(arm.name.removesuffix(f"-s{arm.seed}"), []).append(found[arm.name])
    steps = sorted(set.intersection(*({e.step for e in of} for by_seed in groups.values() for of in by_seed)))
    table = [line for step in steps for line in step_lines(groups, step)]
    return {
        "arms": [portable(asdict(arm), out) for arm in arms],
        "rows": rows,
        "compared": [pair for step in steps for pair in pairs_at(groups, step)],
        "table": table,
    }


def at_step(by_seed: list[list[Evaluation]], step: int) -> tuple[list[float], list[bool]]:
    """Held-out errors by seed, and the successes of all seeds' episodes in order, at one step."""
    evaluations = [next(e for e in of if e.step == step) for of in by_seed]
    return (
        [e.heldout_error for e in evaluations],
        [x.success for e in evaluations for x in e.episodes],
    )


def step_lines(groups: Groups, step: int) -> list[str]:
    """A line for each group of arms: its mean error and its successes over all seeds."""
    lines = [f"after {step} steps:"]
    for name, by_seed in groups.items():
        errors, success = at_step(by_seed, step)
        rate = wilson(sum(success), len(success))
        listed = " ".join(f"{e:.3f}" for e in errors)
        lines.append(
            f"  {name:<24} {rate.successes:>3}/{rate.episodes} ({rate.low:.0%} to {rate.high:.0%})"
            f"  held-out error {sum(errors) / len(errors):.3f} ({listed})"
        )
    return lines


def pairs_at(groups: Groups, step: int) -> list[dict[str, Any]]:
    """Every two groups with equally many seeds: difference of errors over seeds, McNemar over all pairs of
    episodes. The seeds share their episodes, so the pairs are not quite independent."""
    pairs = []
    for a, b in combinations(groups, 2):
        if len(groups[a]) == len(groups[b]):
            (errors_a, success_a), (errors_b, success_b) = (at_step(groups[x], step) for x in (a, b))
            difference = bootstrap_difference(errors_a, errors_b)
            pairs.append(
                {"step": step, "a": a, "b": b}
                | {"error_b_minus_a": asdict(difference), "success": asdict(mcnemar(success_a, success_b))}
            )
    return pairs


def closest_cm(evaluation: Evaluation) -> float:
    """Mean closest distance to the goal over the episodes of an evaluation, centimetres."""
    distances = [100 * e.closest_distance for e in evaluation.episodes]
    return round(sum(distances) / len(distances), 2)


if __name__ == "__main__":
    main(tyro.cli(Args))
