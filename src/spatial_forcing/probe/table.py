"""Console tables of a probe's results."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from spatial_forcing.probe.records import MEAN, ProbeReport, SourceRow, Suggestion
from spatial_forcing.results import Difference

HEADS = {"linear": "linear head", "dpt": "DPT head"}
# The rest is in probe.json and on the page.
SHOWN = (("AbsRel", "absrel", 4), ("RMSE", "rmse", 3), ("δ1", "delta1", 3), ("order", "order", 3))
ALIGNED = ("aligned", "absrel_aligned", 4)


def report_tables(report: ProbeReport) -> list[Table]:
    """A table for each kind of head, one of paired differences, and one of positions."""
    tables = []
    for head in report.heads:
        rows = [row for row in report.rows if row.head == head]
        if head == "dpt":
            rows += [row for row in report.rows if row.head == "linear" and row.source == MEAN]
        tables.append(_depth_table(report, head, rows))
    if (differences := _difference_table(report)) is not None:
        tables.append(differences)
    if any(row.points_cm and not row.reference for row in report.rows):
        tables.append(_points_table(report))
    return tables


def _depth_table(report: ProbeReport, head: str, rows: Sequence[SourceRow]) -> Table:
    shown = (*SHOWN, ALIGNED)
    table = _table(
        f"Depth read by a {HEADS[head]}: {report.depth.name}",
        f"on {report.test_frames} frames; {intervals_text(report)}. RMSE in {report.depth.unit}. Aligned: "
        "AbsRel after least squares of scale and shift of each image.",
        *("tokens of", "site"),
        *(title for title, _, _ in shown),
    )
    for row in rows:
        cells = [f"{row.metrics[key]:.{digits}f}" if key in row.metrics else "" for _, key, digits in shown]
        cells[0] = with_interval(cells[0], row, "absrel", 4)
        table.add_row(row.source, row.site or "", *cells, style="dim" if row.reference else None)
    return table


def _difference_table(report: ProbeReport) -> Table | None:
    """Table of paired differences in AbsRel to mean depth and to the first policy."""
    rows = [row for row in report.rows if row.differences]
    versus = dict.fromkeys(name for row in rows for name in row.differences or {})
    if not rows:
        return None
    table = _table(
        "AbsRel minus that of another source, on the same cells",
        f"below 0 is better, paired; {intervals_text(report)}",
        *("tokens of", "site", "head"),
        *(f"less {name}" for name in versus),
    )
    for row in rows:
        texts = [difference_text((row.differences or {}).get(name)) for name in versus]
        table.add_row(row.source, row.site or "", row.head, *texts, style="dim" if row.reference else None)
    return table


def _table(title: str, caption: str, *columns: str) -> Table:
    return Table(*columns, title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)


def _points_table(report: ProbeReport) -> Table:
    rows = [row for row in report.rows if row.points_cm]
    names = list(rows[0].points_cm or {})
    table = _table(
        "Distance of positions read linearly from all tokens of a frame, in cm",
        f"mean over held-out episodes; {intervals_text(report)}",
        *("tokens of", "site", *names),
    )
    for row in rows:
        cells = []
        for name in names:
            low, high = (row.points_intervals or {}).get(name, (None, None))
            span = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
            cells.append(f"{(row.points_cm or {})[name]:.1f}{span}")
        table.add_row(row.source, row.site or "", *cells, style="dim" if row.reference else None)
    return table


def suggestion_table(suggestion: Suggestion) -> Table:
    """Table of a policy's sites, the best first."""
    table = _table(
        f"Sites of {suggestion.policy} by the depth that a linear head reads there",
        suggestion.verdict,
        *("site", "AbsRel", "best in", "within 2 % of the best in", "mean rank"),
    )
    for one in suggestion.ranked:
        span = "" if one.low is None or one.high is None else f" ({one.low:.4f} to {one.high:.4f})"
        shares = ["" if of is None else f"{of:.0%}" for of in (one.best, one.near_best)]
        rank = "" if one.mean_rank is None else f"{one.mean_rank:.1f}"
        table.add_row(one.site, f"{one.absrel:.4f}{span}", *shares, rank)
    return table


def has_intervals(report: ProbeReport) -> bool:
    """Whether any number has an interval over test episodes: few episodes say nothing about the spread."""
    return any(row.intervals for row in report.rows)


def intervals_text(report: ProbeReport) -> str:
    """Says what is in brackets ("in brackets 95 % over 8 held-out episodes"), or that nothing is."""
    count = len(report.test_episodes)
    episodes = f"{count} held-out episode{'' if count == 1 else 's'}"
    return f"in brackets 95 % over {episodes}" if has_intervals(report) else f"{episodes}: no intervals"


def with_interval(text: str, row: SourceRow, metric: str, digits: int) -> str:
    """Formats a metric with its interval over test episodes."""
    span = (row.intervals or {}).get(metric)
    return text if span is None else f"{text} ({span[0]:.{digits}f} to {span[1]:.{digits}f})"


def difference_text(difference: Difference | None) -> str:
    """Formats a difference with its interval."""
    if difference is None:
        return ""
    span = "" if difference.low is None else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return f"{difference.absrel:+.4f}{span}"
