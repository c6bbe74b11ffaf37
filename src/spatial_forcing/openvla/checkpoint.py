"""Loading and writing checkpoints of OpenVLA in the released layout, strictly."""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor

from spatial_forcing.files import write_atomically, write_json
from spatial_forcing.openvla.inspect import CheckpointRecord, inspect_checkpoint
from spatial_forcing.openvla.layout import (
    CONFIG,
    INDEX,
    LATEST,
    PARTS,
    STATISTICS,
    open_part,
    own_name,
    part_file,
    part_files,
    part_of,
    plain_vision,
    prefixed,
    read_weights,
    released_name,
    some,
    unwrapped,
)
from spatial_forcing.openvla.model import OpenVLA
from spatial_forcing.openvla.variant import Wanted
from spatial_forcing.teachers.checkpoint import WeightsError

SHARD_BYTES = 5_000_000_000
# Rank of the adapters that public evaluation wraps a vision backbone with FiLM in; alpha is 16 at most. Its
# peft (0.11) finds layers by the ends of their names, so that the patches' convolution has an adapter too.
LORA_RANK, LORA_ALPHA = 32, 16
# What public evaluation needs beside the weights: the tokenizer, the image processor, the modelling code.
PROCESSOR_FILES = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "generation_config.json", "*_prismatic.py"),
)


# ---- loading


def load_openvla(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
    **wanted: Unpack[Wanted],
) -> OpenVLA:
    """Loads a checkpoint in the released layout: plain OpenVLA, or OFT with its parts.

    The checkpoint is inspected first, and nothing is allocated unless every name, shape and dtype fits.

    Args:
        path: folder of the checkpoint, with LoRA adapters merged.
        dtype: of all weights; by default each part stays in its stored one.
        device: where the weights go, shard by shard.
        attention: "sdpa" or "eager".
        wanted: see `Wanted`.

    Raises:
        WeightsError: it does not load; the message names everything that is wrong.
        MissingDependencyError: timm or transformers is not installed.
    """
    record = inspect_checkpoint(path, **wanted)
    config = record.check()
    with torch.device("meta"):
        model = OpenVLA(config, attention=attention)
    for state in _states(record):
        state = {own_name(name): tensor.to(device, dtype) for name, tensor in state.items()}
        model.load_state_dict(state, strict=False, assign=True)
    fill_buffers(model, device)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:  # the inspection has compared all names; this is a mistake of ours
        raise WeightsError(f"{path} left tensors without values: {some(left)}.")
    return model.eval()


def _states(record: CheckpointRecord) -> Iterator[dict[str, Tensor]]:
    """The weights by released name, a file at a time."""
    from safetensors import safe_open

    for file in read_weights(record.path).files:
        with safe_open(file, "pt") as shard:
            names = [name for name in shard.keys() if part_of(name) not in record.parts]  # noqa: SIM118
            yield {name: shard.get_tensor(name) for name in names}
    for part, file in record.parts.items():
        yield _merged(dict(prefixed(part, open_part(file))))


def _merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the adapters in FiLM's file to the layers under them: W + alpha / rank x B A."""
    merged = {}
    for name, tensor in state.items():
        if (plain := unwrapped(name)) is None:
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name and (low := _adapter(state, layer)) is not None:
            a_RI, b_OR = (each.float().flatten(1) for each in low)
            scale = min(len(a_RI), LORA_ALPHA) / len(a_RI)
            tensor = (tensor.float() + scale * (b_OR @ a_RI).view_as(tensor)).to(tensor.dtype)
        merged[plain] = tensor
    kinds = [t.dtype for n, t in merged.items() if n.endswith("patch_embed.proj.weight")]
    return {name: tensor.to(kinds[0]) if kinds else tensor for name, tensor in merged.items()}


