"""What a checkpoint of OpenVLA on disk is, and whether it would load: read from headers alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import read_json
from spatial_forcing.openvla.config import OpenVLAConfig, OpenVLAConfigError
from spatial_forcing.openvla.layout import (
    ADVICE,
    CONFIG,
    FLOATS,
    STATISTICS,
    Entry,
    Found,
    adapter_in,
    is_adapter,
    part_files,
    part_of,
    plain_vision,
    read_part,
    read_weights,
    released_name,
    some,
    unwrapped,
)
from spatial_forcing.openvla.model import OpenVLA
from spatial_forcing.openvla.statistics import Statistics, StatisticsError
from spatial_forcing.openvla.variant import Wanted, config_of, variant_in_words, wants
from spatial_forcing.teachers.checkpoint import WeightsError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class CheckpointRecord:
    """Description of a checkpoint of OpenVLA.

    Attributes:
        path: its folder.
        variant: in words.
        config: of the model that it would load into; None where it cannot be told.
        shards: names of the files of the main weights.
        parts: OFT's parts that are read, and their files.
        dtypes: of the weights, by part of the model.
        parameters: numbers in all its files; with FiLM the vision backbone is there twice.
        keys: un-normalisation keys.
        statistics: the file they are from.
        adapter: the folder of a LoRA adapter, where there is one.
        missing, foreign, misshaped: tensors that the model needs, does not know, has in another shape.
        problems: why it does not load, as sentences; none where it does.
        notes: what else one should know, as sentences.
    """

    path: Path
    variant: str
    config: OpenVLAConfig | None
    shards: tuple[str, ...]
    parts: Mapping[str, Path]
    dtypes: Mapping[str, str]
    parameters: int
    keys: tuple[str, ...]
    statistics: str
    adapter: Path | None
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    misshaped: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def check(self) -> OpenVLAConfig:
        """The configuration to load into.

        Raises:
            WeightsError: there are problems; it names every one.
        """
        if self.problems or self.config is None:
            listed = "\n".join(f"- {problem}" for problem in self.problems)
            raise WeightsError(f"The checkpoint in {self.path} ({self.variant}) cannot be loaded:\n{listed}")
        return self.config

    def text(self) -> str:
        """Describes the checkpoint in lines for people."""
        rows = [("variant", self.variant), *self.rows()]
        for what in ("missing", "foreign", "misshaped"):
            if names := getattr(self, what):
                rows.append((what, f"{len(names)}: {some(list(names))}"))
        rows += [("problem", problem) for problem in self.problems]
        rows += [("note", note) for note in self.notes]
        rows.append(("loads", "no" if self.problems else "yes"))
        return "\n".join([str(self.path), *(f"  {name:<18} {value}" for name, value in rows)])

    def rows(self) -> list[tuple[str, str]]:
        """What is in the checkpoint, by name, in words."""
        rows = self._sizes()
        rows.append(("weights", f"{self.parameters:,} parameters in {len(self.shards)} shard(s)"))
        rows.append(
            ("dtypes", ", ".join(f"{part} {kind}" for part, kind in self.dtypes.items()) or "unknown")
        )
        rows += [(part, path.name) for part, path in self.parts.items()]
        rows.append(("statistics", f"{some(list(self.keys), 12) or 'none'} ({self.statistics})"))
        rows.append(("LoRA adapter", str(self.adapter or "none")))
        return rows

    def _sizes(self) -> list[tuple[str, str]]:
        if (c := self.config) is None:
            return []
        state = "no state" if c.proprio_width is None else f"a state of {c.proprio_width} numbers"
        return [
            ("inputs", f"{c.views} view(s) of {c.towers[0].image_size} pixels, {state}"),
            ("outputs", f"{c.chunk} action(s) of {c.action_width} numbers"),
        ]


def inspect_checkpoint(path: str | Path, **wanted: Unpack[Wanted]) -> CheckpointRecord:
    """Describes a checkpoint of OpenVLA without loading it: reads JSON files and headers.

    Of parts in PyTorch files names and shapes are read; their tensors are mapped, not loaded. The names that
    the model has come from one on the meta device, which allocates nothing.

    Args:
        path: its folder.
        wanted: see `Wanted`.

    Raises:
        WeightsError: there is no such folder. Everything else that is wrong is in the record.
        MissingDependencyError: timm or transformers is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise WeightsError(f"No checkpoint at {folder}: expected a folder of OpenVLA's, there is none.")
    problems, notes = [], []
    released, source = _released(folder, problems)
    weights, adapter = read_weights(folder), adapter_in(folder)
    files = {part: told for part, told in part_files(folder).items() if wants(part, wanted)}
    parts = {part: read_part(part, file) for part, (file, _) in files.items()}
    config = config_of(released, parts, wanted, problems, notes) if released else None
    _check_adapter(folder, adapter, weights, problems, notes)
    _check_steps({part: step for part, (_, step) in files.items()}, problems)
    for each in (weights, *parts.values()):
        problems += each.problems
        notes += each.notes
    missing, foreign, misshaped = _differences(config, weights, parts, problems)
    entries = {**weights.entries, **{n: e for part in parts.values() for n, e in part.entries.items()}}
    return CheckpointRecord(
        path=folder,
        variant=variant_in_words(released, config, parts),
        config=config,
        shards=tuple(file.name for file in weights.files),
        parts={part: file for part, (file, _) in files.items()},
        dtypes=_dtypes(entries, problems),
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        keys=_statistics(released, config, notes),
        statistics=source,
        adapter=adapter,
        missing=missing,
        foreign=foreign,
        misshaped=misshaped,
        problems=tuple(problems),
        notes=tuple(notes),
    )


