"""Writes the report: checks the results, computes the summary, draws the plots, and puts it all into one
file."""

import base64
import json
import mimetypes
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_text
from spatial_forcing.report.check import check_results
from spatial_forcing.report.findings import difference_text, number, p_text, rate_text, with_interval
from spatial_forcing.report.plots import colours, draw_plots
from spatial_forcing.report.summary import summarise, without_nan

TEMPLATE = "report.html.jinja"


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes ``report.html`` and ``report.json`` into a folder.

    The HTML file holds all pictures, videos and plots, and needs neither a network nor JavaScript. The JSON
    file holds every number shown, computed statistics included. An arm that has not finished, or a picture
    that is not there, is reported as such.

    Args:
        results: plain data as ``spatial_forcing.report.check.RESULTS`` describes it (``results.json`` of the
            demo). Paths of pictures and videos are relative to ``folder``.
        folder: where the results lie.

    Returns:
        The path of ``report.html``.

    Raises:
        ReportError: something is missing from the results, or wrong; nothing is written.
        MissingDependencyError: jinja2, matplotlib or scipy is not installed.
    """
    folder = Path(folder)
    check_results(results)
    summary = summarise(results)
    html = _template().render(
        **summary,
        plots_svg={name: _svg_uri(svg) for name, svg in draw_plots(summary).items()},
        colour=colours(list(summary["arms"])),
        settings_rows=list(flatten(summary["settings"])),
        hardware_rows=list(flatten(summary["hardware"])),
        evaluated_steps=sorted({p["step"] for of in summary["plots"]["success"].values() for p in of}),
        probe_picture=_medium(folder, (results.get("probe") or {}).get("picture")),
        samples=[(_medium(folder, s["path"]), s["caption"]) for s in results.get("samples") or []],
        videos=_video_rows(results["arms"], folder),
    )
    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps(without_nan(summary), indent=1, allow_nan=False)
    write_text(folder / "report.json", record + "\n")
    return write_text(folder / "report.html", html)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of everything in nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, "none" if value is None or value == {} else str(value)


def duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "3 min 05 s" or "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _video_rows(arms: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Row i: the i-th video of every arm that has one; evaluation episodes are the same for all arms."""
    filmed = {name: [_medium(folder, p) for p in arm.get("videos") or []] for name, arm in arms.items()}
    filmed = {name: videos for name, videos in filmed.items() if videos}
    return [dict(zip(filmed, row, strict=True)) for row in zip_longest(*filmed.values())]


def _medium(folder: Path, path: str | None) -> dict[str, str | None] | None:
    """A picture or video as a data URI; ``uri`` is None if the file is not there, None if none was given."""
    if path is None:
        return None
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    file = folder / path
    uri = _uri(kind, file.read_bytes()) if file.is_file() else None
    return {"path": path, "kind": kind, "uri": uri}


def _svg_uri(svg: str | None) -> str | None:
    # As a picture of its own and not as inline SVG: the names inside two plots must not collide.
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
