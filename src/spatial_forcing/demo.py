"""The main job in minutes: demonstrations, teacher features, policies from the same start with and without
forcing and toward the controls, rollouts, probe, report.

Every stage is the ordinary part of the package, run on the embedded world; every stage keeps what it
finished, so that a second run reuses it and an interrupted one continues.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from spatial_forcing.console import duration, stages, timed
from spatial_forcing.demo_settings import (
    DAMAGED,
    EVAL_SEED,
    DemoSettings,
    check_settings,
    features_folder,
    finished_settings,
    hold,
    take_folder,
)
from spatial_forcing.study import Arm, ArmProgress, run_arms

if TYPE_CHECKING:
    from spatial_forcing.results import Probe

# Targets that know nothing of the frame: the demo's control arms, for people.
CONTROL_LABELS = {
    "shuffled": "toward the features of another frame",
    "place": "toward the place of each token alone",
}


def run_demo(
    settings: DemoSettings, out: Path, *, workers: int = 2, command: str = "", console: Console | None = None
) -> Path:
    """Runs the demo in ``out`` and returns the report's path.

    Raises:
        SpatialForcingError: ``out`` holds a run with other settings, the disk is too full, or a stage
            failed; nothing that was finished is lost.
    """
    console = console or Console()
    out = out.resolve()
    check_settings(settings, workers)
    take_folder(out, settings)
    if (out / "results.json").is_file():
        from spatial_forcing.report import write_report
        from spatial_forcing.results import Results

        report = write_report(Results.read(out / "results.json", DAMAGED), out)
        console.print(f"This run is finished; nothing was computed again. Report: [bold]{report}[/]")
        return report
    lock = hold(out)
    console.print(
        f"Spatial Forcing demo in [bold]{out}[/]: about {duration(settings.seconds(workers))} on two cores; "
        "what is there is reused."
    )
    timings: dict[str, float] = {}
    with stages(console) as bars:
        with timed(timings, "demonstrations"):
            train_root, heldout_root = collect_demos(settings, out, workers, bars)
        with timed(timings, "teacher features"):
            features = teacher_features(settings, train_root, out, bars)
        with timed(timings, "training and rollouts"):
            arms = demo_arms(settings, train_root, heldout_root, features)
            train_arms(arms, out / "runs", workers, bars)
        with timed(timings, "depth probe"):
            probe = probe_arms(settings, arms, train_root, heldout_root, out, bars)
        with timed(timings, "report"):
            bar = bars.add_task("report", total=1)
            report = write_demo_report(settings, arms, probe, timings, out, command)
            bars.update(bar, completed=1)
    lock.close()
    console.print(f"Report: [bold]{report}[/]")
    return report


# ---- stages
# ----------------------------------------------------------------------------------------------------------


def collect_demos(settings: DemoSettings, out: Path, workers: int, bars: Progress) -> tuple[Path, Path]:
    """Scripted experts' demonstrations, to train on and held out: two LeRobotDatasets."""
    from spatial_forcing.sim.collect import collect

    spec, heldout = settings.demonstrations()
    roots = []
    for name, one in (("demonstrations", spec), ("held-out demonstrations", heldout)):
        bar = bars.add_task(name, total=one.episodes * len(one.tasks))
        root = out / name.replace(" ", "-")
        roots.append(collect(one, root, workers=workers, progress=lambda n, bar=bar: bars.advance(bar, n)))
        bars.update(bar, completed=one.episodes * len(one.tasks))
    return roots[0], roots[1]


def teacher_features(
    settings: DemoSettings, dataset: Path, out: Path, bars: Progress, fidelity: float = 0.99
) -> Path:
    """The teacher's features of the training frames, compressed to that mean cosine."""
    from spatial_forcing.cache.codec import CodecOptions
    from spatial_forcing.cache.extract import Extraction, extract
    from spatial_forcing.cache.write import Watch
    from spatial_forcing.teachers import load_teacher

    spec, _ = settings.demonstrations()
    frames = len(spec.tasks) * spec.episodes * spec.longest
    bar = bars.add_task(f"features of {settings.teacher}", total=frames)
    teacher = load_teacher(settings.teacher, device=settings.device)
    root = features_folder(settings, out)
    extract(
        dataset,
        teacher,
        settings.teacher,
        root,
        Extraction(codec=CodecOptions("pca-int8", fidelity=fidelity)),
        watch=Watch(advance=lambda n: bars.advance(bar, n)),
    )
    bars.update(bar, completed=frames)
    return root