# ---- files


def _released(folder: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    """Content of config.json, the statistics of dataset_statistics.json in it, and where they are from."""
    try:
        released = read_json(folder / CONFIG, ADVICE, WeightsError)
        if not (folder / STATISTICS).is_file():
            return released, f"{CONFIG}, norm_stats"
        return {**released, "norm_stats": read_json(folder / STATISTICS, ADVICE, WeightsError)}, STATISTICS
    except WeightsError as error:
        problems.append(str(error))
        return {}, "unread"


def _check_adapter(
    folder: Path, adapter: Path | None, weights: Found, problems: list[str], notes: list[str]
) -> None:
    if lora := [name for name in weights.entries if is_adapter(name)]:
        problems.append(
            f"LoRA adapters are not merged into the weights: {some(lora)}. Merge them first (peft's "
            "merge_and_unload)."
        )
    elif adapter is not None and not weights.files:
        problems.append(
            f"{adapter} is a LoRA adapter alone, and not merged. Expected whole weights: merge it into its "
            "base model first (peft's merge_and_unload)."
        )
    elif adapter is not None:
        place = adapter.relative_to(folder).as_posix()
        notes.append(f"A LoRA adapter ({place}) lies beside whole weights, which are taken to contain it.")


def _check_steps(steps: Mapping[str, int | str], problems: list[str]) -> None:
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{part} of {step}" for part, step in steps.items())
        problems.append(f"Expected all parts from one training step, found {told}. Remove the odd ones.")


def _statistics(
    released: Mapping[str, Any], config: OpenVLAConfig | None, notes: list[str]
) -> tuple[str, ...]:
    if config is None:
        return tuple(sorted(map(str, released.get("norm_stats") or ())))
    try:
        statistics = Statistics(config.norm_stats, config.normalisation)
    except StatisticsError as error:
        notes.append(str(error))
        return ()
    if not statistics.keys:
        notes.append("It has no statistics: its actions cannot be un-normalised.")
    for key in statistics.keys:
        try:
            width = statistics.bounds(key).width
        except StatisticsError as error:
            notes.append(str(error))
            continue
        if width != config.action_width:
            notes.append(
                f"The actions of {key!r} have {width} numbers, those of the model {config.action_width}."
            )
    return statistics.keys


# ---- tensors


def expected_shapes(config: OpenVLAConfig) -> Shapes:
    """Shapes of all tensors of a model under their released names; nothing is allocated.

    Raises:
        OpenVLAConfigError: no model can have these sizes.
    """
    try:
        with torch.device("meta"):
            state = OpenVLA(config).state_dict()
    except SpatialForcingError:
        raise
    except Exception as error:  # torch, timm and transformers refuse sizes in many ways
        raise OpenVLAConfigError(f"No model can have the sizes in {CONFIG}: {error}") from error
    return {released_name(name): tuple(tensor.shape) for name, tensor in state.items()}


def _differences(
    config: OpenVLAConfig | None, weights: Found, parts: Mapping[str, Found], problems: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Missing, foreign and misshaped tensors, of the files that could be read whole."""
    missing, foreign, misshaped = [], [], []
    try:
        expected = {} if config is None else expected_shapes(config)
    except OpenVLAConfigError as error:
        problems.append(str(error))
        expected = {}
    main = {name: shape for name, shape in expected.items() if part_of(name) not in parts}
    if "vision_backbone" in parts:  # with FiLM there are two: the one in the shards is as without
        vision = {plain_vision(name): shape for name, shape in expected.items()}
        main |= {n: shape for n, shape in vision.items() if n and part_of(n) == "vision_backbone"}
    pairs = [(weights, main)] if not any(map(is_adapter, weights.entries)) else []
    for part, found in parts.items():
        pairs.append((found, {n: shape for n, shape in expected.items() if part_of(n) == part}))
    for found, shapes in pairs:
        if not shapes or found.problems:
            continue
        entries = {plain: e for n, e in found.entries.items() if (plain := unwrapped(n))}
        missing += sorted(shapes.keys() - entries.keys())
        foreign += sorted(entries.keys() - shapes.keys())
        misshaped += [
            f"{name} (expected {shapes[name]}, found {entries[name].shape})"
            for name in sorted(shapes.keys() & entries.keys())
            if shapes[name] != entries[name].shape
        ]
    for what, names in (("missing", missing), ("not known", foreign), ("of another shape", misshaped)):
        if names:
            problems.append(f"{len(names)} tensor(s) {what}: {some(names)}.")
    return tuple(missing), tuple(foreign), tuple(misshaped)


def _dtypes(entries: Mapping[str, Entry], problems: list[str]) -> dict[str, str]:
    found: dict[str, dict[str, str]] = {}
    for name, entry in entries.items():
        found.setdefault(part_of(name), {}).setdefault(entry.dtype, name)
    for part, kinds in found.items():
        wrong = {dtype: name for dtype, name in kinds.items() if dtype not in FLOATS.values()}
        # FiLM's file holds adapters of another dtype than the layers under them.
        mixed = len(kinds) > 1 and not any(is_adapter(n) for n in entries if part_of(n) == part)
        if wrong or mixed:
            told = ", ".join(f"{dtype} ({name})" for dtype, name in (wrong or kinds).items())
            problems.append(f"The tensors of {part} must be of one floating-point dtype, found {told}.")
    return {part: " and ".join(sorted(kinds)) for part, kinds in sorted(found.items())}
