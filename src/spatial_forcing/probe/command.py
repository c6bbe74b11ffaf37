"""The command ``probe``: options checked before anything is loaded, one pass per policy, files and tables."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.errors import SpatialForcingError, UnknownNameError, check_can_report
from spatial_forcing.files import check_folder
from spatial_forcing.probe.assemble import rows_of
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import Depths, check_source, kept_on_disk, recorded
from spatial_forcing.probe.frames import ProbeFrames, split_episodes
from spatial_forcing.probe.points import columns_of
from spatial_forcing.probe.policies import (
    ProbedPolicy,
    check_sites,
    load_policies,
    named_policies,
    trained_on,
    untrained,
)
from spatial_forcing.probe.pseudo import pseudo
from spatial_forcing.probe.reading import HEADS, HeadSettings
from spatial_forcing.probe.records import ProbedHead, ProbeReport, probe_section
from spatial_forcing.probe.rerun_log import rerun_module, write_rrd
from spatial_forcing.probe.run import Plan, PolicyNumbers, read_policies, tallies_of
from spatial_forcing.probe.suggest import ranked_sites
from spatial_forcing.probe_options import ProbeOptions
from spatial_forcing.probe_results import DepthUsed
from spatial_forcing.provenance import made_with

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

OUT = Path("outputs/probe")
JSON = "probe.json"


def probe(options: ProbeOptions, console: "Console") -> ProbeReport:
    """Probes policies, writes ``probe.json``, figures and ``probe.html``, and prints tables.

    Raises:
        SpatialForcingError: see :func:`probed`.
    """
    from spatial_forcing.console import stages
    from spatial_forcing.probe.table import report_tables, suggestion_table

    with stages(console) as bars:
        report, written = probed(options, bars)
    for table in report_tables(report):
        console.print(table)
    if report.suggestion is not None:
        console.print(suggestion_table(report.suggestion))
    for note in report.notes:
        console.print(note)
    for path in written:
        print(path)
    return report


def probed(options: ProbeOptions, bars: "Progress") -> tuple[ProbeReport, list[Path]]:
    """Probes policies and writes ``probe.json``, figures and ``probe.html``.

    Args:
        options: what to probe.
        bars: gets one for each policy.

    Returns:
        What was found, and the files.

    Raises:
        SpatialForcingError: an option, a policy, the data set or its depth does not fit; before anything is
            read, wherever that can be known.
    """
    started = time.perf_counter()
    check_can_report()
    named, out = _checked(options), options.out or OUT
    made = made_with()
    dataset = open_dataset(str(options.dataset))
    split = split_episodes(dataset.meta.total_episodes, _test_episodes(options.test_episodes))
    frames = ProbeFrames(dataset, split, options.max_frames, options.batch_size)
    columns = columns_of(options.positions, dataset)
    policies = load_policies(named, dataset, rename=_pairs(options.rename), device=options.device)
    sites = {policy.name: check_sites(policy, options.sites) for policy in policies}
    depths = _depths(options, dataset, policies[0])
    settings = HeadSettings(options.heads, options.seeds, options.far, device=options.device)
    notes = _notes(options, depths) + _notes_on_training(named, dataset, split.test)
    if options.untrained:
        policies, sites = _with_untrained(policies, sites, notes)
    every = {p.name: _dpt_sites(p, sites[p.name], options) for p in policies}
    with tempfile.TemporaryDirectory(prefix="spatial-forcing-probe-") as folder:
        if depths.kind == "pseudo" and len(policies) > 1:
            depths = kept_on_disk(depths, dataset.meta.total_frames, Path(folder))
        plan = Plan(frames, depths, settings, columns, _teacher(options))
        numbers = read_policies(policies, sites, every, plan, _bar_each(bars, frames))
    aligned = {policy.name: _nearest_read(policy, numbers[policy.name]) for policy in policies}
    report = ProbeReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **made,
        dataset=str(options.dataset),
        cameras=list(policies[0].cameras.values()),
        depth=DepthUsed(name=depths.name, kind=depths.kind, unit=depths.unit, far=options.far),
        policies=[_head(policy, named, numbers[policy.name]) for policy in policies],
        train_episodes=frames.episodes("train"),
        test_episodes=frames.episodes("test"),
        train_frames=frames.count("train"),
        test_frames=frames.count("test"),
        settings=_settings(options, settings),
        rows=rows_of(numbers, list(columns), aligned),
        notes=notes,
        seconds=time.perf_counter() - started,
    )
    if options.suggest_site:
        first = policies[0]
        report.suggestion = ranked_sites(first.name, tallies_of(numbers[first.name]), first.aligned_site)
    return report, _write(report, numbers, out, options)


def _checked(options: ProbeOptions) -> dict[str, str]:
    """Validates the options by themselves; returns the policies by name."""
    named = named_policies(options.policies)
    checked_device(options.device)
    if options.dataset is None:
        raise ProbeError("Name the data set to probe on: --dataset <folder or owner/name>.")
    for head in options.heads:
        if head not in HEADS:
            raise UnknownNameError("head of the probe", head, HEADS)
    if not options.heads or not options.seeds:
        raise ProbeError("The probe needs at least one head (linear, dpt) and one seed.")
    if options.suggest_site and "linear" not in options.heads:
        raise ProbeError("--suggest-site ranks sites by the linear head: add linear to --heads.")
    if options.max_frames is not None and options.max_frames < 3:
        raise ProbeError(f"--max-frames must be at least 3, got {options.max_frames}.")
    if not options.far > 0 or options.batch_size < 1:
        raise ProbeError("--far must be above zero, and --batch-size at least 1.")
    check_source(options.depth)
    if options.rerun:
        rerun_module()
    check_folder(options.out or OUT)
    return named


def _test_episodes(words: Sequence[str]) -> float | list[int]:
    """Parses --test-episodes: a fraction ("0.2") or episode numbers ("3", "7")."""
    try:
        if len(words) == 1 and "." in words[0]:
            return float(words[0])
        return [int(word) for word in words]
    except ValueError as error:
        raise ProbeError(
            f"--test-episodes is a fraction such as 0.2, or numbers of episodes; got {' '.join(words)!r}."
        ) from error


def _pairs(words: Sequence[str]) -> dict[str, str]:
    split = [word.partition("=") for word in words]
    pairs = {theirs: ours for theirs, _, ours in split}
    if not all(pairs) or not all(pairs.values()):
        raise ProbeError(
            f"--rename takes <camera of the data set>=<camera of the policy>, got {list(words)}."
        )
    return pairs


def _depths(options: ProbeOptions, dataset: Any, policy: ProbedPolicy) -> Depths:
    if options.depth == "recorded":
        return recorded(dataset, list(policy.cameras.values()))
    return pseudo(options.depth.partition(":")[2], options.device)


def _teacher(options: ProbeOptions) -> Any:
    if options.teacher is None:
        return None
    from spatial_forcing.teachers import load_teacher

    return load_teacher(options.teacher, weights=options.teacher_checkpoint, device=options.device)


def _with_untrained(
    policies: list[ProbedPolicy], sites: dict[str, list[str]], notes: list[str]
) -> tuple[list[ProbedPolicy], dict[str, list[str]]]:
    """Adds the first policy with random weights to the policies; a note if it cannot be built."""
    first = policies[0]
    try:
        twin = untrained(first)
    except SpatialForcingError as error:
        notes.append(f"Without the untrained host as a reference: {error}")
        return policies, sites
    return [*policies, twin], {**sites, twin.name: sites[first.name]}


def _dpt_sites(policy: ProbedPolicy, sites: Sequence[str], options: ProbeOptions) -> list[str]:
    if "dpt" not in options.heads:
        return []
    return [policy.aligned_site] if list(options.sites) == ["all"] else list(sites)


def _nearest_read(policy: ProbedPolicy, numbers: PolicyNumbers) -> str:
    """The recommended site of a policy, or the first one that was read."""
    return policy.aligned_site if policy.aligned_site in numbers.sites else next(iter(numbers.sites))


def _notes(options: ProbeOptions, depths: Depths) -> list[str]:
    notes = []
    if depths.kind == "pseudo":
        notes.append(
            f"Depth is {depths.name}: the estimate of a model, not a measurement. A policy that holds what "
            "that model sees does well, mistakes included."
        )
    if depths.relative:
        notes.append("It has no metres: every number is in multiples of the median depth of its image.")
    return notes


def _notes_on_training(named: Mapping[str, str], dataset: Any, test: Sequence[int]) -> list[str]:
    """A note on policies that were trained on episodes on which heads are judged."""
    seen = {name: trained_on(where, dataset, test) for name, where in named.items()}
    names = [name for name, episodes in seen.items() if episodes]
    if not names:
        return []
    most = max(len(episodes) for episodes in seen.values())
    return [
        f"The heads were not fitted on the held-out episodes, but {', '.join(names)} trained on {most} of "
        f"these {len(test)}: what a policy knows by heart counts as what it reads. --test-episodes names "
        "others."
    ]


def _settings(options: ProbeOptions, settings: HeadSettings) -> dict[str, Any]:
    said = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    return {**said, "ridges": list(settings.ridges), "dpt_recipe": asdict(settings.recipe)}


def _head(policy: ProbedPolicy, named: Mapping[str, str], numbers: PolicyNumbers) -> ProbedHead:
    return ProbedHead(
        name=policy.name,
        type=policy.loaded.config.type,
        checkpoint=named.get(policy.name, "random weights"),
        sites=list(numbers.sites),
        aligned_site=policy.aligned_site,
    )


def _bar_each(bars: "Progress", frames: ProbeFrames) -> Callable[[str], Any]:
    """Makes a progress bar for each policy."""
    total = frames.count("train") + frames.count("test")

    @contextmanager
    def stage(name: str) -> Iterator[Callable[[int], None]]:
        bar = bars.add_task(f"frames through {name}", total=total)
        yield lambda done: bars.advance(bar, done)

    return stage


def _pictures(report: ProbeReport, numbers: Mapping[str, PolicyNumbers], out: Path) -> list[Path]:
    """Writes figures and the page."""
    from spatial_forcing.probe.figures import layer_figure, reading_images, token_colours
    from spatial_forcing.probe.page import write_page

    drawn = {name: of.drawn for name, of in numbers.items()}
    pictures: dict[str, Path] = {}
    section = probe_section(report)
    if section.stacks:
        pictures["layers"] = out / "layers.svg"
        layer_figure(section, pictures["layers"], out / "layers.png")
    pictures |= {path.stem: path for path in reading_images(drawn, out, report.depth)}
    pictures["tokens"] = token_colours(drawn, out / "tokens.png")
    page = write_page(report, drawn, pictures, out / "probe.html")
    return [*pictures.values(), page]


def _write(
    report: ProbeReport, numbers: Mapping[str, PolicyNumbers], out: Path, options: ProbeOptions
) -> list[Path]:
    """Writes all files into ``out``; ``probe.json`` last, so that its presence means all are there."""
    out.mkdir(parents=True, exist_ok=True)
    written = _pictures(report, numbers, out)
    if options.rerun:
        written.append(write_rrd({name: of.drawn for name, of in numbers.items()}, report, out / "probe.rrd"))
    return [*written, report.save(out / JSON)]
