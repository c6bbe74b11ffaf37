"""The command ``spatial-forcing teachers``. Its options are in ``options.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from spatial_forcing.console import stages
from spatial_forcing.device import checked_device
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder, size_text
from spatial_forcing.provenance import machine_memory, made_with
from spatial_forcing.structure.options import Teachers
from spatial_forcing.structure.rank import (
    Sample,
    StructureError,
    check_grid,
    layer_scores,
    layers_of,
    sample_of,
)
from spatial_forcing.structure.records import LayerScores, LeftOut, Score, TeacherScores
from spatial_forcing.teachers import RECORDS, find_teacher, load_teacher
from spatial_forcing.teachers.base import FrozenTeacher, named_dtype
from spatial_forcing.teachers.hub import is_here
from spatial_forcing.teachers.record import TeacherRecord

# Why a teacher is left out that nobody named: such names are printed together.
NOT_HERE = "not downloaded"


def list_or_score(options: Teachers) -> None:
    """Lists the registered teachers, or scores teachers on a data set; see the options.

    Raises:
        SpatialForcingError: options that need a data set, without one.
        UnknownNameError: no such teacher, or camera.
        NoSuchLayerError: a teacher does not have a layer.
        StructureError: too few frames, or a grid that does not fit.
    """
    console = Console()
    if options.dataset is not None:
        found = score(options, made_with())
        print_scores(found, console)
        if options.out is not None:
            print(found.save(options.out))
        return
    needs_data = {name: value for name, value in vars(options).items() if name != "commercial"}
    if said := [name for name, value in needs_data.items() if value != getattr(Teachers, name)]:
        flags = ", ".join(f"--{name}" for name in said)
        raise SpatialForcingError(f"{flags}: say of which data set, --dataset <folder, or owner/name>.")
    records = {name: RECORDS[name] for name in RECORDS if allowed(options, name)}
    console.print(teacher_table(records, memory_bytes()))


def score(options: Teachers, made: Mapping[str, Any]) -> TeacherScores:
    """Scores the teachers in the options, or all whose weights are on this machine.

    Everything that can be wrong is checked, and every teacher loaded, before the first looks at a frame.
    """
    assert options.dataset is not None
    checked_device(options.device)
    for name in options.teachers:
        find_teacher(name)
    if options.out is not None:
        if options.out.is_dir():
            raise StructureError(f"{options.out} is a folder; --out names the JSON file for the scores.")
        check_folder(options.out.parent)
    sample = sample_of(options.dataset, options.frames, options.grid, options.cameras or None)
    teachers, left_out = loaded(options, sample)
    scores = list[LayerScores]()
    with stages(Console(stderr=True)) as bars:
        for name, teacher in teachers.items():
            bar = bars.add_task(name, total=len(sample.indices))
            scores += layer_scores(
                teacher,
                name,
                sample,
                options.layers,
                control=find_teacher(name).control,
                progress=lambda n, bar=bar: bars.advance(bar, n),
            )
    scores.sort(key=lambda one: -(one.local_distant.value or 0))
    return _gathered(options, sample, scores, left_out, made)


def loaded(options: Teachers, sample: Sample) -> tuple[dict[str, FrozenTeacher], list[LeftOut]]:
    """Loads the teachers in the options, or all that need no download, with the reasons for those left out.

    Raises:
        SpatialForcingError: one that was named cannot be loaded, or none can.
    """
    reasons = {} if options.teachers else not_here()
    found: dict[str, FrozenTeacher] = {}
    for name in options.teachers or [name for name in RECORDS if name not in reasons]:
        if not allowed(options, name):
            reasons[name] = f"its licence, {find_teacher(name).licence}, forbids commercial use."
            continue
        try:
            teacher = load_teacher(name, dtype=named_dtype(options.dtype), device=options.device)
            layers_of(teacher, options.layers)
            check_grid(teacher, name, sample.grid)
        except SpatialForcingError as error:
            if options.teachers:
                raise
            reasons[name] = str(error)
        else:
            found[name] = teacher
    if not found:
        said = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        raise StructureError(f"No teacher can be scored:{said}")
    return found, [LeftOut(teacher=name, reason=reason) for name, reason in reasons.items()]


def _gathered(
    options: Teachers,
    sample: Sample,
    scores: list[LayerScores],
    left_out: list[LeftOut],
    made: Mapping[str, Any],
) -> TeacherScores:
    return TeacherScores(
        dataset=str(options.dataset),
        cameras=list(sample.cameras),
        episodes=len(set(sample.episodes)),
        frames=len(sample.indices),
        frame_indices=list(sample.indices),
        grid=list(sample.grid),
        scores=scores,
        left_out=left_out,
        **made,
    )


def not_here() -> dict[str, str]:
    """Registered teachers whose weights are not on this machine, with how to get them."""
    reasons = {}
    for name in RECORDS:
        record = RECORDS[name]
        if not is_here(record):
            gate = f"; gated: accept its terms at {record.terms} and run `hf auth login`"
            reasons[name] = f"{NOT_HERE} ({record.licence}{gate if record.gated else ''})"
    return reasons


# ---- tables ------------------------------------------------------------------------------------------------


def teacher_table(records: Mapping[str, TeacherRecord], memory: int) -> Table:
    """Table of the registered teachers, from their records, without loading them.

    Args:
        records: by name.
        memory: bytes of this machine, or of its GPU; what does not fit is marked.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("teacher", "licence", "size", "layers", "weights", "what"):
        table.add_column(name, no_wrap=name in ("teacher", "layers"), overflow="fold")
    for name, record in sorted(records.items()):
        here = "none needed" if not record.takes_weights else "packaged" if record.packaged else "downloaded"
        there = "on the Hub, gated" if record.gated else "on the Hub"
        table.add_row(
            name,
            licence_text(record.licence, record.non_commercial),
            size_of(record, memory),
            f"{record.layers or 1} x {record.width or '?'}",
            here if is_here(record) else there,
            record.note,
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


def allowed(options: Teachers, name: str) -> bool:
    """Whether a teacher may be used under the options."""
    return not (options.commercial and find_teacher(name).non_commercial)


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
    console.print(cost_table(found))
    rows, cols = found.grid
    lines = [
        f"\n{found.frames} frames of {found.episodes} episodes of {found.dataset}, {len(found.cameras)} "
        f"views of {rows} x {cols} tokens. Below each score: its 95 % interval over episodes. *: a control. "
        "common: share of the mean token in the mean square; position, frame, content: of the variance "
        "around it. Stored: a frame in a cache that keeps tokens to a mean cosine of 0.99.",
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


def score_table(found: TeacherScores, columns: Mapping[str, tuple[str, int]], title: str) -> Table:
    """Table of scores with a row per teacher and layer."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("teacher", no_wrap=True)
    table.add_column("layer", justify="right", min_width=5)
    for name, _ in columns.values():
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.scores:
        table.add_row(
            one.teacher + (" *" if one.control else ""),
            "-" if one.layer is None else str(one.layer),
            *(score_text(getattr(one, key), digits) for key, (_, digits) in columns.items()),
        )
    return table


def cost_table(found: TeacherScores) -> Table:
    """Table of what the features cost: time of a frame, and its bytes in a cache."""
    table = Table(
        title="What they cost", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("teacher", "layer", "s per frame", "stored", "own tokens"):
        table.add_column(name, justify="left" if name == "teacher" else "right", no_wrap=True)
    for one in found.scores:
        table.add_row(
            one.teacher,
            "-" if one.layer is None else str(one.layer),
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
