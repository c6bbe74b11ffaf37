"""The command ``eval``: checks, guards, rollouts, results."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from spatial_forcing.console import stages
from spatial_forcing.evaluation.env_flags import EnvCommand, EvalError, read_env, settings_of
from spatial_forcing.evaluation.guards.look import examined, tell
from spatial_forcing.evaluation.known import drawn_as, rendering_warning, settings_warning
from spatial_forcing.evaluation.launch import roll_out_all
from spatial_forcing.evaluation.plan import (
    EvalTask,
    Plan,
    check_episodes,
    check_policies,
    tasks_of,
    weights_of,
)
from spatial_forcing.evaluation.results import (
    RESULTS,
    Batch,
    EvalResults,
    Found,
    PolicyResults,
    read_beside,
)
from spatial_forcing.evaluation.table import markdown
from spatial_forcing.files import check_folder, read_json, write_json, write_text
from spatial_forcing.inspection.headers import file_at
from spatial_forcing.locks import FolderLock
from spatial_forcing.probe.policies import checkpoint_folder, named_policies
from spatial_forcing.provenance import made_with
from spatial_forcing.saved_policy import PolicyError, SavedPolicy

GUARDS = "guards.json"
TABLE = "eval.md"
AGAIN = "Remove it and run the same command again."


def evaluate_policies(options: Any, flags: list[str]) -> bool:
    """Evaluates policies, or checks them alone.

    Args:
        options: of :class:`spatial_forcing.evaluation.options.Eval`.
        flags: LeRobot's, what follows ``--``.

    Returns:
        Whether the guards found nothing wrong, if they were all that was asked for; True otherwise.

    Raises:
        SpatialForcingError: an option cannot be, the guards found something wrong, or an episode failed.
    """
    begun, made = time.perf_counter(), made_with()
    _check_options(options)
    named = _named(options)
    if not flags:
        flags = ["--env.type=sf_metaworld", f"--env.task={options.task}"]
        print(f"No environment was given after --: the embedded world, {' '.join(flags)}.")
    command = read_env(flags)
    drawn_as(command.env.type, options.rendering)  # says if there is no such rendering
    policies = {name: _saved(where, options, command) for name, where in named.items()}
    tasks = tasks_of(command.env)
    check_episodes(tasks, options.episodes)
    console = Console(file=sys.stdout)
    if options.check:
        found = _guarded(options, command, policies, tasks, console, stops=False)
        return all(one.kind != "wrong" for one in found)
    others = read_beside(options.beside, _episodes(options, command, tasks))
    with _folder(options.out) as out, FolderLock(out) as lock:
        plan = _planned(options, out, policies, tuple(flags), tasks)
        plan.claim(command.env)
        _roll_out(options, plan, command, policies, lock, console)
        results = _gathered(plan, command, named, made)
        results.seconds = round(time.perf_counter() - begun, 1)
        results.beside(others)
        results.compare()
        text = markdown(results)
        print(text, end="")
        if plan.kept:
            results.save(out / RESULTS)
            write_text(out / TABLE, text)
            print(f"\n{options.out / RESULTS}")
    return True


def _episodes(options: Any, command: EnvCommand, tasks: tuple[EvalTask, ...]) -> dict[str, Any]:
    """What identifies the episodes of an evaluation."""
    return {
        "tasks": [task.name for task in tasks],
        "episodes": options.episodes,
        "seed": options.seed,
        "environment": settings_of(command.env),
        "rendering": options.rendering,
    }


def _planned(
    options: Any,
    out: Path,
    policies: dict[str, SavedPolicy],
    flags: tuple[str, ...],
    tasks: tuple[EvalTask, ...],
) -> Plan:
    kept = options.out is not None
    return Plan(
        out=out,
        policies={name: policy.folder for name, policy in policies.items()},
        flags=flags,
        tasks=tasks,
        episodes=options.episodes,
        seed=options.seed,
        batch_size=options.batch_size,
        rendering=options.rendering,
        threads=options.threads,
        videos=options.videos if kept else 0,
        device=options.device,
        kept=kept,
    )


def _roll_out(
    options: Any,
    plan: Plan,
    command: EnvCommand,
    policies: dict[str, SavedPolicy],
    lock: Any,
    console: Console,
) -> None:
    """Runs the guards, and the episodes that are missing."""
    jobs = plan.missing()
    if not jobs:
        return
    found = _guarded(options, command, policies, plan.tasks, console, stops=not options.anyway)
    write_json(plan.out / GUARDS, {"findings": [one.plain() for one in found]})
    total = plan.episodes * len(plan.tasks) * len(plan.policies)
    with stages(console) as bars:
        bar = bars.add_task("episodes", total=total, completed=total - sum(job.count for job in jobs))
        roll_out_all(
            plan,
            jobs,
            workers=options.workers,
            patience=options.patience,
            lock=lock,
            advance=lambda count: bars.advance(bar, count),
        )


def _guarded(
    options: Any,
    command: EnvCommand,
    policies: dict[str, SavedPolicy],
    tasks: tuple[EvalTask, ...],
    console: Console,
    *,
    stops: bool,
) -> list[Found]:
    """Runs the guards of every policy, and prints what they say; raises if something wrong is to stop."""
    guarded = examined(
        policies,
        command.env,
        tasks,
        seed=options.seed,
        dataset=options.dataset,
        rendering=options.rendering,
    )
    tell(guarded, console, anyway=not stops)
    return [one for of in guarded for one in of.findings]


def _gathered(plan: Plan, command: EnvCommand, named: dict[str, str], made: dict[str, Any]) -> EvalResults:
    """The results of a finished evaluation, from the files of its batches."""
    policies = {}
    for name, where in named.items():
        batches = [Batch.read(plan.path_of(job), AGAIN) for job in plan.jobs() if job.policy == name]
        policies[name] = PolicyResults(
            where=where,
            checkpoint=weights_of(plan.policies[name]),
            episodes=[one for batch in batches for one in batch.episodes],
            seconds=round(sum(batch.seconds for batch in batches), 1),
        )
    warnings = [rendering_warning(command.env.type, made["versions"]), settings_warning(command.env)]
    findings = read_json(plan.out / GUARDS, AGAIN, EvalError)["findings"]
    return EvalResults(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **made,
        environment=settings_of(command.env),
        flags=list(plan.flags),
        tasks={task.name: task.instruction for task in plan.tasks},
        episodes=plan.episodes,
        seed=plan.seed,
        batch_size=plan.batch_size,
        rendering=plan.rendering,
        threads=plan.threads,
        device=plan.device,
        policies=policies,
        findings=[Found.checked(one, GUARDS) for one in findings],
        warnings=[text for text in warnings if text is not None],
    )


# ---- options -----------------------------------------------------------------------------------------------


def _check_options(options: Any) -> None:
    if options.episodes < 1:
        raise EvalError(f"An evaluation needs at least one episode; got {options.episodes}.")
    if options.seed < 0:
        raise EvalError(f"The seed must be at least 0; got {options.seed}.")
    for name, least in (("workers", 1), ("batch_size", 1), ("threads", 1), ("videos", 0)):
        if (value := getattr(options, name)) < least:
            raise EvalError(f"--{name.replace('_', '-')} must be at least {least}; got {value}.")
    if not options.patience > 0:
        raise EvalError(f"--patience is a number of seconds above 0; got {options.patience}.")
    if options.out is not None:
        check_folder(options.out, EvalError)


def _named(options: Any) -> dict[str, str]:
    """The policies' places by name, as given."""
    if options.checkpoint is not None:
        if options.policies:
            raise EvalError("Give --policies or --checkpoint, not both.")
        return {"policy": str(options.checkpoint)}
    named = named_policies(options.policies, doing="evaluate", taken=(), error=EvalError)
    check_policies(named)
    return named


def _saved(where: str, options: Any, command: EnvCommand) -> SavedPolicy:
    """A policy's configuration and processors, from where it was said to be."""
    folder = Path(where) if options.checkpoint is not None else checkpoint_folder(where)
    problems = [
        problem for file in sorted(folder.glob("*.safetensors")) for problem in file_at(file).problems
    ]
    if problems:
        raise PolicyError(f"The policy in {folder} cannot be loaded: {' '.join(problems)}")
    return SavedPolicy(folder, options.device, overrides=command.overrides, rename_map=command.rename_map)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder of an evaluation; one that is gone afterwards if none was named."""
    if out is not None:
        yield out.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "evaluation"
