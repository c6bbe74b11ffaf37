"""Depth probe of a comparison's trained policies: its options and its run.

What is probed are the last checkpoints of the first seed, trained on the most data; heads are judged on the
held-out episodes of the comparison.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from spatial_forcing.compare.features import Teaching, dataset_of, teachings_of
from spatial_forcing.compare.flags import CompareError, arm_flags
from spatial_forcing.compare.folder import comparison_in
from spatial_forcing.compare.plan import Comparison, Run, training_of
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.probe_options import ProbeOptions

FOLDER = "probe"
# Options of a probe that a comparison decides.
BROUGHT = ("policies", "dataset", "test_episodes", "rename")
PSEUDO = "pseudo:"


def depth_wanted(comparison: Comparison) -> str | None:
    """Depth source of the probe, in the spelling of its ``--depth``; None for no probe.

    Raises:
        CompareError: recorded depth is asked for, and the data set has none; or no such depth.
        ProbeError, UnknownNameError: the model that is named gives no depth, or there is none of that name.
    """
    asked = comparison.measures.probe
    if asked == "none":
        return None
    if asked.startswith(PSEUDO) and asked != PSEUDO:
        from spatial_forcing.probe.pseudo import check_model

        check_model(asked.removeprefix(PSEUDO))
        return asked
    if asked not in ("auto", "recorded"):
        raise CompareError(f"--probe is auto, none, recorded or pseudo:<model>; got {asked!r}.")
    from spatial_forcing.probe.depths import recorded

    dataset = dataset_of(comparison)
    cameras = [key for key in dataset.meta.camera_keys if key not in dataset.meta.depth_keys]
    try:
        recorded(dataset, cameras)
    except SpatialForcingError as error:
        if asked == "auto":
            return None
        raise CompareError(str(error).replace("--depth pseudo", "--probe pseudo")) from error
    return "recorded"


def probed_runs(comparison: Comparison) -> list[Run]:
    """The runs whose policies are probed, one per arm; references are not probed."""
    seed, fraction = comparison.seeds[0], max(comparison.fractions)
    return [
        run
        for run in comparison.runs()
        if (run.seed, run.fraction) == (seed, fraction) and run.arm.role != "reference"
    ]


def probe_asked(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Probe options for a comparison: its policies, data and teacher.

    Args:
        comparison: of the folder.
        out: the folder.
    """
    from spatial_forcing.flags import read_config

    runs = probed_runs(comparison)
    config = read_config(arm_flags(comparison.flags, runs[0].arm))
    asked: dict[str, Any] = {
        "policies": tuple(f"{run.arm.name}={training_of(comparison, out, run)}" for run in runs),
        "dataset": str(config.dataset.root or config.dataset.repo_id),
        "test_episodes": tuple(map(str, comparison.split.heldout)),
        "rename": tuple(f"{theirs}={ours}" for theirs, ours in config.rename_map.items()),
    }
    if (teaching := teacher_asked(comparison)) is not None:
        checkpoint = teaching.teacher_checkpoint
        asked |= {
            "teacher": teaching.teacher,
            "teacher_checkpoint": None if checkpoint is None else Path(checkpoint),
        }
    return asked


def of_comparison(options: ProbeOptions, out: Path) -> ProbeOptions:
    """Fills the options of a probe with the policies and data of a comparison, and with its teacher unless
    they name one.

    Raises:
        CompareError: the folder holds none, a policy of it is not trained yet, or the options name policies
            or data themselves.
    """
    defaults = ProbeOptions()
    own = [name for name in BROUGHT if getattr(options, name) != getattr(defaults, name)]
    if own:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in own)
        raise CompareError(f"--comparison brings policies, data set and test episodes: leave {flags} out.")
    comparison = comparison_in(out)
    for run in probed_runs(comparison):
        if not (training_of(comparison, out, run) / "checkpoints" / "last").exists():
            raise CompareError(f"The comparison in {out} is not finished: {run.name} has no checkpoint yet.")
    asked = probe_asked(comparison, out)
    if options.teacher is not None:
        asked = {name: value for name, value in asked.items() if not name.startswith("teacher")}
    return replace(options, **asked)


def teacher_asked(comparison: Comparison) -> Teaching | None:
    """The teacher of the first arm that is forced toward its features."""
    asked = replace(comparison, stored=True)
    found = (teachings_of(asked, arm) for arm in comparison.arms if arm.role == "arm")
    return next(chain.from_iterable(found), None)


def probe_arms(comparison: Comparison, out: Path, bars: Any, device: str) -> None:
    """Runs the depth probe on the arms, into ``<out>/probe``, unless that is done.

    Raises:
        SpatialForcingError: it cannot be done; everything else stays as it is.
    """
    from spatial_forcing.probe.command import JSON, probed

    depth = depth_wanted(comparison)
    if depth is None or not probed_runs(comparison) or (out / FOLDER / JSON).is_file():
        return
    asked = probe_asked(comparison, out)
    frames = comparison.measures.probe_frames
    probed(ProbeOptions(depth=depth, max_frames=frames, device=device, out=out / FOLDER, **asked), bars)


def found_by_probe(out: Path) -> dict[str, Any]:
    """Probe results of a comparison, as attributes of ``Results``; empty without a probe.

    Raises:
        ResultsError: its file is damaged.
    """
    from spatial_forcing.probe.command import JSON
    from spatial_forcing.probe.records import ProbeReport, probe_at_aligned_sites, probe_section

    path = out / FOLDER / JSON
    if not path.is_file():
        return {}
    report = ProbeReport.read(path, "Remove it and run the same command again: the policies are probed anew.")
    image = path.with_name("readings.png")
    return {
        "probe": probe_at_aligned_sites(report, str(image.relative_to(out)) if image.is_file() else None),
        "probe_sites": probe_section(report),
    }
