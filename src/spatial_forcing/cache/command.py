"""The commands ``spatial-forcing cache`` and ``cache verify``. Their options are in ``options.py``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import (
    Extraction,
    chosen_cameras,
    extract,
    extract_layers,
    open_source,
)
from spatial_forcing.cache.joined import joined_share, own_device
from spatial_forcing.cache.layers import folder_of, stored_layers
from spatial_forcing.cache.layout import BESIDE, COMMAND, MANIFEST, CacheError, restore, what_in
from spatial_forcing.cache.spans import Span, spans_of_episodes
from spatial_forcing.cache.verify import broken_files, recompute, repair, written_with
from spatial_forcing.cache.write import Plan, Share, Watch, check_numbers
from spatial_forcing.console import duration, stages
from spatial_forcing.datasets import open_dataset
from spatial_forcing.files import check_folder, size_text


def write_cache(options: Any) -> None:
    """Writes a cache, or this process's share of it, and prints its cost first."""
    check_options(options)
    console, share = Console(stderr=True), joined_share()
    teacher = teacher_of(options)
    with stages(console) as bars:
        bar = bars.add_task(f"features of {options.teacher}", total=None)

        def announce(plan: Plan) -> None:
            for line in plan_lines(plan, share):
                console.print(line, highlight=False)
            bars.update(bar, total=plan.share)

        how = Extraction(
            cameras=options.cameras or None,
            codec=CodecOptions(options.codec, options.components, options.fidelity),
            grid=options.grid,
            batch_size=options.batch,
            decoders=options.decoders,
            spans=spans_of(options),
        )
        watch = Watch(announce, lambda n: bars.advance(bar, n))
        what = options.dataset, teacher, options.teacher, options.out
        if options.layers:
            extract_layers(*what, options.layers, how, share=share, watch=watch)
        else:
            extract(*what, how, share=share, watch=watch)
        bars.update(bar, total=bars.tasks[bar].completed)  # of a finished cache, nothing was announced
    finished = all((folder / MANIFEST).is_file() for folder in cache_folders(options.out))
    print(
        f"Wrote {options.out}"
        if finished
        else f"Share {share.rank} of {share.world} of {options.out} is done."
    )


def spans_of(options: Any) -> list[Span] | None:
    """Spans of frames of the episodes given in the options; None for all frames."""
    if not options.episodes:
        return None
    return spans_of_episodes(open_dataset(options.dataset).meta, options.episodes)


def cache_folders(root: Path) -> list[Path]:
    """The folders with one layer's cache each: ``root`` itself, if it is of one layer."""
    return list(stored_layers(root).values()) or [root]


def check_options(options: Any) -> None:
    """Validates the options of ``cache`` before a teacher is loaded, which may take long.

    Raises:
        CacheError: no data set or teacher was named, a number makes no sense, options exclude each other, or
            the folder cannot be written to or is a data set's.
        SpatialForcingError: no such episode.
        DatasetError: no such data set.
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
    if options.layers and options.layer is not None:
        raise CacheError(
            f"Give --layer for a cache of one layer, or --layers for several; got --layer {options.layer} "
            f"and --layers {' '.join(map(str, options.layers))}."
        )
    if (options.out / "meta" / "info.json").is_file():
        raise CacheError(
            f"{options.out} is the folder of a data set: choose another for the features, such as "
            f"{options.out.with_name(options.out.resolve().name + '-features')}."
        )
    CodecOptions(options.codec, options.components, options.fidelity)
    check_numbers(options.batch, options.grid, options.decoders)
    check_folder(options.out, CacheError)
    own_device(options.device)
    chosen_cameras(open_dataset(options.dataset), options.cameras or None)
    spans_of(options)


def verify_cache(options: Any) -> None:
    """Verifies the checksum of every file, repairs if asked to, and recomputes a sample if it can.

    Of a cache of several layers it does so for all, or for the one that the options name. Of points or
    weights of the tokens only checksums are verified.

    Raises:
        CacheError: a file is broken and was not repaired, the features are not the teacher's, or points or
            weights are to be repaired.
    """
    if options.out.name in BESIDE:
        verify_beside(options)
        return
    folders = cache_folders(options.out) if options.layer is None else [folder_of(options.out, options.layer)]
    for name in BESIDE:
        if (options.out / name).is_dir():
            check_beside(options.out / name)
    broken = {folder: found for folder in folders if (found := broken_files(folder))}
    for folder, found in broken.items():
        for name, reason in found.items():
            what = reason.removesuffix(restore(folder)).strip()
            print(f"{(folder / name).relative_to(options.out)}: {what}")
    if options.repair and options.dataset is None:
        raise CacheError("--repair computes features again: say of which data set with --dataset.")
    if options.dataset is not None:
        check_numbers(1, None, options.decoders)
        own_device(options.device)
    if broken and not options.repair:
        count = sum(map(len, broken.values()))
        raise CacheError(
            f"{count} of the files of {options.out} cannot be used. Restore "
            f"{'that one' if count == 1 else 'them alone'} with: {COMMAND} verify --out {options.out} "
            f"--dataset {options.dataset or '<data set>'} --repair"
        )
    for folder, found in broken.items():
        check_folder(folder, CacheError)
        claimed = written_with(folder)
        repair(folder, list(found), lambda at=folder, claimed=claimed: rewrite(options, at, claimed))
        print(f"Restored {', '.join(str((folder / name).relative_to(options.out)) for name in found)}.")
    print(f"Every file of {options.out} matches its checksum.")
    if options.dataset is not None:
        for folder in folders:
            check_sample(options, folder)


def verify_beside(options: Any) -> None:
    """Verifies the checksums of a folder with points or weights of the tokens.

    Raises:
        CacheError: there are none, a file is broken, or they are to be repaired.
    """
    folder = options.out
    if options.repair:
        raise CacheError(
            f"--repair is for features, and {folder} holds a {what_in(folder)}. {restore(folder)}"
        )
    check_beside(folder)
    print(f"Every file of {folder} matches its checksum.")
    if options.dataset is not None:
        print(f"No sample was computed again: {folder} holds a {what_in(folder)}, and that is for features.")


def check_beside(folder: Path) -> None:
    """Raises :class:`CacheError` if points or weights of the tokens are not what was stored."""
    if broken := broken_files(folder):
        raise CacheError(
            f"{len(broken)} of the files of {folder} cannot be used ({', '.join(broken)}). {restore(folder)}"
        )


def check_sample(options: Any, folder: Path) -> None:
    """Recomputes a sample of a layer's features and compares it with the stored ones.

    Raises:
        CacheError: they are not the teacher's.
    """
    claimed = written_with(folder)
    teacher = claimed_teacher(options, claimed)
    how = extraction_of(claimed, options.decoders)
    frames, _ = open_source(options.dataset, teacher, claimed["teacher"], how)
    cosine = recompute(folder, frames, teacher, batch_size=claimed["batch_size"])
    of = "" if folder == options.out else f" of layer {claimed['layer']}"
    print(f"A sample{of} computed again: mean cosine {cosine:.4f} with what is stored, as promised.")


def rewrite(options: Any, folder: Path, claimed: dict[str, Any]) -> Path:
    """Rewrites missing files of a layer's cache with the options it was begun with."""
    teacher = claimed_teacher(options, claimed)
    how = extraction_of(claimed, options.decoders)
    return extract(options.dataset, teacher, claimed["teacher"], folder, how)


