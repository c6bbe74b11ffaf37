"""What ``spatial-forcing cache`` does and prints. Its options are ``cli.Cache`` and ``cli.CacheVerify``."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import chosen_cameras, extract, open_dataset, open_source
from spatial_forcing.cache.layout import MANIFEST, CacheError
from spatial_forcing.cache.verify import broken_files, recompute, repair, written_with
from spatial_forcing.cache.write import Plan, Share, check_numbers
from spatial_forcing.console import stages
from spatial_forcing.device import checked_device
from spatial_forcing.files import check_folder, size_text
from spatial_forcing.processes import end_with_parent


def write_cache(options: Any) -> None:
    """Writes a cache, or this process's share of it, and says before what it will cost."""
    check_options(options)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process, and others beside it
        end_with_parent()
    console, share = Console(stderr=True), Share.from_environment()
    teacher = teacher_of(options)
    with stages(console) as bars:
        bar = bars.add_task(f"features of {options.teacher}", total=None)

        def announce(plan: Plan) -> None:
            for line in plan_lines(plan, share):
                console.print(line, highlight=False)
            bars.update(bar, total=plan.share)

        extract(
            options.dataset,
            teacher,
            options.teacher,
            options.out,
            cameras=options.cameras or None,
            options=CodecOptions(options.codec, options.components, options.fidelity),
            grid=options.grid,
            share=share,
            batch_size=options.batch,
            decoders=options.decoders,
            advance=lambda n: bars.advance(bar, n),
            announce=announce,
        )
        bars.update(bar, total=bars.tasks[bar].completed)  # of a finished cache, nothing was announced
    finished = (options.out / MANIFEST).is_file()
    print(
        f"Wrote {options.out}"
        if finished
        else f"Share {share.rank} of {share.world} of {options.out} is done."
    )


def check_options(options: Any) -> None:
    """What can be wrong before a teacher is loaded, which may take long.

    Raises:
        CacheError: no data set or teacher was named, there is no such data set, a number makes no sense, or
            the folder cannot be written to.
        UnknownNameError: no such teacher or camera.
        WeightsError: the teacher's file or folder does not say what it is.
        DeviceError: no such device.
    """
    from spatial_forcing.teachers import RECORDS, find_teacher

    if options.dataset is None:
        raise CacheError("Say which data set: --dataset <folder, or owner/name on the Hub>.")
    if options.teacher is None:
        raise CacheError(f"Say which teacher: --teacher <name>. Known: {', '.join(sorted(RECORDS))}.")
    find_teacher(options.teacher)
    CodecOptions(options.codec, options.components, options.fidelity)
    check_numbers(options.batch, options.grid, options.decoders)
    check_folder(options.out, CacheError)
    checked_device(options.device)
    chosen_cameras(open_dataset(options.dataset), options.cameras or None)


def verify_cache(options: Any) -> None:
    """Checks the sum of every file, repairs if asked to, and computes a sample again if it can.

    Raises:
        CacheError: a file is broken and was not repaired, or the features are not the teacher's.
    """
    broken = broken_files(options.out)
    for name, reason in broken.items():
        print(f"{name}: {reason}")
    if options.repair and options.dataset is None:
        raise CacheError("--repair computes features again: say of which data set with --dataset.")
    if options.dataset is not None:
        check_numbers(1, None, options.decoders)
        checked_device(options.device)
    if broken and not options.repair:
        raise CacheError(
            f"{len(broken)} of the files of {options.out} cannot be used. Restore exactly them with: "
            f"spatial-forcing cache verify --out {options.out} --dataset <data set> --repair"
        )
    claimed = written_with(options.out)
    if broken:
        check_folder(options.out, CacheError)
        repair(options.out, list(broken), lambda: rewrite(options, claimed))
        print(f"Restored {', '.join(broken)}.")
    print(f"Every file of {options.out} matches its checksum.")
    if options.dataset is not None:
        teacher = claimed_teacher(options, claimed)
        frames, _ = open_source(
            options.dataset, teacher, claimed["teacher"], claimed["cameras"], claimed["grid"]
        )
        cosine = recompute(options.out, frames, teacher, batch_size=claimed["batch_size"])
        print(f"A sample computed again: mean cosine {cosine:.4f} with what is stored, as promised.")


def rewrite(options: Any, claimed: dict[str, Any]) -> Path:
    """Finishes a cache with the options it was begun with."""
    assert options.dataset is not None
    return extract(
        options.dataset,
        claimed_teacher(options, claimed),
        claimed["teacher"],
        options.out,
        cameras=claimed["cameras"],
        options=CodecOptions(**claimed["codec"]),
        grid=claimed["grid"] and tuple(claimed["grid"]),
        batch_size=claimed["batch_size"],
        decoders=options.decoders,
    )


def claimed_teacher(options: Any, claimed: dict[str, Any]) -> Any:
    """The teacher a cache was written with.

    Raises:
        CacheError: the options lead to another.
    """
    teacher = teacher_of(options, claimed)
    if teacher.fingerprint != claimed["teacher_fingerprint"]:
        raise CacheError(
            f"The cache was written with a teacher of fingerprint {claimed['teacher_fingerprint']}, these "
            f"options give {teacher.fingerprint}: name the same --teacher, --weights, --layer and "
            "--resolution."
        )
    return teacher


def teacher_of(options: Any, claimed: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The teacher that options name; what they leave open is as a cache claims that it was written."""
    from spatial_forcing.teachers import load_teacher
    from spatial_forcing.teachers.base import named_dtype

    def option(name: str) -> Any:
        given = getattr(options, name)
        return claimed.get(name) if given is None else given

    layer, resolution = option("layer"), option("resolution")
    # torchrun starts a process for each GPU of a machine, and says which.
    local = os.environ.get("LOCAL_RANK")
    device = f"cuda:{local}" if options.device == "cuda" and local is not None else options.device
    return load_teacher(
        option("teacher"),
        weights=options.weights,
        resolution=tuple(resolution) if isinstance(resolution, list) else resolution,
        layer=-1 if layer is None else layer,
        dtype=named_dtype(option("dtype")),
        device=device,
    )


def plan_lines(plan: Plan, share: Share) -> list[str]:
    """What a cache will cost, for people."""
    report = plan.codec["report"]
    lines = [
        f"{plan.frames} frames of {plan.views} views: {size_text(plan.raw_bytes)} in bfloat16, "
        f"{size_text(plan.stored_bytes)} stored ({plan.raw_bytes / plan.stored_bytes:.1f} x smaller)",
        f"{plan.codec['kind']}, {plan.codec['components']} numbers a token; mean cosine to raw tokens "
        f"{report['cosine_mean']:.4f}, less their mean {report['cosine_centred_mean']:.4f} (worst "
        f"{report['cosine_centred_worst']:.3f})",
    ]
    if plan.seconds_per_frame is not None:
        left = plan.seconds_per_frame * plan.mine
        part = "" if share.world == 1 else f" of this process (share {share.rank} of {share.world})"
        lines.append(
            f"{plan.seconds_per_frame:.3f} s a frame: about {minutes(left)} for {plan.mine} frames{part}"
        )
    return lines


def minutes(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
