"""The main job in minutes: demonstrations, teacher features, policies from the same start with and without
forcing and toward the controls, rollouts, probe, report.

Every stage is the ordinary part of the package, run on the embedded world; every stage keeps what it
finished, so that a second run reuses it and an interrupted one continues.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from spatial_forcing.console import stages
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder, check_space, claim, read_json
from spatial_forcing.locks import FolderBusyError, FolderLock
from spatial_forcing.study import Arm, ArmProgress, run_arms

# Evaluation episodes start here; demonstrations never use these seeds (see spatial_forcing.sim.env).
EVAL_SEED = 1_000_000
# Targets that know nothing of the frame: the demo's control arms, for people.
CONTROL_LABELS = {
    "shuffled": "toward the features of another frame",
    "place": "toward the place of each token alone",
}
# What a run takes on disk, roughly.
DEMO_BYTES = 2**30
DAMAGED = "Run the demo in another folder, or remove this one."
# Rough seconds a unit of work takes on two cores, for the estimate at the start.
SECONDS = {"frame": 0.02, "feature": 0.012, "step": 0.2, "episode": 0.7, "fixed": 45}


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides the result.

    Args:
        tasks: Meta-World tasks, learned by one policy.
        episodes: demonstrations a task to train on.
        heldout_episodes: demonstrations a task for the held-out action error and the probe's test.
        frames: length of a demonstration.
        start: how demonstrations begin: "random-hand", "initial" or "expert-warmup" (see DemoSpec).
        steps: training steps.
        batch_size: frames a step.
        learning_rate: of all arms alike.
        chunk: actions predicted and executed at a time.
        evaluations: checkpoints that are rolled out, evenly spread over training.
        eval_episodes: rollouts a task and checkpoint.
        teacher: a registered teacher, or a local file or folder with one.
        weight: of the alignment loss in the forced arm.
        standardize: standardise the teacher's features channel by channel.
        seed: of weights, data order and demonstrations.
        device: "cpu" or "cuda".
    """

    tasks: tuple[str, ...] = ("reach-v3",)
    episodes: int = 250
    heldout_episodes: int = 40
    frames: int = 6
    start: str = "random-hand"
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 1e-3
    chunk: int = 4
    evaluations: int = 3
    eval_episodes: int = 25
    teacher: str = "vggt-tiny-sim"
    weight: float = 2.0
    standardize: bool = True
    seed: int = 0
    device: str = "cpu"

    def seconds(self, workers: int) -> float:
        """A rough estimate of the wall time on two cores."""
        frames = len(self.tasks) * self.frames * (self.episodes + self.heldout_episodes)
        episodes = len(self.tasks) * self.eval_episodes * (4 * self.evaluations + 2)
        shared = (
            frames * SECONDS["frame"] + 4.5 * self.steps * SECONDS["step"] + episodes * SECONDS["episode"]
        )
        return SECONDS["fixed"] + frames * SECONDS["feature"] + 2 * shared / max(1, workers)


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

        report = write_report(read_json(out / "results.json", DAMAGED), out)
        console.print(f"This run is finished; nothing was computed again. Report: [bold]{report}[/]")
        return report
    lock = hold(out)
    minutes = settings.seconds(workers) / 60
    console.print(
        f"Spatial Forcing demo in [bold]{out}[/]: about {minutes:.0f} minutes on two cores; what is there "
        "is reused."
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


def check_settings(settings: DemoSettings, workers: int) -> None:
    """Before anything is made.

    Raises:
        UnknownNameError: a task or teacher does not exist.
        WeightsError: the teacher's file or folder does not say what it is.
        DeviceError: nor does the device.
        SpatialForcingError: a number makes no sense.
    """
    from spatial_forcing.device import checked_device
    from spatial_forcing.sim.tasks import task_record
    from spatial_forcing.teachers import find_teacher

    for task in settings.tasks:
        task_record(task)
    find_teacher(settings.teacher)
    checked_device(settings.device)
    if not settings.tasks or len(set(settings.tasks)) < len(settings.tasks):
        raise SpatialForcingError(f"Name at least one task, and none twice; got {settings.tasks}.")
    for name, least in (("episodes", 1), ("steps", 1), ("eval_episodes", 1), ("seed", 0)):
        if (value := getattr(settings, name)) < least:
            raise SpatialForcingError(f"{name} must be at least {least}; got {value}.")
    if not (isfinite(settings.weight) and settings.weight >= 0):
        raise SpatialForcingError(f"The weight must be a number, 0 or more; got {settings.weight}.")
    if workers < 1:
        raise SpatialForcingError(f"The demo takes at least one process; got {workers} workers.")


def take_folder(out: Path, settings: DemoSettings) -> None:
    """Takes the folder for this run, or raises if it holds another one or the disk is too full for it."""
    check_folder(out)
    check_space(out, DEMO_BYTES)
    claim(out / "settings.json", asdict(settings), what="demo", only=True)


def hold(out: Path) -> FolderLock:
    """Locks the folder for this process until the lock is closed or the process ends.

    Raises:
        SpatialForcingError: another process is running a demo there.
    """
    try:
        return FolderLock(out, wait=0)
    except FolderBusyError as error:
        raise SpatialForcingError(
            f"Another demo is running in {out}. Wait for it, or choose --out."
        ) from error


def finished_settings(out: Path) -> tuple[DemoSettings, tuple[Path, Path, Path]]:
    """The settings of a run and its folders of demonstrations, held-out demonstrations and features.

    Raises:
        SpatialForcingError: there is no run in ``out``, or a part of it is missing.
    """
    out = out.resolve()
    path = out / "settings.json"
    if not path.is_file():
        raise SpatialForcingError(_no_demo(out))
    saved = read_json(path, DAMAGED)
    strange = saved.keys() - {one.name for one in fields(DemoSettings)}
    if strange or not isinstance(saved.get("tasks"), list):
        what = f"it has {', '.join(sorted(strange))}" if strange else "it names no tasks"
        raise SpatialForcingError(f"{path} does not hold the settings of a demo: {what}. {DAMAGED}")
    settings = DemoSettings(**{**saved, "tasks": tuple(saved["tasks"])})
    roots = (out / "demonstrations", out / "held-out-demonstrations", features_folder(settings, out))
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing:
        raise SpatialForcingError(
            f"The run in {out} is not finished: {', '.join(missing)} missing. Run the demo again."
        )
    return settings, roots


def features_folder(settings: DemoSettings, out: Path) -> Path:
    """Where the teacher's features of a demo are."""
    from spatial_forcing.teachers import find_teacher

    return out / "features" / find_teacher(settings.teacher).slug


def _no_demo(out: Path) -> str:
    """What to say of a folder without a demo's settings."""
    if not out.is_dir():
        return f"There is no folder {out}. Make a demo run with: spatial-forcing demo --out {out}"
    if not ((out / "checkpoints").is_dir() or (out / "config.json").is_file()):
        return (
            f"{out} holds no demo run (no settings.json). Make one in a new or empty folder: "
            "spatial-forcing demo --out <folder>"
        )
    checkpoint = out / "checkpoints" / "last" / "pretrained_model" if (out / "checkpoints").is_dir() else out
    return (
        f"{out} is a training run, and the folder of a demo was expected (with settings.json): `probe` and "
        "`report` of any run are not there yet. What works for this one: spatial-forcing doctor "
        f"--checkpoint {checkpoint}, spatial-forcing eval (Meta-World policies), and in Python "
        "spatial_forcing.probe.tapped_tokens with run_probe, for frames whose depth you have."
    )


# ---- stages
# ----------------------------------------------------------------------------------------------------------


def collect_demos(settings: DemoSettings, out: Path, workers: int, bars: Progress) -> tuple[Path, Path]:
    """Scripted experts' demonstrations, to train on and held out: two LeRobotDatasets."""
    from spatial_forcing.sim.collect import DemoSpec, collect

    spec = DemoSpec(
        tasks=settings.tasks,
        episodes=settings.episodes,
        frames=settings.frames,
        start=settings.start,
        seed=settings.seed,
    )
    heldout = replace(spec, episodes=settings.heldout_episodes, seed=settings.seed + 500_000)
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

    frames = len(settings.tasks) * settings.episodes * settings.frames
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
        # New pictures only when the policy plans again; the ones in between nobody looks at.
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
        "weight": settings.weight,
    }
    blind = common.policy | {"use_images": False}
    state = blind | {"use_environment_state": True}
    reference = replace(common, role="reference", evaluations=1, videos=0)
    return [
        replace(common, name="baseline", label="without forcing", forcing=forcing | {"weight": 0.0}),
        replace(common, name="forced", label="Spatial Forcing", forcing=forcing),
        *(
            replace(common, name=name, label=label, role="control", forcing=forcing | {"control": name})
            for name, label in CONTROL_LABELS.items()
        ),
        replace(reference, name="blind", label="blind: sees no pictures", policy=blind),
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
) -> dict[str, Any]:
    """Fits the depth probe on the tapped tokens of baseline, forced, an untrained policy and the teacher."""
    from spatial_forcing.evidence import probe_policies

    bar = bars.add_task("depth probe", total=1)
    result = probe_policies(settings.teacher, arms, train_root, heldout_root, out, settings.device)
    bars.update(bar, completed=1)
    return result


def write_demo_report(
    settings: DemoSettings,
    arms: list[Arm],
    probe: dict[str, Any],
    timings: dict[str, float],
    out: Path,
    command: str,
) -> Path:
    """Gathers every number into results.json and draws the report from it."""
    from spatial_forcing.evidence import gather_results
    from spatial_forcing.report import write_report

    results = gather_results(
        title="Spatial Forcing demo",
        command=command,
        settings=asdict(settings),
        teacher=settings.teacher,
        tasks=settings.tasks,
        arms=arms,
        probe=probe,
        timings=timings,
        out=out,
    )
    return write_report(results, out)


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 1)
