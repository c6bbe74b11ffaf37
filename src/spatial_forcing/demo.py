"""The demo: a whole comparison in the embedded world within minutes, demonstrations included.

Scripted experts' demonstrations, then what ``spatial-forcing compare`` does with the built-in policy: with
and without forcing, toward the controls, and two references; rollouts, probe, report. Every stage keeps what
it finished, so that a second run reuses it and an interrupted one continues.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from spatial_forcing.compare.arm import Arm, arms_of
from spatial_forcing.compare.command import make
from spatial_forcing.compare.launch import Launch
from spatial_forcing.compare.plan import Comparison, Measures, planned
from spatial_forcing.console import duration, stages, timed
from spatial_forcing.demo_settings import (
    DAMAGED,
    DEMONSTRATIONS,
    DemoSettings,
    check_settings,
    hold,
    take_folder,
)

TITLE = "Spatial Forcing demo"
# Enough for a linear map of 128 channels: twice as many change no AbsRel by 0.001.
PROBE_FRAMES = 960


def run_demo(settings: DemoSettings, out: Path, *, workers: int = 2, console: Console | None = None) -> Path:
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
    spent: dict[str, float] = {}
    with stages(console) as bars, timed(spent, "demonstrations"):
        collect_demos(settings, out, workers, bars)
    comparison = comparison_of(settings, out)
    report = make(comparison, out, Launch(workers), console, title=TITLE, claimed=True, spent=spent)
    lock.close()
    return report


def collect_demos(settings: DemoSettings, out: Path, workers: int, bars: Progress) -> Path:
    """Records demonstrations of scripted experts, training and held-out ones, as a LeRobotDataset."""
    from spatial_forcing.sim.collect import collect

    spec = settings.demonstrations()
    bar = bars.add_task("demonstrations", total=spec.episodes * len(spec.tasks))
    root = collect(spec, out / DEMONSTRATIONS, workers=workers, progress=lambda n: bars.advance(bar, n))
    bars.update(bar, completed=spec.episodes * len(spec.tasks))
    return root


def comparison_of(settings: DemoSettings, out: Path) -> Comparison:
    """The comparison that a demo runs once its demonstrations are there."""
    return planned(
        training_flags(settings, out),
        demo_arms(settings),
        holdout=0.0,
        heldout=settings.heldout(),
        seeds=(settings.seed,),
        fractions=(1.0,),
        measures=Measures(settings.evaluations, settings.eval_episodes, probe_frames=PROBE_FRAMES),
        stored=True,
    )


def demo_arms(settings: DemoSettings) -> list[Arm]:
    """The arms of a demo: plain, forced, the two controls, and reference lines."""
    return [*arms_of(("plain", "forced"), None, settings.teacher), *references()]


def training_flags(settings: DemoSettings, out: Path) -> list[str]:
    """The training command of a demo, as flags of lerobot-train."""
    options: dict[str, Any] = {
        "policy.type": "sf_tiny",
        "policy.device": settings.device,
        "policy.push_to_hub": "false",
        "policy.optimizer_lr": settings.learning_rate,
        "policy.decay_lr": settings.learning_rate / 10,
        "policy.decay_steps": settings.steps,
        "policy.chunk_size": settings.chunk,
        "policy.n_action_steps": settings.chunk,
        "policy.forcing.loss_weight": settings.loss_weight,
        "dataset.repo_id": f"local/{DEMONSTRATIONS}",
        "dataset.root": out / DEMONSTRATIONS,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        # Small images that the file cache holds: a second process costs more to start than it saves.
        "num_workers": 0,
        "log_freq": 10,
        "env.type": "sf_metaworld",
        "env.task": ",".join(settings.tasks),
        # New images only when the policy plans again; the ones in between nobody looks at.
        "env.look_every": settings.chunk,
    }
    return [f"--{name}={value}" for name, value in options.items()]


def references() -> list[Arm]:
    """Reference arms of the demo, which give the others' numbers a scale."""
    blind = {"use_images": False}
    return [
        Arm("blind", "blind: sees no images", "reference", policy=blind),
        Arm("state", "state: knows the goal", "reference", policy=blind | {"use_environment_state": True}),
    ]
