"""Console tables of ``spatial-forcing teachers``: what there is, and scores."""

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spatial_forcing.console import narrow_table
from spatial_forcing.files import size_text
from spatial_forcing.provenance import machine_memory
from spatial_forcing.structure.records import DepthRead, LayerScores, LeftOut, Score, TeacherScores
from spatial_forcing.teachers.hub import is_here
from spatial_forcing.teachers.record import TeacherRecord
from spatial_forcing.teachers.speed import seconds_per_image

# Why a teacher is left out that nobody named: such names are printed together.
NOT_HERE = "not downloaded"
SPEED = (
    "s/image: lower bound for this machine at the teacher's default resolution: two operations for each "
    "weight and patch, at the rate of a large matrix product measured just now, beside whatever else runs. "
    "Licences: only those that forbid commercial use are marked; the others have terms to read, too."
)
# Held-out episodes.
FEW = 5
NO_CONTROL = "No control is among these teachers: add pixels and untrained-tiny to compare them with."


def teacher_table(records: Mapping[str, TeacherRecord], memory: int, *, narrow: bool = False) -> Table:
    """Table of the registered teachers, from their records, without loading them.

    Args:
        records: by name.
        memory: bytes of this machine, or of its GPU; what does not fit is marked.
        narrow: wrap licences, for 80 columns.
    """
    table = narrow_table()
    table.add_column("teacher", min_width=23)
    table.add_column("licence", max_width=14 if narrow else None)
    for name in ("size", "s/image", "layers", "weights"):
        table.add_column(name, no_wrap=name in ("s/image", "layers"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, record in sorted(records.items()):
        here = "none" if not record.takes_weights else "packaged" if record.packaged else "downloaded"
        there = "Hub, gated" if record.gated else "Hub"
        least = seconds_per_image(record, device)
        table.add_row(
            f"{name}\n[dim]{escape(record.note)}[/dim]",
            licence_text(record.licence, record.non_commercial),
            size_of(record, memory),
            "–" if least is None else f"> {least:.0f}" if least > 10 else f"> {least:.2g}",
            f"{record.layers or 1} x {record.width or '?'}",
            here if is_here(record) else there,
        )
    return table


def size_of(record: TeacherRecord, memory: int) -> str:
    """Number of parameters; marked where their float32, and as much again to compute, does not fit."""
    count = record.parameters
    if count is None:
        return "–"
    text = f"{count / 1e9:.1f} B" if count > 1e9 else f"{count / 1e6:.3g} M"
    return text if 8 * count < memory else f"{text}, too large here"


def memory_bytes() -> int:
    """Memory of the largest GPU, or of the machine without one."""
    if torch.cuda.is_available():
        return max(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return machine_memory()


def licence_text(licence: str, non_commercial: bool) -> str:
    """Formats a licence, with a mark if it forbids commercial use."""
    return licence + (", not commercial" if non_commercial else "")


# Name and digits of each score, by table.
STRUCTURE = {
    "local_distant": ("near - far", 3),
    "decay": ("decay", 3),
    "contrast": ("contrast", 3),
    "effective_rank": ("eff. rank", 1),
}
SHARES = {
    "common": ("common", 3),
    "position": ("position", 3),
    "frame": ("frame", 3),
    "content": ("content", 3),
}


def print_scores(found: TeacherScores, console: Console) -> None:
    """Prints the score tables, their data, licences, and the teachers left out."""
    console.print(score_table(found, STRUCTURE, "Spatial structure"), "")
    console.print(score_table(found, SHARES, "What tokens consist of"), "")
    if found.depth is not None and found.depth.mean is not None:
        console.print(depth_table(found, found.depth.mean), "")
    console.print(cost_table(found))
    rows, cols = found.grid
    lines = [
        f"\n{found.frames} frames of {found.episodes} episodes of {found.dataset}, {len(found.cameras)} "
        f"views of {rows} x {cols} tokens. Below each score: its 95 % interval over episodes. *: a control. "
        "common: share of the mean token in the mean square; position, frame, content: of the variance "
        "around it. Stored: a frame in a cache that keeps tokens to a mean cosine of 0.99.",
        depth_line(found.depth),
        *([] if any(one.control for one in found.scores) else [NO_CONTROL]),
        "Licences: " + ", ".join(sorted({f"{one.teacher} {one.licence}" for one in found.scores})),
        *left_out_lines(found.left_out),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """Which teachers were left out and why; those that are not on this machine in one line."""
    absent = [one for one in left_out if one.reason.startswith(NOT_HERE)]
    names = ", ".join(f"{one.teacher}{one.reason.removeprefix(NOT_HERE)}" for one in absent)
    said = [f"Not downloaded; --teachers <name> downloads one: {names}."] if absent else []
    return said + [f"Left out: {one.teacher}: {one.reason}" for one in left_out if one not in absent]


def _table(title: str, *numbers: str) -> Table:
    """An empty table with a row per teacher and layer."""
    table = narrow_table(title=title)
    table.add_column("teacher", no_wrap=True)
    table.add_column("layer", justify="right", min_width=5)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def named(one: LayerScores) -> tuple[str, str]:
    """A teacher, marked if a control, and its layer."""
    return one.teacher + (" *" if one.control else ""), "-" if one.layer is None else str(one.layer)


def score_table(found: TeacherScores, columns: Mapping[str, tuple[str, int]], title: str) -> Table:
    """Table of scores with a row per teacher and layer."""
    table = _table(title, *(name for name, _ in columns.values()))
    for one in found.scores:
        table.add_row(
            *named(one),
            *(score_text(getattr(one, key), digits) for key, (_, digits) in columns.items()),
        )
    return table


def depth_table(found: TeacherScores, mean: Score) -> Table:
    """Table of the AbsRel of depth read linearly from the features, the lowest first."""
    table = _table("Depth in the features", "AbsRel")
    read = [(one.absrel, named(one)) for one in found.scores if one.absrel is not None]
    for absrel, name in sorted(read, key=lambda one: one[0].value or 0):
        table.add_row(*name, score_text(absrel, 3))
    table.add_row("mean depth of each position", "", score_text(mean, 3), style="dim")
    return table


def depth_line(depth: DepthRead | None) -> str:
    """What depth was read from the features, or why none was."""
    if depth is None or depth.mean is None:
        return f"No depth was read: {depth.absent}" if depth is not None else ""
    few = "" if depth.test_episodes >= FEW else " So few that their interval says little: raise --frames."
    return (
        f"AbsRel: of {depth.name} read by a linear head fitted on {depth.train_episodes} of these episodes, "
        f"on the {depth.test_episodes} others.{few}"
    )


def cost_table(found: TeacherScores) -> Table:
    """Table of what the features cost: time of a frame, and its bytes in a cache."""
    table = _table("What they cost", "s per frame", "stored", "own tokens")
    for one in found.scores:
        table.add_row(
            *named(one),
            f"{one.seconds / found.frames:.3g}",
            "" if one.stored_bytes is None else size_text(one.stored_bytes),
            f"{one.own_grid[0]} x {one.own_grid[1]} x {one.width}",
        )
    return table


def score_text(score: Score, digits: int) -> str:
    """Formats a score with its interval on a second line."""
    if score.value is None:
        return "-"
    value = f"{score.value:.{digits}f}"
    if score.low is None or score.high is None:
        return value
    return f"{value}\n[dim]{score.low:.{digits}f}-{score.high:.{digits}f}[/dim]"