def demo_arms(settings: DemoSettings, dataset: Path, heldout: Path, features: Path) -> list[Arm]:
    """Baseline and forced (the same code with weight 0 and weight w), forced toward the two controls, and the
    two reference lines."""
    common = Arm(
        name="",
        label="",
        role="arm",
        dataset=str(dataset),
        heldout=str(heldout),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        # New images only when the policy plans again; the ones in between nobody looks at.
        env=tuple({"task": task, "look_every": settings.chunk} for task in settings.tasks),
        episodes=settings.eval_episodes,
        eval_seed=EVAL_SEED,
        evaluations=settings.evaluations,
        policy={
            "optimizer_lr": settings.learning_rate,
            "decay_lr": settings.learning_rate / 10,
            "chunk_size": settings.chunk,
            "n_action_steps": settings.chunk,
        },
        device=settings.device,
    )
    forcing = {
        "teacher": settings.teacher,
        "cache": str(features),
        "standardize": settings.standardize,
        "loss_weight": settings.loss_weight,
    }
    blind = common.policy | {"use_images": False}
    state = blind | {"use_environment_state": True}
    reference = replace(common, role="reference", evaluations=1, videos=0)
    return [
        replace(common, name="baseline", label="without forcing", forcing=forcing | {"loss_weight": 0.0}),
        replace(common, name="forced", label="Spatial Forcing", forcing=forcing),
        *(
            replace(common, name=name, label=label, role="control", forcing=forcing | {"control": name})
            for name, label in CONTROL_LABELS.items()
        ),
        replace(reference, name="blind", label="blind: sees no images", policy=blind),
        replace(reference, name="state", label="state: knows the goal", policy=state),
    ]


def train_arms(arms: list[Arm], root: Path, workers: int, bars: Progress) -> None:
    """Trains and evaluates all arms; an arm's bar counts training steps and shares for evaluations."""
    totals = {arm.name: arm.steps + arm.evaluations * arm.save_every // 4 for arm in arms}
    rows = {arm.name: bars.add_task(f"policy: {arm.name}", total=totals[arm.name]) for arm in arms}
    shares = {arm.name: arm.save_every // 4 for arm in arms}

    def watch(progress: dict[str, ArmProgress]) -> None:
        for name, one in progress.items():
            bars.update(rows[name], completed=one.step + one.evaluated * shares[name])

    run_arms(arms, root, workers=workers, watch=watch)
    for name, row in rows.items():
        bars.update(row, completed=totals[name])


def probe_arms(
    settings: DemoSettings, arms: list[Arm], train_root: Path, heldout_root: Path, out: Path, bars: Progress
) -> "Probe":
    """Fits the depth probe on the tapped tokens of every arm, an untrained policy and the teacher."""
    from spatial_forcing.evidence import probe_policies

    bar = bars.add_task("depth probe", total=1)
    result = probe_policies(settings.teacher, arms, train_root, heldout_root, out, settings.device)
    bars.update(bar, completed=1)
    return result


def write_demo_report(
    settings: DemoSettings,
    arms: list[Arm],
    probe: "Probe",
    timings: dict[str, float],
    out: Path,
    command: str,
) -> Path:
    """Gathers every number into results.json and draws the report from it."""
    from spatial_forcing.evidence import gather_results
    from spatial_forcing.report import write_report

    return write_report(gather_results(settings, arms, probe, timings, out, command), out)


def probe_demo(out: Path, device: str, console: Console) -> None:
    """Fits the probe on a finished demo's policies again and prints its table.

    Raises:
        SpatialForcingError: ``out`` holds no finished demo.
    """
    from spatial_forcing.evidence import probe_policies
    from spatial_forcing.report.probe_table import probe_table

    settings, roots = finished_settings(out)
    arms = demo_arms(settings, *roots)
    console.print(probe_table(probe_policies(settings.teacher, arms, roots[0], roots[1], out, device)))
