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
from spatial_forcing.probe.quality import METRICS
from spatial_forcing.probe.records import MEAN, ProbeReport
from spatial_forcing.probe.run import Drawn
from spatial_forcing.probe.table import difference_text, with_interval

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
        components=COMPONENTS,
        layers=Markup(svg[svg.index("<svg") :]) if svg else "",
        images={name: _data_uri(of) for name, of in pictures.items() if of.suffix == ".png"},
        # "</" could end the script early.
        similarity=Markup(json.dumps(similarity_data(drawn)).replace("</", "<\\/")),
    )
    return write_text(path, page)


def similarity_data(drawn: Mapping[str, Sequence[Drawn]]) -> dict[str, Any]:
    """Images and compressed tokens for the page's similarity view, as plain data."""
    named = {name: frames for name, frames in drawn.items() if frames}
    first = next(iter(named.values()), [])
    return {
        "frames": [
            {
                "label": f"episode {one.episode}, frame {one.frame}",
                "images": [_jpeg(image) for image in one.images],
            }
            for one in first
        ],
        "policies": [{"name": name, **_codes(frames)} for name, frames in named.items()],
    }


def _codes(frames: Sequence[Drawn]) -> dict[str, Any]:
    """Tokens for the page in 8 bits (unit vectors of their principal components, times 127) and positions."""
    tokens = torch.stack([one.tokens_VHWC for one in frames]).float()
    F, V, H, W, _ = tokens.shape
    codes_ND = principal(tokens.flatten(0, 3), COMPONENTS)
    total = (tokens.flatten(0, 3) - tokens.flatten(0, 3).mean(0)).square().sum()
    unit_ND = codes_ND / codes_ND.norm(dim=1, keepdim=True).clamp(min=1e-9)
    bytes_FN = (127 * unit_ND).round().to(torch.int8).unflatten(0, (F, -1))
    return {
        "grid": [V, H, W, codes_ND.shape[1]],
        "kept": float(codes_ND.square().sum() / total.clamp(min=1e-9)),
        "codes": [base64.b64encode(of.numpy().tobytes()).decode() for of in bytes_FN],
        "valid": [one.valid_VHW.flatten().int().tolist() for one in frames],
        "affine": [one.affine_V23.flatten().tolist() for one in frames],
    }


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


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
