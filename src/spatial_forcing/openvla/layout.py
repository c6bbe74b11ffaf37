"""Files of a released OpenVLA checkpoint, their headers, and the names of their tensors.

Nothing here allocates a tensor. A folder holds `config.json`, shards of safetensors that an index names (or
one `model.safetensors`), `dataset_statistics.json`, and OFT's parts as `<part>--<step>_checkpoint.pt`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatial_forcing.files import read_json
from spatial_forcing.teachers.checkpoint import Checkpoint, WeightsError

CONFIG, STATISTICS = "config.json", "dataset_statistics.json"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_FOLDER = "adapter_config.json", "lora_adapter"
PARTS = ("action_head", "proprio_projector", "vision_backbone", "noisy_action_projector")
LATEST = "latest"
LORA = {"lora_A", "lora_B"}
ADAPTER_WORDS = LORA | {"lora_embedding_A", "lora_embedding_B", "base_layer"}
ADVICE = "Download the checkpoint again."
_PART_FILE = re.compile(rf"({'|'.join(PARTS)})--(\d+|{LATEST})_checkpoint\.pt")
# Layer scale is called so in released checkpoints, because transformers 4 renames whatever is called gamma.
_OWN_SCALE, _RELEASED_SCALE = re.compile(r"(\.ls[12])\.gamma$"), re.compile(r"(\.ls[12])\.scale_factor$")
_FILM = re.compile(r"\.blocks\.\d+\.(scale|shift)\.")
_FILM_BLOCK = re.compile(r"(\.blocks\.\d+\.)block\.")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its dtype, as torch spells it where it is floating point, and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Found:
    """What is in the files of one part of a model, and what is wrong with them."""

    entries: dict[str, Entry] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ---- names


def released_name(name: str) -> str:
    """Name of a tensor of our model in a released checkpoint."""
    return _OWN_SCALE.sub(r"\1.scale_factor", name)


def own_name(name: str) -> str:
    """Name in our model of a tensor of a released checkpoint."""
    return _RELEASED_SCALE.sub(r"\1.gamma", name)


def part_of(name: str) -> str:
    """Part that a tensor belongs to: vision_backbone, projector, language_model, action_head, ..."""
    return name.partition(".")[0]


def is_adapter(name: str) -> bool:
    """Whether a name is of a LoRA adapter that was not merged, or of the layer under one."""
    return not ADAPTER_WORDS.isdisjoint(name.split("."))


def unwrapped(name: str) -> str | None:
    """Name of a layer without the adapter around it; None for the adapter's own tensors."""
    if not LORA.isdisjoint(name.split(".")):
        return None
    return name.replace(".base_layer.", ".")


def plain_vision(name: str) -> str | None:
    """Name of a tensor of a vision backbone with FiLM in one without; None where it has none."""
    if _FILM.search(name):
        return None
    return _FILM_BLOCK.sub(r"\1", name)


# ---- files


def part_file(part: str, step: int | str) -> str:
    """Name of a part's file."""
    return f"{part}--{step}_checkpoint.pt"


def part_files(folder: Path) -> dict[str, tuple[Path, int | str]]:
    """By part, its file of the last step, and that step; "latest" is the last of all."""
    found: dict[str, tuple[Path, int | str]] = {}
    for path in sorted(folder.iterdir()):
        if match := _PART_FILE.fullmatch(path.name):
            part, step = match[1], match[2] if match[2] == LATEST else int(match[2])
            if part not in found or _order(step) > _order(found[part][1]):
                found[part] = (path, step)
    return found


def _order(step: int | str) -> float:
    return float("inf") if step == LATEST else float(step)


def adapter_in(folder: Path) -> Path | None:
    """Folder of a LoRA adapter in a checkpoint: itself, or the one that OFT's training writes."""
    for place in (folder, folder / ADAPTER_FOLDER):
        if (place / ADAPTER_CONFIG).is_file():
            return place
    return None


