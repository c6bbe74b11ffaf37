"""Markdown version of a report, to paste into an issue, a README or notes."""

from collections.abc import Callable, Sequence
from typing import Any

from spatial_forcing.report.records import ArmSummary, Comparison, Errors, Series, Summary
from spatial_forcing.report.wording import (
    corrected_text,
    difference_text,
    listed,
    number,
    rate_text,
    spread_text,
    with_interval,
)


def markdown(summary: Summary) -> str:
    """Renders a report as Markdown: verdict, notes, arms, errors by step, pairs, data, provenance."""
    verdict, parts = summary.verdict, []
    said: dict[str, Sequence[str]] = {}
    if verdict is not None:
        parts += [f"**{verdict.headline}**"]
        said |= {"Shown": verdict.shown, "Not shown": verdict.not_shown, "What it would take": verdict.takes}
    said["Notes"] = summary.notes
    parts += [
        "\n".join([f"{heading}:", "", *(f"- {sentence}" for sentence in sentences)])
        for heading, sentences in said.items()
        if sentences
    ]
    parts += [
        _arms(summary),
        _phases(summary),
        _by_step(summary),
        _pairs(summary),
        _by_data(summary),
        _probe(summary),
        _made_with(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def _arms(summary: Summary) -> str:
    rolled = any(arm.success for arm in summary.arms.values())
    held_out = any(arm.heldout_error is not None for arm in summary.arms.values())
    head = [
        "arm",
        "",
        "step",
        *(["success (95 %)"] if rolled else []),
        *(["held-out action error (by seed)"] if held_out else []),
    ]
    rows = [
        [
            f"{name} ({arm.role})" if arm.role != "arm" else name,
            arm.label,
            "–" if arm.evaluated_step is None else str(arm.evaluated_step),
            *([rate_text(arm.success, "")] if rolled else []),
            *([_error(arm)] if held_out else []),
        ]
        for name, arm in summary.arms.items()
    ]
    return table(head, rows)


def _phases(summary: Summary) -> str:
    """Markdown table of the phases that episodes came to, where the environment tells them."""
    names = summary.phases
    rows = [
        [arm, *(rate_text(of.phases.get(name), "") for name in names)] for arm, of in summary.arms.items()
    ]
    return table(["phases (95 %)", *names], rows) if names else ""


def _error(arm: ArmSummary) -> str:
    if arm.heldout_error is None:
        return "–"
    seeds = ", ".join(number(error) for error in arm.error_by_seed.values())
    return (
        f"{number(arm.heldout_error)} ({seeds})" if len(arm.error_by_seed) > 1 else number(arm.heldout_error)
    )


def _by_step(summary: Summary) -> str:
    """Markdown tables of the arms that were evaluated at several steps: error, success, steps to an error."""
    series = summary.plots.measured.get("heldout_error", {})
    several = {name: by for name, by in series.items() if any(len(points) > 1 for points in by.values())}
    if not several:
        return ""
    found = [table(*_over(several, "held-out error at step"))]
    rates = {
        name: by
        for name, by in summary.plots.measured.get("success", {}).items()
        if name in several and any(by.values())
    }
    if rates:
        found.append(table(*_over(rates, "success at step", "{:.0f} %".format)))
    reached = [c for c in summary.comparisons if c.steps_to_target]
    if reached:
        lines = [[c.b, c.a, c.steps_to_target.ratio] for c in reached if c.steps_to_target]
        head = ["arm", "against", "speed-up to the other arm's last error: its steps over this arm's"]
        found.append(table(head, lines))
    return "\n\n".join(found)


def _over(
    series: Series, of: str, said: Callable[[float], str] = number
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of a quantity over steps or data: means over seeds."""
    xs = sorted({x for by_seed in series.values() for points in by_seed.values() for x, _ in points})
    rows = []
    for name, by_seed in series.items():
        at = [[y for points in by_seed.values() for there, y in points if there == x] for x in xs]
        rows.append([name, *(said(sum(ys) / len(ys)) if ys else "–" for ys in at)])
    return [of, *(f"{x:g}" for x in xs)], rows


def _pairs(summary: Summary) -> str:
    """Markdown table of paired tests: the pairs that count, then the controls against the plain arm."""
    counted = {(c.a, c.b) for c in summary.comparisons}
    pairs = [*summary.comparisons, *(c for c in summary.against_plain if (c.a, c.b) not in counted)]
    if not pairs:
        return ""
    rolled = any(not c.problem and c.p_value is not None for c in pairs)
    held_out = any(c.errors is not None for c in pairs)
    head = [
        "arm",
        "against",
        *(["success, points", "McNemar"] if rolled else []),
        *(["error", "paired t-test"] if held_out else []),
    ]
    rows = [
        [c.b, c.a, *(_success(c) if rolled else []), *(_errors(c.errors) if held_out else [])] for c in pairs
    ]
    return table(head, rows)


def _success(c: Comparison) -> list[str]:
    return [spread_text(c.difference, digits=1), corrected_text(c.p_value, c.p_holm)]


def _errors(found: Errors | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    return [spread_text(found.difference), corrected_text(found.p_value, found.p_holm)]


def _by_data(summary: Summary) -> str:
    """Markdown tables by amount of data: error and success of every arm, and the data to others' errors."""
    series, unit = summary.plots.by_data.get("heldout_error", {}), summary.plots.data_unit
    if unit is None or not any(series.values()):
        return ""
    head, rows = _over(series, f"held-out error at {unit}")
    found = [table(head, rows)]
    rates = {name: by for name, by in summary.plots.success_by_data.items() if by}
    if rates:
        amounts = head[1:]
        rows = [[name, *(rate_text(by.get(int(x)), "") for x in amounts)] for name, by in rates.items()]
        found.append(table([f"success (95 %) at {unit}", *amounts], rows))
    reached = [c for c in summary.comparisons if c.data_to_target]
    if reached:
        lines = [[c.b, c.a, c.data_to_target.ratio] for c in reached if c.data_to_target]
        found.append(
            table(["arm", "against", "data to the other arm's last error: its over this arm's"], lines)
        )
    return "\n\n".join(found)


def _probe(summary: Summary) -> str:
    probe = summary.probe
    if probe is None:
        return ""
    pseudo = " (pseudo)" if probe.depth is not None and probe.depth.kind == "pseudo" else ""
    unit = "m" if probe.depth is None or probe.depth.unit == "m" else "medians"
    head = ["tokens of", f"depth AbsRel{pseudo}", *(f"minus that of {other}" for other in probe.versus)]
    head.append(f"RMSE ({unit})")
    rows = [
        [row.name, with_interval(row, "absrel")]
        + [difference_text((row.differences or {}).get(other)) for other in probe.versus]
        + [with_interval(row, "rmse_m")]
        for row in probe.rows
    ]
    return table(head, rows)


def _made_with(summary: Summary) -> str:
    said = [f"`{summary.command}`"]
    training = summary.settings.get("command", "")
    if not _says(summary.command, training):
        said.append(f"training: `{training}`")
    seeds = sorted({run.seed for run in summary.runs})
    said.append(
        f"seeds {listed(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else "no run"
    )
    said += [f"teacher {summary.teacher.name}"] if summary.teacher else []
    return "Made with: " + "; ".join([*said, *made_on(summary)]) + "."


def _says(command: str, training: str) -> bool:
    """Whether a command has all flags of a training after its ``--``."""
    return set(training.split()) <= set(command.partition(" -- ")[2].split())


def made_on(results: Any) -> list[str]:
    """Commit, versions and hardware of results, as parts of a sentence."""
    hardware = results.hardware
    return [
        f"commit {results.commit or 'unknown'}, {results.created}",
        ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        f"{hardware.get('cores')} cores of {hardware.get('cpu')}, GPU: {hardware.get('gpu') or 'none'}",
    ]
