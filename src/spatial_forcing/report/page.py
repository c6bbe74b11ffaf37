"""Writes the report: checks the results, computes the summary, draws the plots, and puts it all into one
file."""

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
from spatial_forcing.report.findings import difference_text, number, p_text, rate_text, with_interval
from spatial_forcing.report.plots import colours, draw_plots
from spatial_forcing.report.records import Summary
from spatial_forcing.report.summary import summarise
from spatial_forcing.results import Results

TEMPLATE = "report.html.jinja"


def write_report(results: Results | Mapping[str, Any], folder: Path) -> Path:
    """Writes ``report.html`` and ``report.json`` into a folder.

    The HTML file holds all images, videos and plots, and needs neither a network nor JavaScript. The JSON
    file holds every number shown, computed statistics included. An arm that has not finished, or an image
    that is not there, is reported as such.

    Args:
        results: the records, or the same as plain data (``results.json`` of the demo). Paths of images and
            videos are relative to ``folder``.
        folder: where the results lie.

    Returns:
        The path of ``report.html``.

    Raises:
        ResultsError: something is missing from the results, or wrong; nothing is written.
        MissingDependencyError: jinja2, matplotlib, scipy or pydantic is not installed.
    """
    folder, results = Path(folder), Results.checked(results, "results")
    summary = summarise(results)
    html = render(summary, results, folder, draw_plots(summary))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", json.dumps(summary.json_data(), indent=1, allow_nan=False) + "\n")
    return write_text(folder / "report.html", html)


def render(summary: Summary, results: Results, folder: Path, plots: Mapping[str, str | None]) -> str:
    """The page, with the images and videos that ``folder`` holds and plots as SVG by name."""
    return _template().render(
        **dict(summary),
        plots_svg={name: _svg_uri(svg) for name, svg in plots.items()},
        colour=colours(list(summary.arms)),
        settings_rows=list(flatten(summary.settings)),
        hardware_rows=list(flatten(summary.hardware)),
        evaluated_steps=sorted({point.step for of in summary.plots.success.values() for point in of}),
        probe_image=_medium(folder, results.probe.image if results.probe else None),
        samples=[(_medium(folder, sample.path), sample.caption) for sample in results.samples or []],
        videos=_video_rows(results, folder),
    )


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of everything in nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, "none" if value is None or value == {} else str(value)


def _video_rows(results: Results, folder: Path) -> list[dict[str, Any]]:
    """Row i: the i-th video of every arm that has one; evaluation episodes are the same for all arms."""
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


def _svg_uri(svg: str | None) -> str | None:
    # As an image of its own and not as inline SVG: the names inside two plots must not collide.
    return None if svg is None else _uri("image/svg+xml", svg.encode())


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
    environment.filters |= {"with_interval": with_interval, "difference": difference_text}
    return environment.get_template(TEMPLATE)
