"""The folder of a comparison: whose it is, and what it notes.

<out>/comparison.json        everything that decides the result
<out>/warnings.json          what the checks before the first step warned of
<out>/features/              the teachers' features of the training episodes
<out>/runs/<arm>-f100-s0/    a run, see ``compare.run``
<out>/probe/                 what the depth probe found
<out>/results.json           everything that the report shows
<out>/report.html
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spatial_forcing.compare.arm import Arm
from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.plan import Comparison, Measures
from spatial_forcing.compare.split import Split
from spatial_forcing.files import check_folder, claim, read_json, write_json
from spatial_forcing.locks import FolderLock

NOTE = "comparison.json"
WARNINGS = "warnings.json"
# Of the folder while its runs go on, see ``compare.launch``.
RUNS_LOCK = ".runs"
# Of the measures those that decide the depth probe alone.
OF_THE_PROBE = ("probe", "probe_frames")
# In the note, seeds that were added when there were results.
ADDED = "seeds_added"


def check_taken(out: Path, comparison: Comparison) -> None:
    """Checks a folder as :func:`take_folder` does, and writes nothing."""
    check_folder(out, CompareError)
    note = out / NOTE
    if continued(out, comparison) is None and (note.is_file() or _holds_files(out)):
        claim(note, noted(comparison), what="comparison", only=True, beside=(ADDED,), error=CompareError)


def take_folder(out: Path, comparison: Comparison, *, only: bool = True) -> None:
    """Claims the folder for this comparison, or goes on in it, see :func:`continued`.

    Args:
        out: the folder.
        comparison: what it will hold.
        only: whether a folder that holds files but no comparison is refused.

    Raises:
        CompareError: it holds another comparison, or something else.
        FolderBusyError: it goes on otherwise than before, and another process trains there.
    """
    check_folder(out, CompareError)
    if continued(out, comparison) is not None:
        with FolderLock(out, RUNS_LOCK, wait=0):
            if (changed := continued(out, comparison)) is not None:
                write_json(out / NOTE, changed)
    claim(out / NOTE, noted(comparison), what="comparison", only=only, beside=(ADDED,), error=CompareError)


def continued(out: Path, comparison: Comparison) -> dict[str, Any] | None:
    """The folder's note as it will be where a comparison goes on otherwise than it was begun: with further
    seeds behind those that it has, on which no other run depends (or without some that have not begun), and
    with another depth probe, if none was made yet.

    Tests count on seeds that were chosen before any result was seen: those that were not are noted.

    Returns:
        None where nothing changes, or the folder holds something else.
    """
    if not (out / NOTE).is_file():
        return None
    found, wanted = read_json(out / NOTE, error=CompareError), json.loads(json.dumps(noted(comparison)))
    added = found.pop(ADDED, [])
    before, seeds = found.get("seeds", []), wanted["seeds"]
    shared = min(len(before), len(seeds))
    of_the_probe = {name: wanted["measures"][name] for name in OF_THE_PROBE}
    if (
        not before
        or before[:shared] != seeds[:shared]
        or any(_has_begun(out, seed) for seed in before[shared:])
    ):
        seeds = before
    if (out / "probe" / "probe.json").is_file():
        of_the_probe = {}
    changed = found | {"seeds": seeds, "measures": found.get("measures", {}) | of_the_probe}
    if found == wanted or changed != wanted:
        return None
    if any((out / "runs").glob("*/eval/[0-9]*.json")):
        added = [*added, *seeds[len(before) :]]
    added = [seed for seed in added if seed in seeds]
    return wanted | ({ADDED: added} if added else {})


def _has_begun(out: Path, seed: int) -> bool:
    """Whether a run of a seed has begun."""
    return any((out / "runs").glob(f"*-s{seed}/log.txt"))


def _holds_files(out: Path) -> bool:
    return out.exists() and any(not path.name.startswith(".") for path in out.iterdir())


def seeds_added(out: Path) -> list[int]:
    """The seeds of a comparison that were added when there were results."""
    path = out / NOTE
    return read_json(path, error=CompareError).get(ADDED, []) if path.is_file() else []


def noted(comparison: Comparison) -> dict[str, Any]:
    """Everything that determines a comparison's result, as plain data. What notes of earlier versions lack is
    there where it is used."""
    said = asdict(comparison)
    if comparison.policies is None:
        del said["policies"]
    for arm in said["arms"]:
        for later in ("of", "start"):
            if arm[later] is None:
                del arm[later]
    return said


def comparison_in(out: Path) -> Comparison:
    """Reads the comparison that a folder holds.

    Raises:
        CompareError: none, or its note is damaged.
    """
    path = out / NOTE
    if not path.is_file():
        raise CompareError(_no_comparison(out))
    saved = read_json(path, "Start the comparison in another folder.", CompareError)
    strange = ({f.name for f in fields(Comparison)} ^ saved.keys()) - {"policies", ADDED}
    if strange:
        raise CompareError(
            f"{path} does not hold a comparison of this version: {', '.join(sorted(strange))}."
        )
    return Comparison(
        flags=tuple(saved["flags"]),
        arms=tuple(Arm(**arm) for arm in saved["arms"]),
        seeds=tuple(saved["seeds"]),
        fractions=tuple(saved["fractions"]),
        split=Split(tuple(saved["split"]["train"]), tuple(saved["split"]["heldout"])),
        steps=saved["steps"],
        measures=Measures(**saved["measures"]),
        stored=saved["stored"],
        policies=saved.get("policies"),
    )


def _no_comparison(out: Path) -> str:
    """Error message for a folder without a comparison."""
    start = f"spatial-forcing compare --out {out} ... -- <flags of lerobot-train>, or spatial-forcing demo"
    if not out.is_dir():
        return (
            f"There is no folder {out}; one that has just been started takes it after a look at every arm. "
            f"Start a comparison: {start}"
        )
    if not ((out / "checkpoints").is_dir() or (out / "config.json").is_file()):
        return (
            f"{out} holds no comparison and no demo (no {NOTE}). Start one in a new or empty folder: {start}"
        )
    checkpoint = out / "checkpoints" / "last" / "pretrained_model" if (out / "checkpoints").is_dir() else out
    return (
        f"{out} is a training run, and the folder of a comparison was expected (with {NOTE}). What works for "
        f"this one: spatial-forcing probe --policies mine={out} --dataset <data set>, spatial-forcing doctor "
        f"--checkpoint {checkpoint}, and spatial-forcing eval --checkpoint {checkpoint} -- --env.type=..."
    )
