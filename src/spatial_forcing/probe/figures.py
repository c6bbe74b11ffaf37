"""Figures of a depth probe: AbsRel by layer, predicted depth with its errors, tokens as PCA colours.

Shapes: F frames, V views, H W rows and columns of tokens or pixels, C channels, N tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.files import write_atomically
from spatial_forcing.plot_style import colours, style
from spatial_forcing.probe.image import draw_colours, draw_image, panels, probe_image, save_png
from spatial_forcing.probe.records import MEAN, PIXELS, SHUFFLED, TEACHER, UNTRAINED
from spatial_forcing.probe.run import Drawn
from spatial_forcing.probe_results import DepthUsed, LayerPoint, ProbeSection

MARKERS = "osD^vP"
LINES = {MEAN: ":", PIXELS: "--", TEACHER: "-.", SHUFFLED: (0, (1, 3))}
GREY = "0.45"
STACKS = {"vision": "layer of the vision encoder", "blocks": "layer of the policy's blocks"}


def layer_figure(section: ProbeSection, svg: Path, png: Path) -> None:
    """Writes the plot of AbsRel by layer for all policies, as SVG and PNG; see :func:`layer_plot`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with style():
        figure = layer_plot(section).figure
        # Without date and version, equal results give equal files.
        write_atomically(
            svg, lambda to: figure.savefig(to, format="svg", metadata={"Date": None, "Creator": None})
        )
        write_atomically(png, lambda to: figure.savefig(to, format="png"))


def layer_plot(section: ProbeSection) -> Any:
    """Plots AbsRel by layer for all policies.

    A panel for each stack of blocks, on one scale; bands are 95 % over test episodes, horizontal lines the
    references, and a ring marks the recommended site.

    Returns:
        An axis of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stacks = [stack for stack in STACKS if stack in section.stacks]
    figure = Figure(figsize=(2.0 + 3.6 * len(stacks), 3.1), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(stacks), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for stack in stacks for name in section.stacks[stack]))
    policies = [name for name in names if name != UNTRAINED]
    looks = {**colours(policies), UNTRAINED: GREY}
    for axis, stack in zip(axes, stacks, strict=True):
        axis.set_xlabel(STACKS[stack])
        for i, name in enumerate(names):
            aligned = section.aligned.get(name) if stack == "blocks" else None
            marker = "x" if name == UNTRAINED else MARKERS[i % len(MARKERS)]
            points = section.stacks[stack].get(name, [])
            _draw_policy(axis, name, points, {"color": looks[name], "marker": marker}, aligned)
        for name, value in section.lines.items():
            axis.axhline(value, color=GREY, linewidth=1.2, linestyle=LINES.get(name, "-"), label=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel(f"AbsRel, {section.depth.name}")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return axes[0]


def _draw_policy(
    axis: Any, name: str, points: Sequence[LayerPoint], look: Mapping[str, Any], aligned: int | None
) -> None:
    layers, values = [p.layer for p in points], [p.absrel for p in points]
    axis.plot(layers, values, markersize=4, linewidth=1.4, label=name, **look)
    if points and name != UNTRAINED and all(p.low is not None for p in points):
        lows, highs = [p.low for p in points], [p.high for p in points]
        axis.fill_between(layers, lows, highs, color=look["color"], alpha=0.08, linewidth=0)
    if aligned in layers and name != UNTRAINED:
        at, ring = values[layers.index(aligned)], {"markersize": 10, "markerfacecolor": "none"}
        axis.plot([aligned], [at], marker="o", color=look["color"], linewidth=0, **ring)


def reading_images(drawn: Mapping[str, Sequence[Drawn]], folder: Path, depth: DepthUsed) -> list[Path]:
    """Writes a PNG per group of policies on one grid: image, depth, predictions, errors, on one colour bar.

    Args:
        drawn: test frames, by policy.
        folder: for the files.
        depth: what was read.
    """
    # Policies of one group look at the same parts of the images, so that one true depth is that of all.
    groups: dict[tuple[Any, ...], dict[str, Sequence[Drawn]]] = {}
    for name, frames in drawn.items():
        if frames:
            where = [round(number, 5) for one in frames for number in one.affine_V23[0].flatten().tolist()]
            groups.setdefault((*frames[0].depth_Vhw.shape, *where), {})[name] = frames
    unit = "m" if depth.unit == "m" else "medians"
    pseudo = depth.kind == "pseudo"
    paths = []
    for number, group in enumerate(groups.values()):
        first = next(iter(group.values()))
        path = folder / ("readings.png" if number == 0 else f"readings-{number + 1}.png")
        paths.append(
            probe_image(
                torch.stack([one.images[0] for one in first]),
                torch.stack([one.depth_Vhw[0] for one in first]),
                {name: torch.stack([one.predicted_Vhw[0] for one in of]) for name, of in group.items()},
                path,
                f"{unit}, pseudo" if pseudo else unit,
                affine_F23=torch.stack([one.affine_V23[0] for one in first]),
                truth="pseudo depth" if pseudo else "true depth",
            )
        )
    return paths


def token_colours(drawn: Mapping[str, Sequence[Drawn]], path: Path) -> Path:
    """Writes a PNG of each policy's tokens as PCA colours: their first three principal components as red,
    green and blue, found over all frames drawn of that policy, each stretched to its middle 98 %. A token is
    drawn where it lies in the image; grey is where there is none."""
    names = [name for name, frames in drawn.items() if frames]
    first = drawn[names[0]]
    H, W = first[0].images[0].shape[1:]
    figure, axes = panels(len(first), 1 + len(names), H / W)
    for row, one in enumerate(first):
        draw_image(axes[row, 0], one.images[0])
        axes[row, 0].set_ylabel(f"episode {one.episode}")
    for column, name in enumerate(names, start=1):
        frames = drawn[name]
        maps = principal_colours([one.tokens_VHWC[0] for one in frames], [one.valid_VHW[0] for one in frames])
        for row, (one, rgb_HW3) in enumerate(zip(frames, maps, strict=True)):
            draw_colours(axes[row, column], rgb_HW3, (one.affine_V23[0], H, W))
    for axis, name in zip(axes[0], ["image", *names], strict=True):
        axis.set_title(name, fontsize=9)
    figure.supxlabel("grey: no token's cell", fontsize=8)
    return save_png(figure, path)


def principal_colours(maps: Sequence[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
    """PCA colours rgb_HW3 in [0, 1] of maps of tokens (H, W, C); NaN where they are not valid (H, W)."""
    valid_FHW = torch.stack(list(valid))
    rgb_FHW3 = torch.full((*valid_FHW.shape, 3), torch.nan)
    if valid_FHW.any():
        components_N3 = principal(torch.stack(list(maps))[valid_FHW].float(), 3)
        low, high = (components_N3.quantile(q, 0) for q in (0.01, 0.99))
        rgb_FHW3[valid_FHW] = ((components_N3 - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return list(rgb_FHW3)


def principal(x_NC: Tensor, count: int) -> Tensor:
    """The first principal components of some tokens, (N, count); zero where there are fewer."""
    centred = x_NC - x_NC.mean(0)
    found = min(count, *centred.shape)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:found]
    # The sign of a component is arbitrary: make its largest element positive.
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    scores = centred @ (directions * signs).T
    return torch.cat([scores, scores.new_zeros(len(scores), count - found)], 1)