def _adapter(state: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor] | None:
    names = [f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"]
    found = [state[name] for name in names if name in state]
    if not found:
        return None
    if len(found) != 2 or len(found[0]) != found[1].shape[1]:
        raise WeightsError(f"The adapter of {layer} must have lora_A and lora_B of one rank.")
    return found[0], found[1]


def fill_buffers(model: OpenVLA, device: torch.device | str) -> None:
    """Computes what no checkpoint holds: the frequencies of the language model's rotary embedding."""
    llama = model.language_model.model
    llama.rotary_emb = type(llama.rotary_emb)(config=llama.config, device=torch.device(device))


# ---- writing


def save_openvla(
    model: OpenVLA,
    folder: str | Path,
    *,
    step: int | str = LATEST,
    shard_bytes: int = SHARD_BYTES,
    processor: str | Path | None = None,
) -> Path:
    """Writes a model in the released layout, which public evaluation code reads, and `load_openvla` exactly.

    Args:
        model: to write; LoRA adapters of peft must be merged.
        folder: made if need be; it may hold no weights yet.
        step: of training, in the names of OFT's parts.
        shard_bytes: a shard is at most so large, unless one tensor is larger.
        processor: folder of a checkpoint whose tokenizer, image processor and modelling code are copied.

    Raises:
        WeightsError: the folder holds weights, the model has adapters, or a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_empty(folder)
    state = {released_name(name): tensor.detach() for name, tensor in model.state_dict().items()}
    if wrapped := [name for name in state if unwrapped(name) != name]:
        raise WeightsError(
            f"Merge the LoRA adapters before writing (peft's merge_and_unload): {some(wrapped)}."
        )
    for file in _processor_files(processor):
        shutil.copyfile(file, folder / file.name)
    separate = {part: {n: t for n, t in state.items() if part_of(n) == part} for part in PARTS}
    main = {name: tensor for name, tensor in state.items() if part_of(name) not in separate}
    vision = separate.pop("vision_backbone")
    main |= {plain: tensor for name, tensor in vision.items() if (plain := plain_vision(name))}
    if model.config.film:
        _write_part(folder, part_file("vision_backbone", step), _wrapped(model, vision))
    for part, tensors in separate.items():
        if tensors:
            plain = {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items()}
            _write_part(folder, part_file(part, step), plain)
    kind = str(model.language_model.lm_head.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, {**model.config.released(), "torch_dtype": kind})
    write_json(folder / STATISTICS, dict(model.config.norm_stats))
    _write_shards(folder, main, shard_bytes)
    return folder


def _check_empty(folder: Path) -> None:
    found = [*folder.glob("*.safetensors"), *(path for path, _ in part_files(folder).values())]
    if found:
        raise WeightsError(
            f"Expected {folder} to hold no weights, found {some(sorted(p.name for p in found))}. Parts of "
            "two models would mix: name another folder."
        )


def _processor_files(source: str | Path | None) -> list[Path]:
    if source is None:
        return []
    found = [path for pattern in PROCESSOR_FILES for path in sorted(Path(source).glob(pattern))]
    if not found:
        raise WeightsError(f"Expected a tokenizer and an image processor in {source}, found none.")
    return found


def _wrapped(model: OpenVLA, vision: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision backbone with FiLM as public code stores it: under adapters of peft, which are zero here."""
    adapted = {
        released_name(f"vision_backbone.{name}")
        for name, module in model.vision_backbone.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not name.endswith((".scale", ".shift"))
    }
    state = {}
    for name, tensor in vision.items():
        layer, _, leaf = name.rpartition(".")
        state[f"{layer}.base_layer.{leaf}" if layer in adapted else name] = tensor
        if layer in adapted and leaf == "weight":
            kernel = (1,) * (tensor.dim() - 2)
            state[f"{layer}.lora_A.default.weight"] = tensor.new_zeros(LORA_RANK, *tensor.shape[1:])
            state[f"{layer}.lora_B.default.weight"] = tensor.new_zeros(len(tensor), LORA_RANK, *kernel)
    return state


def _write_part(folder: Path, name: str, state: Mapping[str, Tensor]) -> None:
    # A clone: torch.save would write the whole storage that a tensor is a view of.
    plain = {key: tensor.cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    write_atomically(folder / name, lambda path: torch.save(plain, path), error=WeightsError)


def _write_shards(folder: Path, state: Mapping[str, Tensor], limit: int) -> None:
    """Writes the shards, and last the index, without which they are no checkpoint."""
    shards = list(_split(state.items(), limit))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: state[name].cpu().contiguous() for name in names}
        write_atomically(
            folder / file,
            lambda path, tensors=tensors: save_file(tensors, path, {"format": "pt"}),
            error=WeightsError,
        )
        places |= dict.fromkeys(names, file)
    total = sum(_bytes(tensor) for tensor in state.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _split(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[list[str]]:
    names, size = [], 0
    for name, tensor in tensors:
        if names and size + _bytes(tensor) > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(tensor)
    yield names


def _bytes(tensor: Any) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
