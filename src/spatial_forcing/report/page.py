"""Report writer: validates the results, computes the summary, draws the figures, and renders one HTML
file, with figures and tables beside it."""

import base64
import json
import mimetypes
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from spatial_forcing.console import duration
from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_text
from spatial_forcing.report.figure import colours
from spatial_forcing.report.markdown import markdown
from spatial_forcing.report.measures import mean_of_known
from spatial_forcing.report.plots import draw_plots, label_of
from spatial_forcing.report.records import Comparison, Summary
from spatial_forcing.report.summary import summarise
from spatial_forcing.report.tables import csv_tables
from spatial_forcing.report.wording import (
    difference_text,
    number,
    p_text,
    rate_text,
    signed,
    spread_text,
    upper,
    with_interval,
)
from spatial_forcing.results import Results

TEMPLATE = "report.html.jinja"
# Titles and captions of the curves after the first three, in this order; diagnostics without one follow.
CURVES = {
    "heldout_loss": (
        "Held-out loss",
        "The policy's own loss on held-out demonstrations, at fixed noise and time, as it computes it in "
        "evaluation (ACT leaves its KL term out there).",
    ),
    "closest_distance_cm": (
        "Closest distance to the goal",
        "Mean over episodes. It moves before success does.",
    ),
    "cosine": (
        "Alignment with the teacher",
        "Mean cosine between projected tokens and their targets: the teacher's features, or a control's. It "
        "says that the alignment loss is being solved, not that it helps. With weight 0 the projector does "
        "not learn.",
    ),
    "gradient_ratio": (
        "Who pulls harder",
        "Norm of the alignment loss's gradient over that of the action loss, at the tapped tokens. Above 1, "
        "the teacher pulls harder than the task; below 1, the task does.",
    ),
    "gradient_cosine": (
        "Do they pull the same way",
        "Cosine of the gradients of alignment loss and action loss at the tapped tokens. Below 0, they work "
        "against each other.",
    ),
    "cka": (
        "CKA of host and teacher",
        "How alike the geometry of the tokens is to that of the teacher's features; 1 is equal.",
    ),
    "effective_rank": (
        "Effective rank of the visual tokens",
        "How many directions the tokens spread over. A fall says that they become alike.",
    ),
}


def write_report(results: Results | Mapping[str, Any], folder: Path) -> Path:
    """Writes ``report.html``, ``.json`` and ``.md`` into a folder, figures and tables in folders beside them.

    The HTML file holds all images, videos, figures and tables, and needs neither a network nor JavaScript.
    The JSON file holds every number shown, computed statistics included, the Markdown file the main ones;
    ``figures/*.svg`` and ``tables/*.csv`` are what the page shows, to be used elsewhere. A run that has not
    finished, or an image that is not there, is reported as such.

    Args:
        results: the records, or the same as plain data (``results.json``). Paths of images and videos are
            relative to ``folder``.
        folder: where the results lie.

    Returns:
        The path of ``report.html``.

    Raises:
        ResultsError: something is missing from the results, or wrong; nothing is written.
        MissingDependencyError: jinja2, matplotlib, scipy or pydantic is not installed.
    """
    folder, results = Path(folder), Results.checked(results, "results")
    summary = summarise(results)
    figures, tables = draw_plots(summary), csv_tables(summary, results)
    html = render(summary, results, folder, figures, tables)
    for inside, files in (("figures", figures), ("tables", tables)):
        kind = {"figures": "svg", "tables": "csv"}[inside]
        (folder / inside).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if text is not None:
                write_text(folder / inside / f"{name}.{kind}", text)
    write_text(folder / "report.md", f"# {summary.title}\n\n{markdown(summary)}")
    write_text(folder / "report.json", json.dumps(summary.json_data(), indent=1, allow_nan=False) + "\n")
    return write_text(folder / "report.html", html)


