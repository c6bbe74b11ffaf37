"""Tests the trained policies of a comparison in another environment: other cameras, other tasks.

Nothing is trained. A run of such a comparison is the rollouts of the last checkpoint of the run of the same
name; the held-out error, which no environment changes, is left to the report of the first one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatial_forcing.compare.flags import CompareError, joined, name_of
from spatial_forcing.compare.folder import WARNINGS, check_taken, comparison_in, take_folder
from spatial_forcing.compare.plan import Comparison, training_of
from spatial_forcing.files import write_json

TITLE = "Does it help there?"
OF_THE_ENVIRONMENT = "env."
# What may follow -- beside the flags of an environment.
ASIDE = ("eval.batch_size",)


def transferred(
    of: Path, flags: Sequence[str], *, episodes: int | None = None, videos: int | None = None
) -> Comparison:
    """The comparison of trained policies in another environment.

    Args:
        of: folder of the comparison that trained them.
        flags: of the environment: ``--env.camera=beyond``. The other options are those of the first
            comparison, but with an ``--env.type`` of its own, which begins with that type's defaults.
        episodes, videos: see :class:`~spatial_forcing.compare.plan.Measures`; as there if None.

    Raises:
        CompareError: the folder holds no comparison, or one that is not finished; or a flag is of something
            else, or changes nothing.
    """
    source = comparison_in(of)
    if source.policies is not None:
        raise CompareError(f"{of} holds tests of other policies: name the comparison {source.policies}.")
    for run in source.runs():
        if not (training_of(source, of, run) / "checkpoints" / f"{source.steps:06d}").is_dir():
            raise CompareError(
                f"The comparison in {of} is not finished: {run.name} has no checkpoint of step "
                f"{source.steps}."
            )
    given = joined(flags)
    for flag in given:
        if not (name_of(flag).startswith(OF_THE_ENVIRONMENT) or name_of(flag) in ASIDE):
            raise CompareError(f"After -- come flags of an environment (--env.camera=beyond); got {flag}.")
    elsewhere = with_environment(source.flags, given)
    if sorted(elsewhere) == sorted(source.flags):
        raise CompareError(
            f"These policies were tested so already: {_environment(source.flags) or 'no environment'}. Say "
            "after -- what is to be different: --env.task=..., --env.camera=..."
        )
    if not any(name_of(flag) == "env.type" for flag in elsewhere):
        raise CompareError(
            f"The comparison in {of} has no environment: name one after --, --env.type=... --env.task=..."
        )
    given_measures = {"episodes": episodes, "videos": videos}
    changed = {name: value for name, value in given_measures.items() if value is not None}
    return replace(
        source,
        flags=tuple(elsewhere),
        measures=replace(source.measures, evaluations=1, probe="none", **changed),
        policies=str(of.resolve()),
    )


def with_environment(flags: Sequence[str], given: Sequence[str]) -> list[str]:
    """Flags of a training command with those of another environment in place of its own."""
    named = set(map(name_of, given))
    anew = "env.type" in named
    kept = [
        flag
        for flag in flags
        if name_of(flag) not in named and not (anew and name_of(flag).startswith(OF_THE_ENVIRONMENT))
    ]
    return [*kept, *given]


def _environment(flags: Sequence[str]) -> str:
    return " ".join(flag for flag in flags if name_of(flag).startswith(OF_THE_ENVIRONMENT))


def transfer(comparison: Comparison, out: Path, how: Any, console: Any, *, anyway: bool = False) -> Path:
    """Rolls the policies out, and returns the path of the report.

    Args:
        comparison: see :func:`transferred`.
        out: its folder.
        how: see ``compare.launch``.
        console: for what is printed.
        anyway: whether to go on where a guard finds something wrong.

    Raises:
        SpatialForcingError: the environment does not fit the policies, or a run failed; what is finished is
            kept.
    """
    from spatial_forcing.compare.command import device_of, run_all, timings_in
    from spatial_forcing.compare.gather import gather
    from spatial_forcing.console import stages
    from spatial_forcing.provenance import command_line, made_with
    from spatial_forcing.report import write_report

    made = made_with(command_line())
    check_taken(out, comparison)
    console.print(
        f"{len(comparison.runs())} policies of {comparison.policies}, in {_environment(comparison.flags)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    warnings = guard(comparison, out, console, anyway=anyway)
    take_folder(out, comparison)
    write_json(out / WARNINGS, {"warnings": warnings})
    with timings_in(out, {}) as timings, stages(console) as bars:
        run_all(comparison, out, how, bars, device_of(comparison), timings)
    report = write_report(gather(comparison, out, made, timings, TITLE), out)
    console.print(f"Report: [bold]{report}[/]")
    return report


def guard(comparison: Comparison, out: Path, console: Any, *, anyway: bool) -> list[str]:
    """Compares the environment with what the first policy was trained on; all have the same data.

    Returns:
        What the guards found, as sentences.

    Raises:
        SpatialForcingError: something would make the rollouts pointless, or there are too few initial states.
    """
    from lerobot.configs import PreTrainedConfig

    from spatial_forcing.evaluation.guards.look import examined, tell
    from spatial_forcing.evaluation.plan import check_episodes, tasks_of
    from spatial_forcing.flags import read_config
    from spatial_forcing.saved_policy import SavedPolicy

    run = next(run for run in comparison.runs() if run.arm.role != "reference")
    folder = training_of(comparison, out, run) / "checkpoints" / "last" / "pretrained_model"
    config = read_config(comparison.run_flags(run, out))
    tasks = tasks_of(config.env)
    check_episodes(tasks, comparison.measures.episodes)
    policy = SavedPolicy(folder, PreTrainedConfig.from_pretrained(folder).device or "cpu")
    guarded = examined({run.arm.name: policy}, config.env, tasks, seed=comparison.measures.eval_seed)
    tell(guarded, console, anyway=anyway)
    return [warning for one in guarded for warning in one.warnings]