def read_weights(folder: Path) -> Found:
    """Reads the headers of the main weights: the shards that the index names, or the single file.

    Shards are never counted, nor is their number taken from their names.
    """
    index = folder / INDEX
    if index.is_file():
        return _read_indexed(folder, index)
    single = folder / SINGLE
    if single.is_file():
        return _read_files({single: None})
    listed = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return Found(problems=[f"No weights: expected {INDEX} or {SINGLE}, found {listed}."])


def _read_indexed(folder: Path, index: Path) -> Found:
    try:
        names = read_json(index, ADVICE, WeightsError).get("weight_map")
    except WeightsError as error:
        return Found(problems=[str(error)])
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return Found(problems=[f"{index} has no 'weight_map' of names to files. {ADVICE}"])
    outside = sorted({name for name in names.values() if Path(name).name != name})
    if outside:
        return Found(problems=[f"{index} names {outside[0]!r}, which is no file of its own folder."])
    wanted: dict[Path, set[str] | None] = {folder / name: set() for name in sorted(set(names.values()))}
    for name, file in names.items():
        wanted[folder / file].add(name)  # type: ignore[union-attr]
    found = _read_files(wanted)
    if others := sorted(p.name for p in folder.glob("*.safetensors") if p not in wanted):
        found.notes.append(f"{INDEX} does not name {some(others)}: not read.")
    return found


def _read_files(wanted: Mapping[Path, set[str] | None]) -> Found:
    found = Found(files=tuple(wanted))
    for path, names in wanted.items():
        if not path.is_file():
            found.problems.append(f"The shard {path.name} is missing: {INDEX} names it. {ADVICE}")
            continue
        try:
            entries = read_header(path)
        except WeightsError as error:
            found.problems.append(str(error))
            continue
        if names is not None and (absent := sorted(names - entries.keys())):
            found.problems.append(f"{path.name} lacks {some(absent)}, which {INDEX} places there. {ADVICE}")
        if names is not None and (more := sorted(entries.keys() - names)):
            found.problems.append(f"{path.name} holds {some(more)}, which {INDEX} does not place there.")
        found.entries.update(entries)
    return found


def read_header(path: Path) -> dict[str, Entry]:
    """Reads names, dtypes and shapes of a safetensors file from its header.

    Raises:
        WeightsError: it is no such file, or its length is not what the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise WeightsError(
                f"{path.name} is cut off, or no safetensors file: its header should have {length} bytes, the "
                f"file has {size}. {ADVICE}"
            )
        header = file.read(length)
    try:
        tensors = {name: told for name, told in json.loads(header).items() if name != "__metadata__"}
        end = max((told["data_offsets"][1] for told in tensors.values()), default=0)
        entries = {name: _entry(path, told) for name, told in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path.name} is no readable safetensors file ({error!r}). {ADVICE}") from error
    if 8 + length + end != size:
        raise WeightsError(
            f"{path.name} is cut off or damaged: expected {8 + length + end} bytes, found {size}. {ADVICE}"
        )
    return entries


def _entry(path: Path, told: dict[str, Any]) -> Entry:
    dtype = str(told["dtype"])
    return Entry(path, FLOATS.get(dtype, dtype), tuple(int(n) for n in told["shape"]))


def read_part(part: str, path: Path) -> Found:
    """Reads names, dtypes and shapes of a part's file; names are those of the whole model.

    The prefix that training in several processes leaves (`module.`) is removed.
    """
    try:
        state = open_part(path)
    except WeightsError as error:
        return Found(files=(path,), problems=[str(error)])
    entries = {
        name: Entry(path, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in prefixed(part, state)
    }
    return Found(entries, (path,))


def open_part(path: Path) -> dict[str, Any]:
    """Tensors of a part's file by name, mapped rather than read.

    Raises:
        WeightsError: it is no file of torch.save, is damaged, or holds something else than tensors.
    """
    checkpoint = Checkpoint(path)
    return checkpoint.read(checkpoint.shapes)


def prefixed(part: str, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors of a part under the names of the whole model."""
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        # FiLM's file is the state of a module around the vision backbone: it has the prefix already.
        yield plain if part_of(plain) == part else f"{part}.{plain}", tensor


def some(names: list[str], shown: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
