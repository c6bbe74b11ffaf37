"""HTML page of a probe: plot, tables, predicted depth, PCA colours, and token similarity to a patch.

One self-contained HTML file: nothing is loaded from anywhere, and it needs no server. The similarity is
computed in the page from codes of the tokens: their principal components, in 8 bits.

Shapes: V views, H W rows and columns of tokens or pixels, C channels, D components, N tokens.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_text
from spatial_forcing.probe.figures import principal
from spatial_forcing.probe.image import DPI
from spatial_forcing.probe.quality import METRICS
from spatial_forcing.probe.records import MEAN, ProbeReport
from spatial_forcing.probe.run import Drawn
from spatial_forcing.probe.table import difference_text, has_intervals, intervals_text, with_interval

COMPONENTS = 32
IMAGE_SIDE = 224
TITLES = {
    "absrel": "AbsRel",
    "rmse": "RMSE",
    "log10": "log10",
    "delta1": "δ1",
    "delta2": "δ2",
    "delta3": "δ3",
    "order": "order",
}


def write_page(
    report: ProbeReport, drawn: Mapping[str, Sequence[Drawn]], pictures: Mapping[str, Path], path: Path
) -> Path:
    """Writes the HTML page of a probe.

    Args:
        report: what was found.
        drawn: test frames, by policy, for the similarity.
        pictures: files to show: "layers" (SVG), "readings" and "readings-2" ..., "tokens" (PNG).
        path: the file to write.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingDependencyError("jinja2", "report") from error
    source = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    svg = pictures["layers"].read_text(encoding="utf-8") if "layers" in pictures else ""
    page = environment.from_string(source).render(
        report=report,
        heads=[_table(report, head) for head in report.heads],
        points=_points(report),
        truth="pseudo depth" if report.depth.kind == "pseudo" else "true depth",
        camera=next(iter(camera_names(report.cameras)), ""),
        has_intervals=has_intervals(report),
        intervals=intervals_text(report),
        components=COMPONENTS,
        layers=Markup(svg[svg.index("<svg") :]) if svg else "",
        images={name: _sized(of) for name, of in pictures.items() if of.suffix == ".png"},
        # "</" could end the script early.
        similarity=Markup(json.dumps(similarity_data(drawn, report.cameras)).replace("</", "<\\/")),
    )
    return write_text(path, page)


def similarity_data(drawn: Mapping[str, Sequence[Drawn]], cameras: Sequence[str]) -> dict[str, Any]:
    """Images and compressed tokens for the page's similarity view, as plain data.

    Args:
        drawn: test frames, by policy.
        cameras: of the images, as the data set calls them.
    """
    named = {name: frames for name, frames in drawn.items() if frames}
    first = next(iter(named.values()), [])
    return {
        "cameras": camera_names(cameras),
        "frames": [
            {
                "label": f"episode {one.episode}, frame {one.frame}",
                "images": [_jpeg(image) for image in one.images],
            }
            for one in first
        ],
        "policies": [{"name": name, **_codes(frames)} for name, frames in named.items()],
    }


def camera_names(keys: Sequence[str]) -> list[str]:
    """Names of cameras for people: the last part of each key, or whole keys where two end in the same."""
    names = [key.rpartition(".")[2] for key in keys]
    return names if len(set(names)) == len(names) else list(keys)


def _codes(frames: Sequence[Drawn]) -> dict[str, Any]:
    """Tokens for the page in 8 bits (unit vectors of their principal components, times 127) and positions.

    Cells are between lines, "columns" and "rows" of each view, in unit coordinates of the image.
    """
    tokens = torch.stack([one.tokens_VHWC for one in frames]).float()
    valid_FN = torch.stack([one.valid_VHW for one in frames]).flatten(1)
    V, H, W = tokens.shape[1:4]
    seen_NC = tokens.flatten(1, 3)[valid_FN]
    codes_FND = torch.zeros(*valid_FN.shape, COMPONENTS)
    codes_FND[valid_FN] = principal(seen_NC, COMPONENTS)
    total = (seen_NC - seen_NC.mean(0)).square().sum()
    unit_FND = codes_FND / codes_FND.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    bytes_FND = (127 * unit_FND).round().to(torch.int8)
    affine_FV23 = torch.stack([one.affine_V23 for one in frames])
    return {
        "grid": [V, H, W, COMPONENTS],
        "kept": float(codes_FND.square().sum() / total.clamp(min=1e-9)),
        "codes": [base64.b64encode(of.numpy().tobytes()).decode() for of in bytes_FND],
        "valid": valid_FN.int().tolist(),
        "columns": _lines(affine_FV23[:, :, 0, 0], affine_FV23[:, :, 0, 2], W),
        "rows": _lines(affine_FV23[:, :, 1, 1], affine_FV23[:, :, 1, 2], H),
    }


def _lines(scale_FV: Tensor, start_FV: Tensor, cells: int) -> list[list[list[float]]]:
    """Where the cells of a grid begin and end along one side of the image, in the grid's order.

    Images may be resized, padded, cropped or mirrored; turned ones the probe refuses (``area_mean``).
    """
    at_L = torch.arange(cells + 1) / cells
    return (scale_FV[..., None] * at_L + start_FV[..., None]).double().round(decimals=6).tolist()


def _table(report: ProbeReport, head: str) -> dict[str, Any]:
    rows = [row for row in report.rows if row.head == head]
    if head == "dpt":
        rows += [row for row in report.rows if row.source == MEAN and row.head == "linear"]
    versus = list(dict.fromkeys(name for row in rows for name in row.differences or {}))
    return {
        "head": head,
        "titles": [_title(name, report.depth.unit) for name in METRICS],
        "versus": versus,
        "rows": [
            {
                "source": row.source,
                "site": row.site or "",
                "reference": row.reference,
                "numbers": [
                    with_interval(f"{row.metrics[name]:.3f}", row, name, 3) if name in row.metrics else ""
                    for name in METRICS
                ],
                "against": [difference_text((row.differences or {}).get(name)) for name in versus],
                "by_seed": ", ".join(f"{value:.4f}" for value in row.by_seed or []),
            }
            for row in rows
        ],
    }


def _title(name: str, unit: str) -> str:
    plain, aligned, _ = name.partition("_aligned")
    title = TITLES[plain] + (f" ({unit})" if plain == "rmse" and unit == "m" else "")
    return f"{title}, aligned" if aligned else title


def _points(report: ProbeReport) -> dict[str, Any] | None:
    rows = [row for row in report.rows if row.points_cm]
    if not rows:
        return None
    names = list(rows[0].points_cm or {})
    return {
        "names": names,
        "rows": [
            (row.source, row.site or "", [f"{(row.points_cm or {})[name]:.1f}" for name in names])
            for row in rows
        ],
    }


def _jpeg(image_3HW: Tensor) -> str:
    from PIL import Image

    pixels = (255 * image_3HW.permute(1, 2, 0).clamp(0, 1)).round().byte().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sized(path: Path) -> dict[str, Any]:
    """A PNG as data, with the width in CSS pixels at which its text has the size that it was drawn in."""
    from PIL import Image

    with Image.open(path) as image:
        width = round(96 / DPI * image.width)
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"uri": uri, "width": width}