def render(
    summary: Summary,
    results: Results,
    folder: Path,
    figures: Mapping[str, str | None],
    tables: Mapping[str, str],
) -> str:
    """Renders the HTML page, with images and videos from ``folder``, SVG figures and CSV tables by name."""
    measured, has = summary.plots.measured, what_there_is(summary)
    figures = {
        name: text for name, text in figures.items() if has["loss"] or not name.endswith("heldout_loss")
    }
    return _template().render(
        **dict(summary),
        figures={name: _uri("image/svg+xml", text.encode()) for name, text in figures.items() if text},
        tables={name: _uri("text/csv", text.encode()) for name, text in tables.items()},
        curve_figures=curve_figures(figures),
        colour=colours(list(summary.arms)),
        several_seeds=len({run.seed for run in summary.runs}) > 1,
        has=has,
        phases=summary.phases,
        constant_error=mean_of_known(arm.constant_error for arm in summary.arms.values()),
        pairs=pairs_shown(summary),
        settings_rows=list(flatten(summary.settings)),
        hardware_rows=list(flatten(summary.hardware)),
        evaluated_steps=sorted(
            {
                step
                for name in ("success", "heldout_error")
                for by_seed in measured[name].values()
                for points in by_seed.values()
                for step, _ in points
            }
        ),
        probe_image=_medium(folder, results.probe.image if results.probe else None),
        samples=[(_medium(folder, sample.path), sample.caption) for sample in results.samples or []],
        videos=_video_rows(results, folder),
    )


def what_there_is(summary: Summary) -> dict[str, bool]:
    """Which sections of the page have content."""
    arms = list(summary.arms.values())
    return {
        "success": any(arm.success for arm in arms),
        "distance": any(arm.closest_distance_cm is not None for arm in arms),
        # Of policies trained by the action error itself, the two are the same number.
        "loss": any(a.heldout_loss is not None and a.heldout_loss != a.heldout_error for a in arms),
        "tasks": any(len(arm.tasks) > 1 for arm in arms),
        "memory": any(arm.cost.peak_memory_mb is not None for arm in arms),
        "differs": any(arm.differs for arm in arms),
        "reference": any(arm.role == "reference" for arm in arms),
        "errors": any(c.errors for c in pairs_shown(summary)),
        "data": any(c.data_to_target for c in pairs_shown(summary)),
        "holm": len({c.b for c in summary.comparisons}) > 1,
    }


def pairs_shown(summary: Summary) -> list[Comparison]:
    """Pairs of arms on the page: those that count, then the controls against the plain arm."""
    counted = {(c.a, c.b) for c in summary.comparisons}
    return summary.comparisons + [c for c in summary.against_plain if (c.a, c.b) not in counted]


def curve_figures(figures: Mapping[str, str | None]) -> list[tuple[str, str, str]]:
    """(name, title, caption) of the curves after held-out error, success and action loss."""
    first = ("heldout_error", "success", "action_loss")
    others = [
        name for name in figures if name not in first and not name.startswith(("data_", "forest_", "probe_"))
    ]
    order = [*(name for name in CURVES if name in others), *(name for name in others if name not in CURVES)]
    return [(name, *CURVES.get(name, (upper(label_of(name)), ""))) for name in order]


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Flattens nested mappings to (dotted name, text) pairs."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, "none" if value is None or value == {} else str(value)


def _video_rows(results: Results, folder: Path) -> list[dict[str, Any]]:
    """Rows of videos: the i-th video of every arm that has one; evaluation episodes are equal in all arms."""
    runs = {name: of[0] for name in results.arms if (of := results.runs_of(name))}
    filmed = {name: [_medium(folder, p) for p in run.videos or []] for name, run in runs.items()}
    filmed = {name: videos for name, videos in filmed.items() if videos}
    return [dict(zip(filmed, row, strict=True)) for row in zip_longest(*filmed.values())]


def _medium(folder: Path, path: str | None) -> dict[str, str | None] | None:
    """An image or video as a data URI; ``uri`` is None if the file is not there, None if none was given."""
    if path is None:
        return None
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    file = folder / path
    uri = _uri(kind, file.read_bytes()) if file.is_file() else None
    return {"path": path, "kind": kind, "uri": uri}


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("jinja2", "report") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "rate": rate_text, "p": p_text, "duration": duration}
    environment.filters |= {"spread": spread_text, "signed": signed}
    environment.filters |= {"with_interval": with_interval, "difference": difference_text}
    return environment.get_template(TEMPLATE)
