"""The command ``spatial-forcing teachers``. Its options are in ``options.py``."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from spatial_forcing.console import stages
from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_folder
from spatial_forcing.probe.depths import check_source
from spatial_forcing.provenance import made_with
from spatial_forcing.structure.depth import SampleDepth, depth_of
from spatial_forcing.structure.options import Teachers
from spatial_forcing.structure.rank import (
    Sample,
    StructureError,
    check_grid,
    layer_scores,
    layers_of,
    sample_of,
)
from spatial_forcing.structure.records import DepthRead, LayerScores, LeftOut, TeacherScores
from spatial_forcing.structure.tables import NOT_HERE, SPEED, memory_bytes, print_scores, teacher_table
from spatial_forcing.teachers import RECORDS, find_teacher, load_teacher
from spatial_forcing.teachers.base import FrozenTeacher, named_dtype
from spatial_forcing.teachers.hub import is_here


def list_or_score(options: Teachers) -> None:
    """Lists the registered teachers, or scores teachers on a data set; see the options.

    Raises:
        SpatialForcingError: options that need a data set, without one.
        UnknownNameError: no such teacher, or camera.
        NoSuchLayerError: a teacher does not have a layer.
        StructureError: too few frames, or a grid that does not fit.
        ProbeError: the depth that was named is not there.
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
    console.print(teacher_table(records, memory_bytes(), narrow=console.width < 96))
    console.print(SPEED, style="dim", highlight=False)


def score(options: Teachers, made: Mapping[str, Any]) -> TeacherScores:
    """Scores the teachers in the options, or all whose weights are on this machine.

    Everything that can be wrong is checked, and every teacher loaded, before the first looks at a frame.
    """
    assert options.dataset is not None
    checked_device(options.device)
    if options.depth is not None:
        check_source(options.depth)
    for name in options.teachers:
        find_teacher(name)
    if options.out is not None:
        if options.out.is_dir():
            raise StructureError(f"{options.out} is a folder; --out names the JSON file for the scores.")
        check_folder(options.out.parent)
    sample = sample_of(options.dataset, options.frames, options.grid, options.cameras or None)
    teachers, left_out = loaded(options, sample)
    depth = depth_of(open_dataset(options.dataset), sample, options.depth, options.device)
    more: dict[str, Any] = {"absrel": depth.absrel} if isinstance(depth, SampleDepth) else {}
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
                **more,
            )
    scores.sort(key=lambda one: -(one.local_distant.value or 0))
    said = depth.of_grid(sample.grid) if isinstance(depth, SampleDepth) else depth
    return _gathered(options, sample, scores, left_out, said, made)


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
    depth: DepthRead,
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
        depth=depth,
        **made,
    )


def allowed(options: Teachers, name: str) -> bool:
    """Whether a teacher may be used under the options."""
    return not (options.commercial and find_teacher(name).non_commercial)


def not_here() -> dict[str, str]:
    """Registered teachers whose weights are not on this machine, with how to get them."""
    reasons = {}
    for name in RECORDS:
        record = RECORDS[name]
        if not is_here(record):
            gate = f"; gated: accept its terms at {record.terms} and run `hf auth login`"
            reasons[name] = f"{NOT_HERE} ({record.licence}{gate if record.gated else ''})"
    return reasons