def extraction_of(claimed: dict[str, Any], decoders: int) -> Extraction:
    """The extraction options recorded in a cache's claim."""
    return Extraction(
        cameras=claimed["cameras"],
        codec=CodecOptions(**claimed["codec"]),
        grid=claimed["grid"] and tuple(claimed["grid"]),
        batch_size=claimed["batch_size"],
        decoders=decoders,
        spans=claimed.get("spans"),
    )


def claimed_teacher(options: Any, claimed: dict[str, Any]) -> Any:
    """Loads the teacher that a layer's cache was written with.

    Raises:
        CacheError: the options lead to another.
    """
    teacher = teacher_of(options, claimed)
    if teacher.fingerprint != claimed["teacher_fingerprint"]:
        raise CacheError(
            f"The cache was written with a teacher of fingerprint {claimed['teacher_fingerprint']}, these "
            f"options give {teacher.fingerprint}: name the same --teacher, --teacher-checkpoint, --layer and "
            "--resolution."
        )
    return teacher


def teacher_of(options: Any, claimed: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Loads the teacher of the options; what they leave open is taken from a cache's claim."""
    from spatial_forcing.teachers import load_teacher
    from spatial_forcing.teachers.base import named_dtype

    def option(name: str) -> Any:
        given = getattr(options, name)
        return claimed.get(name) if given is None else given

    layer, resolution = option("layer"), option("resolution")
    return load_teacher(
        option("teacher"),
        weights=options.teacher_checkpoint,
        resolution=tuple(resolution) if isinstance(resolution, list) else resolution,
        layer=-1 if layer is None else layer,
        dtype=named_dtype(option("dtype")),
        device=own_device(options.device),
    )


def plan_lines(plan: Plan, share: Share) -> list[str]:
    """Printable lines with the cost of a cache: frames, bytes, time."""
    lines = [
        f"{plan.frames} frames of {plan.views} views: {size_text(plan.raw_bytes)} in bfloat16, "
        f"{size_text(plan.stored_bytes)} stored ({plan.raw_bytes / plan.stored_bytes:.1f} x smaller)"
    ]
    for layer, codec in plan.codecs.items():
        report, of = codec["report"], "" if len(plan.codecs) == 1 else f"layer {layer}: "
        lines.append(
            f"{of}{codec['kind']}, {codec['components']} numbers per token; cosine of stored to raw tokens "
            f"{report['cosine_mean']:.4f} on average; without what all tokens share, "
            f"{report['cosine_centred_mean']:.4f} on average, "
            f"{report['cosine_centred_worst']:.3f} for the worst token"
        )
    if plan.seconds_per_frame is not None:
        left = plan.seconds_per_frame * plan.mine
        part = "" if share.world == 1 else f" of this process (share {share.rank} of {share.world})"
        lines.append(
            f"{plan.seconds_per_frame:.3f} s per frame: about {duration(left)} for {plan.mine} frames{part}"
        )
    return lines
