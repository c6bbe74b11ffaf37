"""Gathers the results of a comparison from the files of its runs, for the report."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from spatial_forcing.compare.arm import Arm
from spatial_forcing.compare.features import RECORDED, Teaching, teachings_of
from spatial_forcing.compare.folder import WARNINGS, seeds_added
from spatial_forcing.compare.plan import Comparison, Run, folder_of, trained_in, training_of
from spatial_forcing.compare.probing import found_by_probe
from spatial_forcing.compare.run import COST
from spatial_forcing.compare.samples import sample_images
from spatial_forcing.files import read_json
from spatial_forcing.results import ArmHead, Results, TeacherUsed
from spatial_forcing.run_results import Evaluation, RunResults, curve_rows

AGAIN = "Remove it and run the same command again: that checkpoint is evaluated anew."


def gather(
    comparison: Comparison, out: Path, made: dict[str, Any], timings: dict[str, float], title: str
) -> Results:
    """Gathers everything that the report of a comparison shows; also written to ``results.json``.

    Args:
        comparison: of the folder.
        out: the folder.
        made: see ``provenance.made_with``.
        timings: seconds per stage.
        title: of the report.

    Raises:
        ResultsError: a file of an evaluation is damaged; says which.
    """
    runs = [run_results(comparison, run, out) for run in comparison.runs()]
    samples = sample_images(comparison, out)
    tasks = dict.fromkeys(e.task for run in runs for one in run.evaluations for e in one.episodes)
    results = Results(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **made,
        settings=settings_of(comparison, out),
        teacher=teacher_used(comparison, out),
        timings=timings,
        tasks=list(tasks),
        warnings=warnings_of(out),
        seeds_added=[
            seed
            for seed in comparison.seeds
            if seed in {*seeds_added(out), *seeds_added(trained_in(comparison, out))}
        ],
        arms={
            arm.name: ArmHead.checked(
                {
                    "label": label_of(comparison, arm),
                    "role": arm.role,
                    "differs": arm.differs,
                    "of": arm.of,
                },
                "arm",
            )
            for arm in comparison.arms
        },
        runs=runs,
        samples=samples,
        **found_by_probe(out),
    )
    results.save(out / "results.json")
    return results


def warnings_of(out: Path) -> list[str]:
    """What the checks before the first step or rollout warned of; nothing in folders of earlier versions."""
    path = out / WARNINGS
    advice = "Remove it; the report then lacks the warnings that were printed before the first step."
    return read_json(path, advice)["warnings"] if path.is_file() else []


def label_of(comparison: Comparison, arm: Arm) -> str:
    """Display name of an arm, with the checkpoint that it starts from and the depth that its points are from
    (recorded depth is privileged)."""
    label = (arm.label or arm.name) + (f"; from {arm.start}" if arm.start else "")
    sources = [one.points_from for one in teachings_of(comparison, arm) if one.points_from is not None]
    said = [f"{one} depth (privileged)" if one == RECORDED else one for one in dict.fromkeys(sources)]
    return f"{label}; {', '.join(said)}" if said else label


def settings_of(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Settings that determine the result, for the report; paths inside the folder are relative to it."""
    said = asdict(comparison)
    again = {} if comparison.policies is None else {"policies_of": Path(comparison.policies).name}
    return {
        **again,
        "command": " ".join(comparison.flags).replace(f"{out}/", ""),
        "seeds": said["seeds"],
        "fractions": said["fractions"],
        "steps": comparison.steps,
        "training_episodes": len(comparison.split.train),
        "heldout_episodes": len(comparison.split.heldout),
        "heldout_episode_numbers": list(comparison.split.heldout),
        "features": "stored" if comparison.stored else "online",
        **said["measures"],
    }


def evaluations_of(folder: Path) -> list[Evaluation]:
    """Finished evaluations of a run, by step.

    Raises:
        ResultsError: a file of them is damaged; says which and what to do.
    """
    found = sorted((folder / "eval").glob("[0-9]*.json"), key=lambda path: int(path.stem))
    return [Evaluation.read(path, AGAIN) for path in found]


def run_results(comparison: Comparison, run: Run, out: Path) -> RunResults:
    """Results of a run so far, from its folder."""
    from spatial_forcing.train import read_metrics

    folder = folder_of(out, run)
    evaluations = evaluations_of(folder)
    training = training_of(comparison, out, run)
    logged = read_metrics(training)
    if run.arm.forcing is None:  # its whole loss; not every policy calls it so
        logged = [{"action_loss": row["loss"], **row} if "loss" in row else row for row in logged]
    on_gpu = [row["gpu_mem_gb"] for row in logged if "gpu_mem_gb" in row]
    cost = read_json(folder / COST) if (folder / COST).is_file() else {}
    videos = evaluations[-1].videos if evaluations else []
    return RunResults(
        arm=run.arm.name,
        seed=run.seed,
        fraction=run.fraction,
        train_episodes=len(comparison.split.share(run.fraction)),
        steps=comparison.steps,
        parameters=parameters_of(training),
        curves=curve_rows(logged),
        evaluations=evaluations,
        videos=[str((folder / video).relative_to(out)) for video in videos],
        seconds_per_step=_median(row.get("update_s") for row in logged),
        dataloading_seconds=_median(row.get("dataloading_s") for row in logged),
        peak_memory_mb=1024 * max(on_gpu) if on_gpu else cost.get("peak_memory_mb"),
    )


def parameters_of(training: Path) -> int:
    """Parameter count of a training run's last checkpoint, from file headers; 0 before there is one."""
    from math import prod

    from safetensors import safe_open

    count = 0
    for path in (training / "checkpoints" / "last" / "pretrained_model").glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return count


def teacher_used(comparison: Comparison, out: Path) -> TeacherUsed | None:
    """The teacher of the first arm with forcing; None if there is none, or no stored features name it."""
    from spatial_forcing.teachers import find_teacher

    found = (teachings_of(comparison, arm) for arm in comparison.arms)
    teaching = next(chain.from_iterable(found), None)
    if teaching is None:
        return None
    record = find_teacher(teaching.teacher)
    return TeacherUsed(
        name=teaching.teacher,
        fingerprint=fingerprint_in(comparison, teaching, out),
        licence=record.licence,
        note=record.note,
    )


def fingerprint_in(comparison: Comparison, teaching: Teaching, out: Path) -> str:
    """The fingerprint of the teacher whose features a comparison stored."""
    manifest = (
        trained_in(comparison, out) / "features" / teaching.folder(comparison.fractions[0]) / "manifest.json"
    )
    return json.loads(manifest.read_text())["source"]["teacher_fingerprint"]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
